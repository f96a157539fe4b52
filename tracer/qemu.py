"""One QEMU process: its arguments, its descriptors, its console, QMP, and how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from db.errors import ShadowtraceError, UsageError
from db.file.private import private_folder
from tracer import plugin
from tracer.tasks import Layout

_PR_SET_PDEATHSIG = 1
PIPE_SIZE_COMMAND = 1031
PIPE_BYTES = 1 << 20

#: Guests above this have part of their RAM elsewhere in the RAM file than in physical memory.
MAX_RAM_BYTES = 2 << 30

#: Video memory and the BIOS: what the processor reads there is not what the RAM file holds, so no table there is followed.
_LEGACY_HOLE = range(0xA0000, 0x100000)

#: What a user's arguments must not say, and why.
_OURS = {
    "-S": "shadowtrace starts the guest itself",
    "-s": "gdb's socket is a private one",
    "-gdb": "gdb's socket is a private one",
    "-qmp": "QMP's socket is a private one",
    "-plugin": "the capture plugin is loaded by shadowtrace",
    "-daemonize": "shadowtrace watches over the process",
    "-enable-kvm": "only an emulated guest (TCG) can be traced",
    "-netdev": "guests get no network",
    "-vnc": "nothing listens on a network",
    "-spice": "nothing listens on a network",
    "-mem-path": "guest RAM lies in a file of shadowtrace's own",
}

_QMP_SECONDS = 60.0

#: What talking to a QEMU that ends, or has ended, raises.
_QMP_GONE = (QMPError, OSError, EOFError)

#: Options that swallow what follows them; the last of the user's must not swallow one of ours.
_TAKES_A_VALUE = {"accel", "append", "bios", "boot", "cdrom", "chardev", "cpu", "device", "display", "drive", "hda", "icount", "initrd"} | {
    "kernel", "m", "M", "machine", "monitor", "object", "rtc", "seed", "serial", "smp", "vga", "D", "d"
}  # fmt: skip

_UNITS = {"": 1 << 20, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def find_qemu(program: str | None) -> str:
    """The path of qemu-system-x86_64, or of ``program``; ``ShadowtraceError`` where there is none."""
    found = shutil.which(program or "qemu-system-x86_64")
    if found is None:
        raise ShadowtraceError(f"there is no {program or 'qemu-system-x86_64'}", "apt-get install qemu-system-x86")
    return found


def qemu_version(program: str) -> str:
    """The version that a QEMU says it has."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\S+)", done.stdout)
    return match[1] if match else "unknown"


def takes_plugins(program: str) -> bool:
    """Whether a QEMU was built with support for TCG plugins."""
    done = subprocess.run([program, "-help"], capture_output=True, text=True, check=False)
    return "-plugin " in done.stdout


def _value_of(arguments: Sequence[str], option: str) -> str | None:
    """The last value of an option that takes one, with one dash or two."""
    found = None
    for name, value in pairwise(arguments):
        if name.lstrip("-") == option.lstrip("-") and name.startswith("-"):
            found = value
    return found


def ram_bytes(arguments: Sequence[str]) -> int:
    """Guest RAM that ``-m`` asks for; QEMU's own default is 128 MiB."""
    text = _value_of(arguments, "-m") or "128"
    match = re.match(r"(?:size=)?(\d+)([BKMG]?)", text.upper().replace("SIZE=", ""))
    if match is None:
        raise UsageError(f"-m {text} is no amount of RAM", "for example -m 128M")
    size = int(match[1]) * _UNITS[match[2]]
    if not 0 < size <= MAX_RAM_BYTES:
        raise UsageError(f"-m {text}: guests of up to 2 GiB can be traced", "give it less RAM: -m 2G")
    return size


def vcpus(arguments: Sequence[str]) -> int:
    """VCPUs that ``-smp`` asks for."""
    text = _value_of(arguments, "-smp") or "1"
    match = re.match(r"(?:cpus=)?(\d+)(?:,|$)", text)
    if match is None or not 1 <= int(match[1]) <= 64:
        raise UsageError(f"-smp {text}: say the number of vCPUs first, 1 to 64", "for example -smp 2")
    return int(match[1])


