"""Recording a QEMU that somebody else started with a gdb stub, from this moment on; it runs on when the recording ends."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from db.check.rebuild import Verdict
from db.errors import ShadowtraceError, UsageError
from db.writer import TraceWriter
from tracer import gdb, plugin
from tracer.gdbengine import EngineSession
from tracer.qemu import MAX_RAM_BYTES, PIPE_BYTES, PIPE_SIZE_COMMAND, Capture
from tracer.recording import Recording
from tracer.request import Outcome, Request, Status

_CHECKED_PAGE = 4096
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Attachment:
    """What to attach to: the stub's unix socket; the file that guest RAM lies in, where there is one."""

    socket: Path
    ram_file: Path | None = None
    wait: float = 0
    """Seconds that QEMU may take to open its socket."""


def check_attachment(attachment: Attachment, waiting: Callable[[str], None] | None = None) -> None:
    """Wait for what there is to attach to; raise ``UsageError`` where there is nothing. ``waiting`` is called once, with what is waited for."""
    socket = attachment.socket
    deadline = time.monotonic() + attachment.wait
    waits = bool(attachment.wait) and not socket.exists() and socket.parent.is_dir() and ":" not in str(socket)
    if waits:
        if waiting is not None:
            waiting(f"waiting for QEMU to open {socket}, {attachment.wait:g} s at the most")
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
    if ":" in str(socket) and not socket.exists():
        raise UsageError(
            f"{socket} looks like a TCP port: only unix sockets are attached to",
            "start QEMU with -chardev socket,path=FILE,server=on,wait=off,id=gdb -gdb chardev:gdb",
        )
    if not socket.is_socket():
        waited = f", after {attachment.wait:g} s of waiting" if waits else ""
        what = f"{socket} is no socket" if socket.exists() else f"there is no socket {socket}{waited}"
        raise UsageError(what, "QEMU's: -chardev socket,path=FILE,server=on,wait=off,id=gdb -gdb chardev:gdb")
    if attachment.ram_file is not None and not attachment.ram_file.is_file():
        raise UsageError(f"there is no RAM file {attachment.ram_file}", "QEMU's: -object memory-backend-file,mem-path=FILE,share=on")


