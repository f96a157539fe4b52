"""Loads and stores told by QEMU's own TLB: the guest runs as it would, and what is recorded is what callbacks tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from db.trace import TraceReader
from tests.tracer.metal import recorded
from tests.tracer.touches import boot_to_the_first_exit
from tracer.qemu import Capture
from x86.event import Event, Kind, unpack_words

pytestmark = pytest.mark.boot


#: The processor's own bits of an entry, accessed and dirty: whether its walk comes before a content is read or after it.
SETS_ITSELF = 0x60

#: Where a first-touch table of 1024 entries has the pages of Linux's interrupt and task descriptors, from 0xfffffe0000000000 on.
DESCRIPTOR_SLOTS = (0, 1, 3)


def told(event: Event) -> tuple[object, ...]:
    """What an event says."""
    said = event.kind, event.flags, event.addr, event.value
    if isinstance(event.extra, bytes):
        return *said, [(index, word & ~SETS_ITSELF) for index, word in unpack_words(event.extra)]
    return *said, event.extra


def booted(folder: Path, touch_entries: int, callbacks: bool) -> tuple[list[Event], list[tuple[int, int]]]:
    """The events of one and the same boot, and which instructions made its stores."""
    trace = folder / f"{callbacks}.db"
    boot_to_the_first_exit(trace, capture=Capture(touch_entries=touch_entries, callbacks=callbacks))
    with TraceReader(trace) as opened:
        assert opened.recording["told_by"] == ("callbacks" if callbacks else "tlb")
        return list(opened.events()), [(row["seq"], row["pc"]) for row in opened.rows("store_origin")]


def test_the_tables_of_a_boot_are_told_alike_to_the_last_event(tmp_path: Path) -> None:
    (by_tlb, tlb_origins), (by_callbacks, callback_origins) = booted(tmp_path, 0, callbacks=False), booted(tmp_path, 0, callbacks=True)
    assert [told(event) for event in by_tlb] == [told(event) for event in by_callbacks]
    assert tlb_origins == callback_origins
    assert len(tlb_origins) > 20_000


def test_first_touches_of_a_boot_are_told_alike(tmp_path: Path) -> None:
    """
    But for what the processor itself reads and pushes on its way into an exception: callbacks tell that where they happen to be asked
    for. So a page's first touch may be at another place in it, and what has the slot of a descriptor table is touched more often.
    """
    by_tlb, tlb_origins = booted(tmp_path, 1024, callbacks=False)
    by_callbacks, callback_origins = booted(tmp_path, 1024, callbacks=True)

    def beside(event: Event) -> bool:
        return event.kind == Kind.ACCESS and event.flags == 0 and event.addr >> 12 & 1023 in DESCRIPTOR_SLOTS

    def others(events: list[Event]) -> list[tuple[object, ...]]:
        left = [event for event in events if not beside(event)]
        return [(event.kind, event.flags, event.addr >> 12) if event.kind == Kind.ACCESS else told(event) for event in left]

    alike = others(by_tlb)
    assert alike == others(by_callbacks)
    assert len(alike) > 900_000
    assert [pc for _, pc in tlb_origins] == [pc for _, pc in callback_origins]
    assert sum(map(beside, by_tlb)) < sum(map(beside, by_callbacks))


@pytest.mark.parametrize("touch_entries", [1024, 0])
def test_pages_that_ask_at_each_access_are_those_the_guest_has_mapped(touch_entries: int, tmp_path: Path) -> None:
    """A page of data that was stored to and never loaded from asks at each access: QEMU does not find it when the guest drops it."""
    trace, outcome = recorded("remap", tmp_path, capture=Capture(touch_entries=touch_entries))
    assert (outcome.ended, outcome.detail, outcome.lost) == ("exit", "the guest ended QEMU, with status 1", 0)
    with TraceReader(trace) as opened:
        assert opened.recording["told_by"] == "tlb"
        assert sum(event.kind == Kind.INVLPG for event in opened.events()) == 768
