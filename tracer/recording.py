"""One running recording: gdb's stops are answered, the guest is watched, and whatever its end, the trace is sealed."""

from __future__ import annotations

import contextlib
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from db.check.rebuild import Rebuilt, Verdict, rebuild
from db.errors import ShadowtraceError
from db.trace import TraceReader
from db.writer import TraceWriter
from tracer import gdb, gdbengine, symbols, tasks
from tracer.check import check_machine
from tracer.driver import FIRST_PROCESS, Driver
from tracer.ingest import DROPPED, Ingest, space_row
from tracer.request import Outcome, Request, Status
from tracer.tasks import Named
from x86.event import pack_words, signed

_POLL_SECONDS = 0.1
_DRAIN_SECONDS = 120.0
_STOP_SECONDS = 10.0

#: With the gdb engine the guest runs in slices of so long.
_SLICE_SECONDS = 1.0

#: Checks are spread over so many seconds where nobody says how long the guest takes.
_USUAL_SECONDS = 10


class _Interrupt:
    """Ctrl-C and SIGTERM noted instead of raised while a recording runs; a second Ctrl-C is raised."""

    def __init__(self) -> None:
        self.came = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.came = True

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """While inside, signals set ``came``."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Recording:
    """One running recording: gdb's stops are answered here, events flow past on the ingest thread."""

    def __init__(self, request: Request, writer: TraceWriter, machine: Any, known: symbols.Symbols | None) -> None:
        self.request = request
        self.writer = writer
        self.machine = machine
        self.symbols = known
        self.ingest = Ingest(writer, machine.stream, machine.process.stdout, request.capture.drop_when_behind)
        self.interrupt = _Interrupt()
        self.gdb_lost = ""
        self.capture_lost = False
        """Whether gdb captured, and is gone: what the guest did since then is not in the trace."""
        self.driver: Driver | None = None
        self.engine: gdbengine.EngineSession | None = None
        self.rebuilt = Rebuilt()
        self.checks_left = request.checks
        self.start = time.monotonic()
        seconds = request.guest.seconds if request.guest is not None else _USUAL_SECONDS
        self.check_gap = seconds / (request.checks + 1)
        self.next_check = self._after_a_while()

    def run(self, progress: Callable[[Status], None] | None) -> Outcome:
        """Until it ends, whichever way; how it ended."""
        self.ingest.start()
        ended, detail = "crash", "shadowtrace itself failed"
        with self.interrupt.noted():
            try:
                ended, detail = self._drive(progress)
                verdict = self._settle()
            except BaseException:
                self._finish()
                self._seal(ended, detail, None)
                raise
            self._finish()
        return self._seal(ended, detail, verdict)

    def _finish(self) -> None:
        if self.machine.alive():
            self.machine.quit()
        self.ingest.finish()

    def _drive(self, progress: Callable[[Status], None] | None) -> tuple[str, str]:
        try:
            session = self._session()
        except (gdb.GdbGoneError, ShadowtraceError) as error:
            if self._qemu_is_gone():
                return self._qemu_ended()
            if not isinstance(error, gdb.GdbGoneError):
                raise
            if not error.killed:
                raise ShadowtraceError(f"gdb did not start: {error}", "apt-get install gdb; shadowtrace doctor looks at it") from error
            self.gdb_lost = "; gdb was killed before the guest started: no marks and names"
            return self._drive_without_gdb(progress)
        with session:
            ours = self.machine if self.request.engine == "plugin" else None
            driver = self.driver = Driver(session, self.symbols, self.request.until, self.request.marks, self._mark, self._name, ours)
            try:
                driver.arm()
                session.resume()
                while True:
                    stop = session.wait(_POLL_SECONDS if self.request.engine == "plugin" else _SLICE_SECONDS)
                    if (end := self._end_by_us(progress)) is not None:
                        return end
                    due = self._check_is_due()
                    if stop is None and self.machine.alive():
                        if not due:
                            continue
                        stop = self._stopped(session)
                    if (end := self._end_by_guest(stop)) is not None:
                        return end
                    if stop is not None and driver.answer(stop):
                        return "until", f"{self.request.until} was reached"
                    if due:
                        self._check_now(session)
                    if not session.running:
                        session.resume()
            except gdb.GdbGoneError as error:
                if not self.machine.alive():
                    return self._qemu_ended()
                if self.request.engine != "plugin":
                    self.capture_lost = True
                    return "crash", f"gdb was lost, and the capture with it ({error})"
                names = "" if driver.executed else " and names"
                self.gdb_lost = f"; gdb was lost after {self.machine.control().events} events ({error}): no marks{names} from there on"
            except ShadowtraceError:
                # gdb refuses what it is told once nobody answers it.
                if self._qemu_is_gone():
                    return self._qemu_ended()
                raise
        self.machine.stop_at(range(0))
        gdb.release(self.machine.gdb_socket)
        return self._drive_without_gdb(progress)

    def _session(self) -> gdb.Session:
        if self.request.engine == "plugin":
            return gdb.Session(self.machine.gdb_socket)
        exact = self.request.engine == "gdb"
        stream, control, ram = self.machine.paths
        self.engine = gdbengine.EngineSession(self.machine.gdb_socket, stream, control, ram, exact, self.request.capture)
        self.machine.let_go()
        return self.engine

    def _drive_without_gdb(self, progress: Callable[[Status], None] | None) -> tuple[str, str]:
        """Watch over the guest by QMP alone, and let it go on should something stop it."""
        while True:
            time.sleep(_POLL_SECONDS)
            if (end := self._end_by_us(progress)) is not None:
                return end
            if not self.machine.alive():
                return self._qemu_ended()
            state = (self.machine.command("query-status") or {}).get("status")
            if state == "shutdown" and (end := self._end_by_guest(None)) is not None:
                return end
            if state in ("debug", "paused", "prelaunch"):
                self.machine.command("cont")

    def _end_by_us(self, progress: Callable[[Status], None] | None) -> tuple[str, str] | None:
        if progress is not None:
            control = self.machine.control()
            seconds = time.monotonic() - self.start
            progress(Status(seconds, control.events, control.tables, control.by_kind, self.ingest.last_line))
        if self.ingest.failure is not None:
            return "storage", str(self.ingest.failure)
        if self.interrupt.came:
            self.machine.stop()
            return "interrupted", "interrupted by the user"
        if self.request.events is not None and self.machine.control().events >= self.request.events:
            self.machine.stop()
            return "events", f"{self.request.events:,} events were recorded"
        if self.request.seconds is not None and time.monotonic() - self.start >= self.request.seconds:
            self.machine.stop()
            return "for", f"{self.request.seconds:g} seconds were over"
        return None

    def _end_by_guest(self, stop: gdb.Stop | None) -> tuple[str, str] | None:
        """Whether the guest or QEMU ended it."""
        if not self.machine.alive() or (stop is not None and stop.exited):
            return self._qemu_ended()
        if stop is not None and stop.reason != "signal-received":
            return None
        if (self.machine.command("query-status") or {}).get("status") not in ("shutdown", "guest-panicked", "internal-error"):
            return None
        texts = {
            "poweroff": "the guest powered off",
            "reset": "the guest reset itself: a reboot or a triple fault",
            "crash": "the guest panicked",
        }
        how = self.machine.how_it_stopped() or "poweroff"
        return how, texts[how]

    def _qemu_is_gone(self) -> bool:
        """Whether QEMU has ended, or ends within a second: its sockets close a moment before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.machine.process.wait(timeout=1)
        return not self.machine.alive()

    def _qemu_ended(self) -> tuple[str, str]:
        with contextlib.suppress(Exception):
            self.machine.process.wait(timeout=5)
        status = self.machine.process.returncode
        ours = self.request.engine == "plugin"
        if self.machine.control().closed if ours else status is not None and status >= 0:
            return "exit", f"the guest ended QEMU, with status {status}"
        return "crash", f"QEMU died with status {status}: {self.machine.stderr_tail()}"

    def _check(self) -> Verdict | None:
        """With the guest stopped: wait for its events to be in the file, then hold them against its memory."""
        if self.capture_lost:
            return None
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._more_to_come() and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.ingest.failure is not None or self.ingest.consumed == 0:
            return None
        with TraceReader(self.request.output, live=True) as trace:
            rebuild(trace, self.rebuilt)
        verdict = check_machine(self.rebuilt, self.machine)
        self.ingest.add(
            "memory_check",
            seq=self.rebuilt.seq,
            tables=verdict.tables,
            entries=verdict.entries,
            missing=verdict.missing,
            different=verdict.different,
            leaves=verdict.leaves,
            leaves_different=verdict.leaves_different,
            detail="\n".join(verdict.details),
        )
        return verdict

    def _settle(self) -> Verdict | None:
        """The check at the end; the guest's own tables are kept, so that the trace can be verified later."""
        verdict = self._check()
        for table, page in verdict.pages if verdict is not None else ():
            words = pack_words(list(enumerate(struct.unpack("<512Q", page))))
            self.ingest.add("end_table", **table._asdict(), words=words)
        return verdict

    def _stopped(self, session: gdb.Session) -> gdb.Stop | None:
        """Stop the guest wherever it is: it may just have come to a breakpoint, which has to be answered."""
        if not session.running:
            return None
        self.machine.stop()
        return session.wait(_STOP_SECONDS)

    def _check_is_due(self) -> bool:
        """Whether it is time for a check. A guest that has no tables yet is not stopped for it: its next time is after a while."""
        if not self.checks_left or time.monotonic() < self.next_check:
            return False
        if not self.machine.control().tables:
            self.next_check = self._after_a_while()
            return False
        return True

    def _check_now(self, session: gdb.Session) -> None:
        """Check a guest that stands still; the next time is after a while."""
        if self.machine.alive() and not session.running:
            self._check()
        self.checks_left -= 1
        self.next_check = self._after_a_while()

    def _after_a_while(self) -> float:
        return time.monotonic() + random.uniform(0, 2 * self.check_gap)  # noqa: S311 - any moment will do

    def _more_to_come(self) -> bool:
        control = self.machine.control()
        return self.ingest.is_alive() and not self.ingest.stream_ended and self.ingest.consumed < control.events - control.dropped

    def _seal(self, ended: str, detail: str, verdict: Verdict | None) -> Outcome:
        if self.ingest.failure is not None:
            # The file takes no more: what is in it stays, sealed if there is room for that.
            with contextlib.suppress(ShadowtraceError):
                self.writer.make_room()
                self._lose(max(0, self.machine.control().events - self.writer.events), "the file took no more")
                self.writer.seal("storage", str(self.ingest.failure))
            raise self.ingest.failure
        self.writer.check_there()
        control = self.machine.control()
        # With the last record out, what is missing at the end was left out as well.
        cause = DROPPED if control.closed and control.dropped else "QEMU ended before it had written them"
        self.ingest.lose_the_rest(control.by_vcpu, cause)
        if self.engine is not None and self.engine.missed:
            self._lose(self.engine.missed, "control registers found changed by instructions that were not found in time")
        if self.engine is not None and self.engine.refused:
            self._lose(self.engine.refused, "watchpoints or breakpoints that QEMU's stub refused (each stands for all it would have shown)")
        if control.tables_refused:
            self._lose(control.tables_refused, "tables beyond the limit of tables tracked at once (each stands for all its stores)")
        if control.notes_dropped:
            self._lose(0, f"{control.notes_dropped:,} names and ends of address spaces, which there was no room for")
        self._name_origins()
        self._say_why_unnamed()
        self.writer.describe(plugin_api=control.api)
        if self.request.engine == "plugin":
            self.writer.describe(told_by="tlb" if control.by_tlb else "callbacks")
        self.writer.seal(ended, detail + self.gdb_lost)
        lost = sum(row["count"] for row in _losses(self.request.output))
        return Outcome(ended, detail + self.gdb_lost, self.writer.events, lost, verdict)

    def _name_origins(self) -> None:
        """Keep the functions that stored to tables, so that a trace can be read without its kernel."""
        slide = self.driver.slide if self.driver is not None else None
        if self.symbols is None or slide is None:
            return
        with TraceReader(self.request.output, live=True) as trace:
            pcs = trace.storing_instructions()
        for address, size, name in symbols.functions_at(self.symbols, slide, pcs):
            self.writer.add("symbol", address=signed(address), size=size, name=name)
        self.writer.describe(kernel_slide=slide)

    def _say_why_unnamed(self) -> None:
        """For a kernel that can name programs, and did not get to it."""
        driver = self.driver
        if self.symbols is None or tasks.missing(self.symbols) is not None or (driver is not None and driver.executed):
            return
        if self.gdb_lost:
            self.writer.describe(unnamed=f"{self.gdb_lost.removeprefix('; ')}; record it again")
            return
        what = "the kernel was not entered" if driver is None or driver.slide is None else "no program was executed"
        self.writer.describe(unnamed=f"{what} before the recording ended; record for longer")

    def _lose(self, count: int, cause: str) -> None:
        number = len(_losses(self.request.output)) + 1
        self.writer.add("loss", id=number, vcpu=0, seq=self.writer.events, count=count, cause=cause)

    def _mark(self, name: str) -> None:
        named = self.symbols is not None and tasks.missing(self.symbols) is None
        if self.request.every_access and name == (FIRST_PROCESS if named else "reset"):
            self.machine.record_every_access()
        self.ingest.add("mark", seq=self.machine.control().events, name=name, vcpu=0)

    def _name(self, named: Named) -> None:
        self.ingest.add("address_space", **space_row(self.machine.control().events, named))


def _losses(path: Path) -> list[dict[str, Any]]:
    with TraceReader(path, live=True) as trace:
        return trace.rows("loss")