def cpu_model(arguments: Sequence[str]) -> str:
    """The CPU model that ``-cpu`` names, or QEMU's default."""
    return _value_of(arguments, "-cpu") or "qemu64"


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise ``UsageError`` where a user's arguments would get in the way of the recording."""
    for argument in arguments:
        option = argument.replace("--", "-", 1) if argument.startswith("--") else argument
        if option in _OURS:
            raise UsageError(f"{argument} cannot be given: {_OURS[option]}", "leave it out")
    for option in ("-nic", "-net"):
        if (_value_of(arguments, option) or "none") != "none":
            raise UsageError(f"{option} cannot be given: guests get no network", "leave it out")
    if arguments and arguments[-1].startswith("-") and arguments[-1].lstrip("-") in _TAKES_A_VALUE:
        raise UsageError(f"{arguments[-1]} needs a value", "see qemu-system-x86_64 --help")
    accelerator = (_value_of(arguments, "-accel") or "tcg").split(",")[0]
    if accelerator != "tcg":
        raise UsageError(f"-accel {accelerator}: only an emulated guest can be traced", "use -accel tcg, or leave it out")
    if vcpus(arguments) > 1 and _value_of(arguments, "-icount") is not None:
        raise UsageError("-icount runs all vCPUs on one thread, which makes QEMU's plugins fail", "use -smp 1 with it")
    if vcpus(arguments) > 1 and "thread=single" in (_value_of(arguments, "-accel") or ""):
        raise UsageError("thread=single with several vCPUs makes QEMU's plugins fail", "use thread=multi")


@dataclass(frozen=True)
class Capture:
    """How the plugin is to capture."""

    touch_entries: int = 1024
    retire_after_stores: int = 64
    max_tables: int = 1 << 18
    user_stores: bool = False
    invalidate_on_pt_write: bool = True
    drop_when_behind: bool = False
    """Drop and count events where the recorder does not keep up, instead of having the guest wait."""
    callbacks: bool = False
    """Have loads and stores told by callbacks also where QEMU's own TLB could tell them."""


