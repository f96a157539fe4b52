"""Two captures of the same guest run, or a capture and QEMU's own log of it: the same loads, stores and faults?

What is compared, each list in its own order:

- loads: every value loaded into cr3;
- stores: what stores changed in tables, four bytes at a time, accessed and dirty bits (bits 5 and 6 of each four bytes) aside. A
  capture that sees the instruction and one that sees the page afterwards tell the same by that: a store of 8 bytes is two of 4, a
  store of what was there already is none. Contents that were given anew are taken over without being compared;
- faults: address, write, user, fetch of every access that ended in a guest page fault.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from db.errors import UsageError
from db.trace import TraceReader
from x86.event import ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, WRITE_SEEN_SHIFT, WRITE_SIZE, Event, Kind, Seen, unpack_words
from x86.paging import PAGE_BYTES, PAGE_SHIFT, WALKER_BITS
from x86.registers import CR0_PG

_CONTEXT = 3
_HALF = 4

Item = tuple[int, ...]
"""A load (value), a change (gpa of four bytes, what they hold now), or a fault (va, write, user, fetch)."""

_KINDS = (Kind.REGS, Kind.CR3, Kind.WRITE, Kind.PAGE, Kind.ACCESS)


@dataclass(frozen=True)
class Captured:
    """What a capture says happened, in a form in which any two can be compared; ``None``: it does not say."""

    name: str
    loads: list[Item]
    loads_with_paging: list[Item]
    stores: list[Item] | None
    faults: list[Item] | None
    store_events: int = 0
    unchanging: int = 0
    """Stores that changed nothing but accessed and dirty bits: a capture may not see them."""
    seen: tuple[tuple[str, int], ...] = ()
    """How many stores were seen in which way."""


@dataclass(frozen=True)
class Difference:
    """Where two lists part: the position, from 0, and what each has there and around it, as ``(position, item)``."""

    at: int
    ours: list[tuple[int, Item]]
    theirs: list[tuple[int, Item]]


@dataclass(frozen=True)
class Compared:
    """One list of two captures; ``difference`` is ``None`` where they are equal, ``left_out`` says why nothing was compared."""

    name: str
    ours: int = 0
    theirs: int = 0
    difference: Difference | None = None
    left_out: str = ""


def captured(trace: TraceReader) -> Captured:
    """What a trace says happened. One pass; events that are out of shape raise ``TraceError``."""
    loads: list[Item] = []
    paging: list[Item] = []
    stores: list[Item] = []
    faults: list[Item] = []
    pages: dict[int, bytearray] = {}
    seen: Counter[int] = Counter()
    events = unchanging = 0
    with_paging: dict[int, bool] = {}
    for event in trace.events(_KINDS, faults_only=True):
        if event.kind == Kind.REGS and isinstance(event.extra, tuple) and event.extra[0] is not None:
            with_paging[event.vcpu] = bool(event.extra[0] & CR0_PG)
        elif event.kind == Kind.CR3:
            loads.append((event.addr,))
            if with_paging.get(event.vcpu):
                paging.append((event.addr,))
        elif event.kind == Kind.PAGE and isinstance(event.extra, bytes):
            pages[event.addr >> PAGE_SHIFT] = _page(event.extra)
        elif event.kind == Kind.WRITE:
            changes = _changes(pages, event)
            stores += changes
            events += 1
            unchanging += not changes
            seen[event.flags >> WRITE_SEEN_SHIFT] += 1
        elif event.kind == Kind.ACCESS:
            faults.append((event.addr, *(int(bool(event.flags & bit)) for bit in (ACCESS_WRITE, ACCESS_USER, ACCESS_FETCH))))
    says_faults = trace.recording["engine"] == "gdb" or trace.recording["touch"] != "none"
    ways = tuple((Seen(way).name.lower(), count) for way, count in sorted(seen.items()))
    return Captured(trace.path.name, loads, paging, stores, faults if says_faults else None, events, unchanging, ways)


def _page(words: bytes) -> bytearray:
    page = bytearray(PAGE_BYTES)
    for index, word in unpack_words(words):
        page[8 * index : 8 * index + 8] = word.to_bytes(8, "little")
    return page


def _changes(pages: dict[int, bytearray], event: Event) -> list[Item]:
    """What a store changes, four bytes at a time; it is taken into the pages. A page that no event gave holds nothing."""
    data = event.value.to_bytes(8, "little")[: event.flags & WRITE_SIZE]
    offset = event.addr & PAGE_BYTES - 1
    here = data[: PAGE_BYTES - offset]
    changes = _changes_of_page(pages.get(event.addr >> PAGE_SHIFT), event.addr - offset, offset, here)
    if len(here) < len(data):
        base = event.addr - offset + PAGE_BYTES
        changes += _changes_of_page(pages.get(base >> PAGE_SHIFT), base, 0, data[len(here) :])
    return changes


def _changes_of_page(page: bytearray | None, base: int, offset: int, data: bytes) -> list[Item]:
    if page is None:
        return []
    first, end = offset & -_HALF, offset + len(data) + _HALF - 1 & -_HALF
    before = _halves(page, first, end)
    page[offset : offset + len(data)] = data
    now = _halves(page, first, end)
    return [(base + first + _HALF * i, new) for i, (old, new) in enumerate(zip(before, now, strict=True)) if new != old]


def _halves(page: bytearray, first: int, end: int) -> list[int]:
    """Each four bytes of a part of a page, without what the processor's walk sets."""
    return [int.from_bytes(page[at : at + _HALF], "little") & ~WALKER_BITS for at in range(first, end, _HALF)]


