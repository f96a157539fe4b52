"""Capture by gdb alone: a script inside gdb makes the events, in slices of running; the recorder asks for one after the other."""

from __future__ import annotations

from pathlib import Path

from db.errors import ShadowtraceError, UsageError
from tracer import resources
from tracer.gdb import GdbGoneError, Session, Stop
from tracer.qemu import Capture

_BREAKPOINT = 0


class EngineSession(Session):
    """A gdb session in which the capture engine runs: the same calls, but the guest runs only inside ``wait``.

    ``stream``, ``control`` and ``ram`` are paths that gdb can open: where events go, the counters, guest RAM (empty where no file
    is known: it is then read through the stub). ``lost`` is true once QEMU is gone; ``missed`` counts the times that a control
    register was found changed by an instruction that was not found, ``refused`` the breakpoints and watchpoints that the stub did not
    take. Raises ``ShadowtraceError`` where the engine
    does not start.
    """

    def __init__(self, socket: Path, stream: str, control: str, ram: str, exact: bool, capture: Capture) -> None:
        super().__init__(socket)
        folder = resources.scripts() / "gdb"
        try:
            self.console(f"python import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(folder)!r}); import commands")
            found = self.command(f"-shadowtrace-look {_quoted(str(socket))}")
        except (ShadowtraceError, GdbGoneError) as error:
            self.close()
            raise ShadowtraceError(f"the capture engine does not start in gdb: {error}", "it needs gdb 12 or later with Python") from error
        self.ram_bytes, self.vcpus = int(found["ram"]), int(found["vcpus"])
        self.running = self.lost = False
        self.missed = self.refused = 0
        try:
            _check(found["kvm"], ram, self.ram_bytes)
            arguments = (stream, control, ram, str(int(exact)), str(capture.retire_after_stores), str(capture.max_tables))
            self.command("-shadowtrace-begin " + " ".join(_quoted(argument) for argument in arguments))
        except BaseException:
            self.close()
            raise

    def resume(self) -> None:
        """Nothing: the guest runs in ``wait``."""

    def wait(self, timeout: float) -> Stop | None:
        """Let the guest run, for so many seconds at the most; why it stopped, or ``None`` where only the time was over."""
        if self._stops:
            return self._stops.pop(0)
        done = self.command(f"-shadowtrace-slice {timeout}")
        self.missed, self.refused = int(done["missed"]), int(done["refused"])
        reason, pc, number = str(done["reason"]), int(done["pc"], 16), int(done["number"])
        if reason in ("breakpoint", "watch"):
            return Stop(reason, pc, number)
        if reason in ("exited", "lost"):
            self.lost = True
            return Stop(reason, 0, None, exited=True)
        return Stop("signal-received", 0, None) if reason == "signal" else None

    def insert_breakpoint(self, address: int) -> int:
        """Stop at an address; the breakpoint's number."""
        return int(self.command(f"-shadowtrace-stop {_BREAKPOINT} {address:#x} 1")["number"])

    def delete(self, numbers: list[int]) -> None:
        """Forget breakpoints and watchpoints."""
        if numbers:
            self.command("-shadowtrace-nostop " + " ".join(map(str, numbers)))

    def register(self, name: str) -> int:
        """A register's value: of those that the recorder needs."""
        return int(self.command(f"-shadowtrace-register {name}")["value"], 16)

    def read(self, address: int, size: int) -> bytes | None:
        """Guest memory at a virtual address; ``None`` where nothing is mapped."""
        return bytes.fromhex(self.command(f"-shadowtrace-read {address:#x} {size}")["contents"]) or None

    def physical(self, address: int, size: int) -> bytes | None:
        """Guest memory at a physical address."""
        return bytes.fromhex(self.command(f"-shadowtrace-physical {address:#x} {size}")["contents"]) or None

    def monitor(self, line: str) -> str:
        """What QEMU's human monitor answers."""
        return str(self.command(f"-shadowtrace-monitor {_quoted(line)}")["text"])

    def finish(self) -> None:
        """Remove every breakpoint and watchpoint; the stream ends."""
        self.command("-shadowtrace-finish")


def _check(info_kvm: str, ram: str, ram_bytes: int) -> None:
    """Raise ``UsageError`` where the guest runs on the processor itself, or a file of another size is said to hold its RAM."""
    if "enabled" in info_kvm:
        raise UsageError(
            "that guest runs on KVM, which refuses to watch whole pages: gdb captures emulated guests", "start QEMU with -accel tcg"
        )
    if ram and (size := Path(ram).stat().st_size) != ram_bytes:
        raise UsageError(
            f"the RAM file {ram} has {size:,} bytes, the guest {ram_bytes:,}",
            "give the mem-path of its memory-backend-file, or leave it out",
        )


def _quoted(argument: str) -> str:
    return '"' + argument.replace("\\", "\\\\").replace('"', '\\"') + '"'
