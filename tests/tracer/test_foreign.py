"""What reaches a table without a store of the guest: found when it stands still, recorded as foreign."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from db.check.rebuild import rebuild
from db.check.verify import verify
from db.trace import TraceReader
from db.writer import TraceWriter
from tests.tracer.metal import arguments, recorded
from tracer import gdb, plugin, qemu
from tracer.check import check_machine
from tracer.ingest import Ingest
from tracer.qemu import Capture, Machine
from x86.event import WRITE_SEEN_SHIFT, WRITE_SIZE, Event, Kind, Seen, unpack_words

pytestmark = pytest.mark.boot

PD, PT, PT_GIVEN = 0x20000, 0x22000, 0x23000
#: The machine's UUID as two words of a directory: an entry that links PT_GIVEN, one that is not present.
GIVEN = ("-uuid", "63300200-0000-0000-0010-320000000000")


def stores(trace: TraceReader) -> list[tuple[int, Event]]:
    return [(seq, event) for seq, event in enumerate(trace.events(), 1) if event.kind == Kind.WRITE]


def short(event: Event) -> tuple[int, int, int, int]:
    return event.addr, event.flags & WRITE_SIZE, event.value, event.flags >> WRITE_SEEN_SHIFT


@pytest.mark.parametrize(
    ("more", "request_"),
    [((), {}), (("-smp", "1,maxcpus=2"), {}), ((), {"deterministic": True})],
    ids=["", "a place for another vCPU", "all vCPUs on one thread"],
)
@pytest.mark.parametrize("stock", [True, False], ids=["stock QEMU", "QEMU of backports"])
def test_a_device_that_writes_into_a_directory(
    stock: bool, more: tuple[str, ...], request_: dict[str, bool], qemu_of_backports: str, tmp_path: Path
) -> None:
    trace, outcome = recorded("dma", tmp_path, *GIVEN, *more, program=None if stock else qemu_of_backports, **request_)
    verdict = outcome.verdict
    assert verdict is not None
    # Newer QEMUs take the debug port for a power-off.
    assert outcome.ended in ("exit", "poweroff")
    assert (outcome.lost, verdict.missing, verdict.different) == (0, 0, 0)
    assert verdict.tables == 3
    with TraceReader(trace) as opened:
        found = stores(opened)
        assert [short(event) for _, event in found] == [
            (PT + 0xC00, 4, 0x300067, Seen.EXACT),
            (PD + 0x100, 8, 0x23063, Seen.FOREIGN),
            (PD + 0x108, 8, 0x321000, Seen.FOREIGN),
            (PT_GIVEN + 4 * 8, 4, 0x346063, Seen.EXACT),
        ]
        # The table that the device linked: its content comes before the word that links it.
        (linked,) = [(seq, e) for seq, e in enumerate(opened.events(), 1) if e.kind == Kind.PAGE and e.addr == PT_GIVEN]
        assert linked[0] < found[1][0]
        assert isinstance(linked[1].extra, bytes)
        assert dict(unpack_words(linked[1].extra)) == {3: 0x345063 << 32}
        # No instruction made what is foreign.
        assert [row["seq"] for row in opened.rows("store_origin")] == [found[0][0], found[3][0]]
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []


def test_a_debugger_that_writes_into_tables(tmp_path: Path) -> None:
    """By gdb while the guest is stopped, into the directory and into the table that this links; and nothing while it runs on."""
    trace = tmp_path / "gdb.db"
    command = arguments("halt", tmp_path, "-m", "16M")
    with TraceWriter(trace) as writer, Machine(qemu.find_qemu(None), command, Capture(), plugin.build()) as machine:
        writer.describe(source="record", guest="own", title="halt", vcpus=1, ram_bytes=machine.ram_bytes, version="test")
        assert machine.console is not None
        ingest = Ingest(writer, machine.stream, machine.console)
        ingest.start()
        with gdb.Session(machine.gdb_socket) as session:
            for change in ("", f"{PD + 0x100:#x} 63300200", "", f"{PT_GIVEN + 0x20:#x} 63603400"):
                if change:
                    session.command(f"-data-write-memory-bytes {change}")
                session.resume()
                time.sleep(0.3)
                machine.stop()
                assert session.wait(10) is not None
            deadline = time.monotonic() + 30
            while ingest.consumed < machine.control().events and time.monotonic() < deadline:
                time.sleep(0.05)
            with TraceReader(trace, live=True) as live:
                verdict = check_machine(rebuild(live), machine)
        machine.quit()
        ingest.finish()
        writer.seal("exit", "the test is done")
    assert (verdict.missing, verdict.different, verdict.leaves_different) == (0, 0, 0)
    assert verdict.tables == 3
    with TraceReader(trace) as opened:
        assert [short(event) for _, event in stores(opened)] == [
            (PT + 0xC00, 4, 0x300067, Seen.EXACT),
            (PD + 0x100, 8, 0x23063, Seen.FOREIGN),
            (PT_GIVEN + 0x20, 8, 0x346063, Seen.FOREIGN),
        ]