def logged(log: Path) -> Captured:
    """What QEMU's log (``-d mmu,int``) says happened: cr3 loads with paging on, and page faults. ``UsageError`` where it cannot be read."""
    if log.exists() and not log.is_file():
        raise UsageError(f"{log} is no file", "QEMU writes one with -d mmu,int -D FILE")
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"{log} cannot be read: {error.strerror}", "QEMU writes one with -d mmu,int -D FILE") from error
    loads: list[Item] = [(int(value, 16),) for value in re.findall(r"^CR3 update: CR3=([0-9a-f]+)", text, re.MULTILINE)]
    found = re.findall(r"v=0e e=([0-9a-f]+) .*CR2=([0-9a-f]+)", text)
    faults: list[Item] = [
        (int(va, 16), error >> 1 & 1, error >> 2 & 1, error >> 4 & 1) for error, va in ((int(e, 16), v) for e, v in found)
    ]
    if not loads and not faults:
        raise UsageError(f"{log} has no cr3 loads and no page faults", "QEMU writes one with -d mmu,int -D FILE")
    return Captured(log.name, loads, loads, None, faults)


def compare(ours: Captured, theirs: Captured, common: bool = False) -> list[Compared]:
    """Each list of two captures, in a fixed order; ``common``: up to the end of the shorter one only."""
    from_log = ours.stores is None or theirs.stores is None
    pairs = (
        ("cr3 loads", ours.loads_with_paging if from_log else ours.loads, theirs.loads_with_paging if from_log else theirs.loads),
        ("stores to tables", ours.stores, theirs.stores),
        ("page faults", ours.faults, theirs.faults),
    )
    return [_compare(name, mine, other, common, (ours, theirs)) for name, mine, other in pairs]


def _compare(
    name: str, ours: Sequence[Item] | None, theirs: Sequence[Item] | None, common: bool, whose: tuple[Captured, Captured]
) -> Compared:
    if ours is None or theirs is None:
        return Compared(name, len(ours or ()), len(theirs or ()), None, f"{whose[0 if ours is None else 1].name} does not say")
    length = min(len(ours), len(theirs))
    at = next((i for i in range(length) if ours[i] != theirs[i]), length)
    equal = at == length and (common or len(ours) == len(theirs))
    return Compared(name, len(ours), len(theirs), None if equal else Difference(at, _around(ours, at), _around(theirs, at)))


def _around(items: Sequence[Item], at: int) -> list[tuple[int, Item]]:
    start = max(0, at - _CONTEXT)
    return list(enumerate(items[start : at + _CONTEXT + 1], start))
