"""The gdb session that drives a recording. The only file that knows pygdbmi."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pygdbmi import gdbmiparser
from pygdbmi.gdbcontroller import GdbController

from db.errors import ShadowtraceError

#: The stub answers nothing while a guest is stopped by someone else, so be patient.
_REMOTE_TIMEOUT = 600
_ANSWER_SECONDS = 60.0


class GdbGoneError(Exception):
    """gdb ended, or cannot be talked to any more."""

    killed = False
    """Whether somebody ended it with a signal while it started."""


@dataclass(frozen=True)
class Stop:
    """Why the guest stopped: MI's ``reason``, the pc, and the breakpoint's number if one was hit."""

    reason: str
    pc: int
    breakpoint: int | None
    exited: bool = False


def find_gdb() -> str:
    """Gdb's path; ``ShadowtraceError`` where there is none."""
    found = shutil.which("gdb")
    if found is None:
        raise ShadowtraceError("there is no gdb", "apt-get install gdb")
    return found


def gdb_version(program: str) -> str:
    """The version that a gdb says it has."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"(\d+\.\S+)\s*$", done.stdout.splitlines()[0]) if done.stdout else None
    return match[1] if match else "unknown"


class Session:
    """gdb attached to a QEMU's stub socket. Raises ``GdbGoneError`` from any call once gdb is gone.

    pygdbmi starts the process and parses its records; the waiting is done here, because its own ``write`` sleeps out a
    timeout at every call.
    """

    def __init__(self, socket: Path) -> None:
        # A session of its own: Ctrl-C is for us alone. gdb ends by itself when its standard input closes. One that crashes
        # when its guest is killed leaves no core file where the user stands.
        command = ["setsid", "prlimit", "--core=0", find_gdb(), "--nx", "--quiet", "--interpreter=mi3"]
        self._controller = GdbController(command)
        self._buffer = b""
        self._stops: list[Stop] = []
        self._token = 0
        self._registers: dict[str, int] = {}
        self.running = False
        try:
            self._attach(socket)
        except BaseException as error:
            if isinstance(error, GdbGoneError):
                error.killed = self._signalled()
            self.close()
            raise

    def _attach(self, socket: Path) -> None:
        self.command("-gdb-set confirm off")
        self.command("-gdb-set pagination off")
        # gdb would take breakpoints out at each stop and put them in again: QEMU throws translated code away each time.
        self.command("-gdb-set breakpoint always-inserted on")
        self.command("-gdb-set mi-async on")
        self.command(f"-gdb-set remotetimeout {_REMOTE_TIMEOUT}")
        self.command(f"-target-select remote {socket}")
        # The attach itself stops at the reset vector.
        self.wait(10.0)

    def _signalled(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return int(self._process().wait(timeout=1)) < 0
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Gdb's process id."""
        return int(self._process().pid)

    def close(self) -> None:
        """End gdb; QEMU is left as it is."""
        process = self._process()
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _process(self) -> Any:
        return self._controller.gdb_process

    def detach(self) -> None:
        """Let go of the guest, which runs on without any breakpoint."""
        self.command("-target-detach")

    # -- talking ---------------------------------------------------------------------------------------------------

    def command(self, text: str) -> dict[str, Any]:
        """The payload of an MI command's answer; ``ShadowtraceError`` where gdb refuses it."""
        self._token += 1
        token = self._token
        try:
            os.write(self._process().stdin.fileno(), f"{token}{text}\n".encode())
        except OSError as error:
            raise GdbGoneError(str(error)) from error
        deadline = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < deadline:
            for record in self._records(deadline - time.monotonic()):
                if record["type"] == "result" and record["token"] == token:
                    if record["message"] == "error":
                        raise ShadowtraceError(f"gdb refuses {text.split(maxsplit=1)[0]}: {(record['payload'] or {}).get('msg')}")
                    return dict(record["payload"] or {})
        raise GdbGoneError(f"no answer to {text.split(maxsplit=1)[0]}")

    def _records(self, timeout: float) -> list[dict[str, Any]]:
        """Whole lines that come within a time, parsed; stops are put aside on the way."""
        fd = self._process().stdout.fileno()
        if b"\n" not in self._buffer:
            ready, _, _ = select.select([fd], [], [], max(0.0, timeout))
            if not ready:
                return []
            data = os.read(fd, 1 << 16)
            if not data:
                raise GdbGoneError("gdb ended")
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        records = []
        for line in lines:
            text = line.decode("latin-1").rstrip("\r")
            if not text or gdbmiparser.response_is_finished(text):
                continue
            record = gdbmiparser.parse_response(text)
            self._notice(record)
            records.append(record)
        return records

    def _notice(self, record: dict[str, Any]) -> None:
        if record["type"] != "notify":
            return
        payload = record["payload"] or {}
        if record["message"] == "running":
            self.running = True
        elif record["message"] == "stopped":
            self.running = False
            number = payload.get("bkptno")
            pc = int((payload.get("frame") or {}).get("addr", "0"), 16)
            reason = str(payload.get("reason", ""))
            self._stops.append(Stop(reason, pc, int(number) if number else None, reason.startswith("exited")))
        elif record["message"] == "thread-group-exited":
            self.running = False
            self._stops.append(Stop("exited", 0, None, True))

    def wait(self, timeout: float) -> Stop | None:
        """The next stop of the guest, or ``None`` where none comes in time (seconds)."""
        deadline = time.monotonic() + timeout
        while not self._stops:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._records(left)
        return self._stops.pop(0)

    def console(self, text: str) -> None:
        """Have a command of gdb's own language executed; ``ShadowtraceError`` where it fails."""
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        self.command(f'-interpreter-exec console "{quoted}"')

    # -- the guest -------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Let the guest run on."""
        self._stops.clear()
        self.running = True
        self.command("-exec-continue")

    def insert_breakpoint(self, address: int) -> int:
        """Stop at an address; the breakpoint's number."""
        return int(self.command(f"-break-insert *{address:#x}")["bkpt"]["number"])

    def delete(self, numbers: list[int]) -> None:
        """Forget breakpoints and watchpoints."""
        if numbers:
            self.command("-break-delete " + " ".join(str(number) for number in numbers))

    def remove_foreign(self, address: int) -> None:
        """Have QEMU remove a breakpoint that gdb does not know of."""
        self.console(f"maint packet z0,{address:x},1")

    def register(self, name: str) -> int:
        """A register's value, unsigned; 0 where this processor has none of that name."""
        if not self._registers:
            names = self.command("-data-list-register-names")["register-names"]
            self._registers = {register: number for number, register in enumerate(names) if register}
        number = self._registers.get(name)
        if number is None:
            return 0
        values = self.command(f"-data-list-register-values --skip-unavailable x {number}")["register-values"]
        return int(values[0]["value"], 16) if values else 0

    def read(self, address: int, size: int) -> bytes | None:
        """Guest memory at a virtual address; ``None`` where nothing is mapped."""
        try:
            memory = self.command(f"-data-read-memory-bytes {address:#x} {size}")["memory"]
        except ShadowtraceError:
            return None
        return bytes.fromhex(memory[0]["contents"])


def release(socket: Path) -> None:
    """Have the guest run on whose gdb was lost: that leaves its breakpoints in QEMU. Another one comes, which clears them, and goes."""
    with contextlib.suppress(GdbGoneError, ShadowtraceError), Session(socket) as session:
        session.detach()
