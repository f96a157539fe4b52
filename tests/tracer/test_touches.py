"""First touches: what makes one, to the last access; and what QEMU arguments would break the recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from db.errors import UsageError
from db.trace import TraceReader
from tests.tracer.metal import recorded
from tests.tracer.touches import boot_to_the_first_exit, recorded_first
from tracer.driver import FIRST_PROCESS
from tracer.qemu import Capture, check_arguments
from x86.event import ACCESS_FAULT, ACCESS_FETCH, ACCESS_WRITE, WRITE_SIZE, Event, Kind

TABLE_STORE = (0x23004, ACCESS_WRITE)
CROSSING = [(0x100FFE, 0), (0x101000, 0), (0x102FFE, ACCESS_WRITE), (0x103000, ACCESS_WRITE)]
BEFORE_STORE = [*CROSSING, (0x101200, 0), (0x400000, 0), TABLE_STORE]
AFTER_LOAD = [(0x100400, 0), (0x400500, 0)]


@pytest.mark.boot
@pytest.mark.parametrize("callbacks", [False, True])
@pytest.mark.parametrize("invalidate_on_pt_write", [True, False])
def test_first_touches_of_a_guest_that_does_everything_about_them(invalidate_on_pt_write: bool, callbacks: bool, tmp_path: Path) -> None:
    """A touch that went through a table is one again once that table was stored to, unless touches are kept at stores."""
    trace, outcome = recorded("touch", tmp_path, capture=Capture(invalidate_on_pt_write=invalidate_on_pt_write, callbacks=callbacks))
    assert (outcome.ended, outcome.lost) == ("exit", 0)
    with TraceReader(trace) as opened:
        events = list(opened.events())
    paging = max(number for number, event in enumerate(events) if event.kind == Kind.REGS)
    found = [(e.addr, e.flags) for e in events[paging:] if e.kind == Kind.ACCESS and not e.flags & ACCESS_FETCH]
    assert found == [*BEFORE_STORE, *([(0x400300, 0)] if invalidate_on_pt_write else []), *AFTER_LOAD]


@pytest.mark.boot
@pytest.mark.parametrize("callbacks", [False, True])
@pytest.mark.parametrize("touch_entries", [0, 1024])
def test_an_access_into_a_page_that_is_missing_is_told_when_it_is_made_again(touch_entries: int, callbacks: bool, tmp_path: Path) -> None:
    """The whole of it, the part too that lies in a page which was there at the first attempt."""
    trace, outcome = recorded("missing", tmp_path, capture=Capture(touch_entries=touch_entries, callbacks=callbacks))
    assert (outcome.ended, outcome.lost) == ("exit", 0)
    with TraceReader(trace) as opened:
        events = list(opened.events())
    stores = [(e.addr, e.flags & WRITE_SIZE, e.value) for e in events if e.kind == Kind.WRITE and e.addr >> 12 == 0x24]
    assert stores == [(0x24FFE, 2, 0x0063), (0x24000, 4, 0x310063)]
    found = [(e.addr, e.flags) for e in events if e.kind == Kind.ACCESS and e.addr >> 20 == 4]
    if touch_entries:
        assert found == [
            *[(0x401000, ACCESS_FAULT), (0x400FFE, 0), (0x401000, 0)],
            *[(0x403000, ACCESS_FAULT | ACCESS_WRITE), (0x402FFE, ACCESS_WRITE), (0x403000, ACCESS_WRITE)],
            (0x402000, ACCESS_WRITE),
        ]


def booted(trace: Path, every: bool) -> tuple[list[Event], int]:
    """The events of one and the same boot, and the number of the first process's first one."""
    boot_to_the_first_exit(trace, every_access=every)
    with TraceReader(trace) as opened:
        (start,) = (mark["seq"] for mark in opened.rows("mark") if mark["name"] == FIRST_PROCESS)
        return list(opened.events()), start


def whole(events: list[Event]) -> list[tuple[object, ...]]:
    """Events without their numbers."""
    return [(event.kind, event.vcpu, event.flags, event.addr, event.value, event.extra) for event in events]


@pytest.mark.boot
def test_a_boot_s_first_touches_are_what_is_worked_out_from_its_every_access(tmp_path: Path) -> None:
    """So docs/accuracy.md, which works out the same for tables of several sizes, is of what the plugin does."""
    every, start = booted(tmp_path / "every.db", every=True)
    first, _ = booted(tmp_path / "first.db", every=False)
    assert whole(recorded_first(every, start)) == whole(first)
    kinds = {event.kind for event in first[start:]}
    assert kinds >= {Kind.CR3, Kind.WRITE, Kind.PAGE, Kind.ACCESS, Kind.INVLPG}
    assert any(event.kind == Kind.ACCESS and event.flags & ACCESS_FAULT for event in first[start:])
    assert len(every) - len(first) > 100_000


@pytest.mark.parametrize("one_thread", [("-accel", "tcg,thread=single"), ("-icount", "shift=3")])
def test_several_vcpus_on_one_thread_are_refused(one_thread: tuple[str, str]) -> None:
    check_arguments(one_thread)
    with pytest.raises(UsageError, match="makes QEMU's plugins fail"):
        check_arguments(["-smp", "2", *one_thread])