class Machine:
    """A QEMU that has been started stopped, before its first instruction; a context manager that leaves none behind.

    ``folder`` is private (0700) and holds the sockets; ``ram`` is the guest's RAM, ``stream`` the plugin's pipe. Without a plugin
    another program captures: ``paths`` are where it finds the stream's other end, the control page and the RAM, until ``let_go``.
    """

    def __init__(self, program: str, arguments: Sequence[str], capture: Capture, object_path: Path | None) -> None:
        check_arguments(arguments)
        self.program = program
        self._arguments = list(arguments)
        self.vcpus = vcpus(arguments)
        self.ram_bytes = ram_bytes(arguments)
        self._stack = contextlib.ExitStack()
        try:
            self._start(list(arguments), capture, object_path)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, arguments: list[str], capture: Capture, object_path: Path | None) -> None:
        stack = self._stack
        self.folder = stack.enter_context(private_folder())
        ram_fd = self._memfd("shadowtrace-ram", self.ram_bytes)
        control_fd = self._memfd("shadowtrace-control", plugin.CONTROL_BYTES)
        self.ram = stack.enter_context(mmap.mmap(ram_fd, self.ram_bytes, prot=mmap.PROT_READ))
        self._control = stack.enter_context(mmap.mmap(control_fd, plugin.CONTROL_BYTES))
        stream, stream_end = os.pipe()
        fcntl.fcntl(stream, PIPE_SIZE_COMMAND, PIPE_BYTES)
        self.stream = stack.enter_context(os.fdopen(stream, "rb", buffering=0))
        self.gdb_socket = self.folder / "gdb"
        qmp_socket = self.folder / "qmp"
        capturing: tuple[str, ...] = ()
        if object_path is not None:
            plugin_arguments = plugin.arguments(
                object_path,
                stream=stream_end,
                control=control_fd,
                ram=ram_fd,
                ram_bytes=self.ram_bytes,
                touch=capture.touch_entries,
                retire_after_stores=capture.retire_after_stores,
                max_tables=capture.max_tables,
                user_stores=int(capture.user_stores),
                invalidate_on_pt_write=int(capture.invalidate_on_pt_write),
                drop=int(capture.drop_when_behind),
                tlb=int(not capture.callbacks),
            )
            capturing = ("-plugin", plugin_arguments)
        if _value_of(arguments, "-accel") is None:
            arguments += ["-accel", "tcg,thread=multi" if self.vcpus > 1 else "tcg"]
        self.argv = [
            self.program,
            # Ours before any of the user's: QEMU 7.2 tells addresses as offsets into its RAM blocks, in order of creation.
            *("-object", f"memory-backend-file,id=shadowtrace-ram,size={self.ram_bytes},share=on,mem-path=/proc/self/fd/{ram_fd}"),
            *arguments,
            *("-machine", "memory-backend=shadowtrace-ram"),
            *capturing,
            *("-chardev", f"socket,path={self.gdb_socket},server=on,wait=off,id=shadowtrace-gdb", "-gdb", "chardev:shadowtrace-gdb"),
            *(
                "-chardev",
                f"socket,path={qmp_socket},server=on,wait=off,id=shadowtrace-qmp",
                "-mon",
                "chardev=shadowtrace-qmp,mode=control",
            ),
            *("-action", "reboot=shutdown,shutdown=pause", "-S"),
        ]
        if _value_of(arguments, "-sandbox") is None:
            self.argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        if _value_of(arguments, "-nic") is None and _value_of(arguments, "-net") is None:
            self.argv += ["-nic", "none"]
        if _value_of(arguments, "-display") is None and "-nographic" not in arguments:
            self.argv += ["-display", "none"]
            if not {"-serial", "-nodefaults"} & set(arguments):
                self.argv += ["-chardev", "stdio,id=shadowtrace-console,signal=off", "-serial", "chardev:shadowtrace-console"]
        self.stderr = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        self.process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            pass_fds=(ram_fd, control_fd, stream_end) if object_path is not None else (ram_fd,),
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads run yet
        )
        stack.callback(self._kill)
        self._stream_end: int | None = stream_end
        self.paths = tuple(f"/proc/{os.getpid()}/fd/{fd}" for fd in (stream_end, control_fd, ram_fd))
        stack.callback(self.let_go)
        if object_path is not None:
            self.let_go()
        self.console = self.process.stdout
        self.qmp = self._connect(qmp_socket)

    def _memfd(self, name: str, size: int) -> int:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        self._stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        return fd

    def _connect(self, socket: Path) -> QEMUMonitorProtocol:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ShadowtraceError(
                    f"QEMU ended at once with status {self.process.returncode}: {self.stderr_tail()}",
                    f"try it by itself: {shlex.join([self.program, *self._arguments])}",
                )
            if socket.exists() and self.gdb_socket.exists():
                monitor = QEMUMonitorProtocol(str(socket))
                with contextlib.suppress(*_QMP_GONE):
                    monitor.connect()
                    monitor.settimeout(_QMP_SECONDS)
                    self._stack.callback(_close, monitor)
                    return monitor
            time.sleep(0.01)
        raise ShadowtraceError("QEMU did not open its control socket in 20 seconds", "is the machine out of memory?")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def let_go(self) -> None:
        """Close our own hold of the stream's other end: it ends when whoever captures closes it."""
        if self._stream_end is not None:
            os.close(self._stream_end)
            self._stream_end = None

    # -- while it runs ---------------------------------------------------------------------------------------------

    def control(self) -> plugin.ControlPage:
        """What the plugin has done so far."""
        return plugin.read_control(self._control)

    def frame(self, gfn: int) -> bytes | None:
        """A frame of guest RAM; ``None`` past its end, and where the processor reads something else than the RAM file holds."""
        start = gfn * mmap.PAGESIZE
        return self.ram[start : start + mmap.PAGESIZE] if start < self.ram_bytes and start not in _LEGACY_HOLE else None

    def record_every_access(self) -> None:
        """Have the plugin record each access from now on, not first touches alone."""
        plugin.record_every_access(self._control)

    def stop_at(self, addresses: range) -> None:
        """Have the plugin have gdb stop where a block of code begins at one of these virtual addresses, once; none of an empty range."""
        plugin.stop_at(self._control, addresses)

    def watch_tasks(self, layout: Layout, begun: bool) -> None:
        """Have the plugin instrument the kernel's functions in ``layout``, and note what tasks do there once they have ``begun``."""
        plugin.watch_tasks(self._control, layout, begun)

    def alive(self) -> bool:
        """Whether QEMU runs."""
        return self.process.poll() is None

    def command(self, name: str, **arguments: Any) -> Any:
        """A QMP command's answer; ``None`` where QEMU is gone."""
        try:
            return self.qmp.cmd(name, **arguments)
        except _QMP_GONE:
            return None

    def stop(self) -> None:
        """Stop the guest's vCPUs; the plugin then flushes what it has."""
        self.command("stop")

    def monitor(self, line: str) -> str:
        """The answer of QEMU's human monitor, empty where QEMU is gone."""
        answer = self.command("human-monitor-command", **{"command-line": line})
        return answer if isinstance(answer, str) else ""

    def how_it_stopped(self) -> str | None:
        """``poweroff``, ``reset`` or ``crash`` after the guest brought itself down, from QMP's events; else ``None``."""
        try:
            events = self.qmp.get_events(wait=False)
        except _QMP_GONE:
            return None
        for event in events:
            if event.get("event") == "GUEST_PANICKED":
                return "crash"
            if event.get("event") in ("SHUTDOWN", "RESET"):
                reason = event.get("data", {}).get("reason")
                return {"guest-shutdown": "poweroff", "guest-reset": "reset", "guest-panic": "crash"}.get(str(reason))
        return None

    def quit(self) -> int | None:
        """Have QEMU end, and wait for it; its exit status."""
        self.command("quit")
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def stderr_tail(self) -> str:
        """The last lines QEMU wrote to its standard error."""
        self.stderr.seek(0)
        return self.stderr.read()[-1000:].decode(errors="replace").strip() or "it said nothing"


def _close(monitor: QEMUMonitorProtocol) -> None:
    with contextlib.suppress(*_QMP_GONE):
        monitor.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
