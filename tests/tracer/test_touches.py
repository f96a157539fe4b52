"""First touches: what makes one, to the last access; and what QEMU arguments would break the recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from db.errors import UsageError
from db.event import ACCESS_FETCH, ACCESS_WRITE, Kind
from db.trace import TraceReader
from tests.tracer.metal import recorded
from tracer.qemu import Capture, check_arguments

TABLE_STORE = (0x23004, ACCESS_WRITE)
CROSSING = [(0x100FFE, 0), (0x101000, 0), (0x102FFE, ACCESS_WRITE), (0x103000, ACCESS_WRITE)]
BEFORE_STORE = [*CROSSING, (0x101200, 0), (0x400000, 0), TABLE_STORE]
AFTER_LOAD = [(0x100400, 0), (0x400500, 0)]


@pytest.mark.boot
@pytest.mark.parametrize("drop_at_stores", [True, False])
def test_first_touches_of_a_guest_that_does_everything_about_them(drop_at_stores: bool, tmp_path: Path) -> None:
    """A touch that went through a table is one again once that table was stored to, unless touches are kept at stores."""
    trace, outcome = recorded("touch", tmp_path, capture=Capture(drop_at_stores=drop_at_stores))
    assert (outcome.ended, outcome.lost) == ("exit", 0)
    with TraceReader(trace) as opened:
        events = list(opened.events())
    paging = max(number for number, event in enumerate(events) if event.kind == Kind.REGS)
    found = [(e.addr, e.flags) for e in events[paging:] if e.kind == Kind.ACCESS and not e.flags & ACCESS_FETCH]
    assert found == [*BEFORE_STORE, *([(0x400300, 0)] if drop_at_stores else []), *AFTER_LOAD]


@pytest.mark.parametrize("one_thread", [("-accel", "tcg,thread=single"), ("-icount", "shift=3")])
def test_several_vcpus_on_one_thread_are_refused(one_thread: tuple[str, str]) -> None:
    check_arguments(one_thread)
    with pytest.raises(UsageError, match="makes QEMU's plugins fail"):
        check_arguments(["-smp", "2", *one_thread])
