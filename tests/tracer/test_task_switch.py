"""Hardware task switches: each loads cr3, with the value it has as well, and nothing else that looks like one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from db.trace import TraceReader
from tests.tracer.metal import recorded
from tracer.qemu import Capture
from x86.event import Kind

pytestmark = pytest.mark.boot

A, B = "cr3 0x20000", "cr3 0x21000"

#: Loads, and the guest's marks between them; the line says what the guest does.
EXPECTED = [
    *(A, 1),  # mov to cr3
    *(A, 2, A, 3),  # ltr; jumps, CR0.TS clear
    *(A, 4, A, 5),  # jumps, CR0.TS set
    *(A, 6, A, 7),  # call, iret
    *(A, 8, A, 9),  # call through memory, iret
    *(A, 10, A, 11),  # jump through a task gate, jump
    *(A, 12, A, 13),  # call through a task gate, iret
    *(A, 14, A, 15),  # int through a task gate, iret
    16,  # far transfers that switch no task
    *(A, A, 17),  # ltr, and in its block an exception through a task gate; iret
    *(A, 18, A, 19),  # jumps
    *(A, A, 20),  # an exception through a task gate, iret
    *(A, B, A, 21),  # another, whose handler loads cr3
    *(B, 22, A, 23),  # jumps, to a task with another cr3
    *(24, 25),  # jumps without paging
]


@pytest.mark.parametrize(("stock", "callbacks"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("touch_entries", [1024, 0])
def test_every_task_switch_is_a_load_and_nothing_else_is(
    touch_entries: int, stock: bool, callbacks: bool, qemu_of_backports: str, tmp_path: Path
) -> None:
    program, capture = None if stock else qemu_of_backports, Capture(touch_entries=touch_entries, callbacks=callbacks)
    trace, outcome = recorded("switch", tmp_path, program=program, capture=capture)
    assert (outcome.ended, outcome.lost) == ("exit" if stock else "poweroff", 0)
    with TraceReader(trace) as opened:
        events = opened.events((Kind.CR3, Kind.INVLPG))
        found = [f"cr3 {e.addr:#x}" if e.kind == Kind.CR3 else e.addr - 0x300000 >> 12 for e in events]
    assert found == EXPECTED