def attach(
    attachment: Attachment,
    request: Request,
    progress: Callable[[Status], None] | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Outcome:
    """Record from now on. The trace is sealed whichever way it ends; raises ``ShadowtraceError`` before it begins."""
    check_attachment(attachment, waiting)
    with TraceWriter(request.output, request.force, request.sync) as writer:
        writer.describe(
            source="record",
            guest="attached",
            title="a QEMU that was running already",
            gdb_version=gdb.gdb_version(gdb.find_gdb()),
            engine=request.engine,
            unnamed="the kernel of a QEMU that runs already is not known; record it from its start, with -kernel IMAGE",
            vcpus=1,
            touch="none",
            touch_entries=0,
            drop_at_stores=0,
            linger=request.capture.retire_after_stores,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            version=request.version,
        )
        try:
            with Attached(attachment, request.engine == "gdb", request.capture) as machine:
                writer.describe(ram_bytes=machine.ram_bytes, qemu_version=machine.monitor("info version").split("(")[0].strip())
                return _Attached(request, writer, machine, None).run(progress)
        except ShadowtraceError:
            if writer.events == 0:
                request.output.unlink(missing_ok=True)
            raise


@dataclass
class _Ended:
    """What stands for a process that is not ours."""

    stdout: Any
    returncode: int | None = None

    def wait(self, timeout: float) -> None:
        """There is nothing to wait for."""


@dataclass
class Attached:
    """A QEMU of somebody else's, as the recorder sees a machine; a context manager that leaves it running."""

    attachment: Attachment
    exact: bool
    capture: Capture
    ram_bytes: int = 0
    _left: bool = False
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        stack = self._stack
        try:
            self._start(stack)
        except BaseException:
            stack.close()
            raise
        return self

    def _start(self, stack: contextlib.ExitStack) -> None:
        control_fd = os.memfd_create("shadowtrace-control", os.MFD_CLOEXEC)
        stack.callback(os.close, control_fd)
        os.ftruncate(control_fd, plugin.CONTROL_BYTES)
        self._control = stack.enter_context(mmap.mmap(control_fd, plugin.CONTROL_BYTES))
        stream, stream_end = os.pipe()
        fcntl.fcntl(stream, PIPE_SIZE_COMMAND, PIPE_BYTES)
        self.stream = stack.enter_context(os.fdopen(stream, "rb", buffering=0))
        console, console_end = os.pipe()
        os.close(console_end)
        self.process = _Ended(stack.enter_context(os.fdopen(console, "rb", buffering=0)))
        ram = str(self.attachment.ram_file.absolute()) if self.attachment.ram_file is not None else ""
        paths = [f"/proc/{os.getpid()}/fd/{fd}" for fd in (stream_end, control_fd)]
        socket = self.attachment.socket.absolute()
        try:
            self.session = self._connect(socket, paths, ram)
        except BaseException as error:
            gdb.release(socket)
            if isinstance(error, gdb.GdbGoneError):
                raise ShadowtraceError(f"gdb did not start: {error}", "apt-get install gdb; shadowtrace doctor looks at it") from error
            raise
        finally:
            os.close(stream_end)
        stack.callback(self.quit)
        self.ram_bytes = self.session.ram_bytes
        if self.session.vcpus != 1:
            raise UsageError(
                f"that guest has {self.session.vcpus} vCPUs: gdb captures one", "use the plugin for several: record without --attach"
            )
        if self.ram_bytes > MAX_RAM_BYTES:
            raise UsageError("guests of up to 2 GiB can be traced", "give it less RAM: -m 2G")

    def _connect(self, socket: Path, paths: list[str], ram: str) -> _KeptSession:
        """Between the moment at which a socket is there and that at which QEMU listens, it refuses."""
        deadline = time.monotonic() + self.attachment.wait
        while True:
            try:
                return _KeptSession(socket, paths[0], paths[1], ram, self.exact, self.capture)
            except ShadowtraceError as error:
                if "Connection refused" not in str(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(_LOOK_SECONDS)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def alive(self) -> bool:
        """Whether it can still be talked to."""
        return not self.session.lost

    def control(self) -> plugin.ControlPage:
        """What the engine has done so far."""
        return plugin.read_control(self._control)

    def record_every_access(self) -> None:
        """Not with this engine."""

    def command(self, name: str, **arguments: Any) -> Any:
        """Nothing: there is no QMP, and through the stub `info tlb` takes minutes."""

    def stop(self) -> None:
        """It stands still whenever the recorder is asked anything."""

    def monitor(self, line: str) -> str:
        """The answer of QEMU's human monitor, empty where QEMU is gone."""
        return self.session.monitor(line) if self.alive() else ""

    def frame(self, gfn: int) -> bytes | None:
        """A frame of guest RAM."""
        return self.session.physical(gfn * _CHECKED_PAGE, _CHECKED_PAGE) if gfn * _CHECKED_PAGE < self.ram_bytes else None

    def how_it_stopped(self) -> str | None:
        """Not known without QMP."""
        return None

    def stderr_tail(self) -> str:
        """Not ours to read."""
        return ""

    def quit(self) -> int | None:
        """Let go, once: no breakpoint stays, the guest runs on."""
        if not self._left:
            self._left = self.session.lost = True
            try:
                self.session.finish()
                self.session.detach()
                self.session.close()
            except (gdb.GdbGoneError, ShadowtraceError):
                self.session.close()
                gdb.release(self.attachment.socket.absolute())
        return None


class _KeptSession(EngineSession):
    """A session that outlives the driving: the check at the end goes through it too."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class _Attached(Recording):
    """A recording of a machine that is not ours."""

    machine: Attached

    def _session(self) -> gdb.Session:
        self.engine = self.machine.session
        return self.engine

    def _mark(self, name: str) -> None:
        super()._mark("attached" if name == "reset" else name)

    def _check(self) -> Verdict | None:
        """With neither QEMU nor gdb there, nothing can be read."""
        try:
            return super()._check() if self.machine.alive() else None
        except gdb.GdbGoneError:
            self.capture_lost = True
            return None

    def _finish(self) -> None:
        # gdb holds the stream's other end: it comes to its end with gdb, whether QEMU is there or not.
        self.machine.quit()
        super()._finish()

    def _qemu_ended(self) -> tuple[str, str]:
        return "exit", "the QEMU that was attached to ended"
