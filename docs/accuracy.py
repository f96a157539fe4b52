"""How wrong first touches can be: writes docs/accuracy.md.

A trace of every access is replayed as it is, and once more for each size of a first-touch table, with only the accesses that
such tables would have let through. All runs see the same execution of the guest. Run by ``make accuracy``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from analyzer.facts.collect import Facts, facts
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from analyzer.model.parameters import parameters
from analyzer.replay import feed, run
from db.check.rebuild import Cpu, Rebuilt
from db.trace import TraceReader
from shadowtrace import __version__
from tracer.driver import FIRST_PROCESS
from x86.event import ACCESS_FAULT, ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, MASK64, WRITE_SEEN_SHIFT, Event, Kind, Seen
from x86.paging import PAGE_BYTES, PRESENT, Table, child_gfn, index_shift, is_big_page, roots
from x86.registers import Mode

SIZES = (64, 256, 1024, 4096)
EVENTS = 6_000_000
LINGERS = (1, 8, 16, 32, 64, 128, 256)
LINGER_GUESTS = ("cloud-amd64", "686")

_LINGER_TEXT = """\
When the last link to a table goes, its page is watched for so many more stores (`--retire-after-stores`) and then forgotten, because it will be data
soon. A model that keeps a shadow page of it longer than that misses what is stored there afterwards; when the page is linked again, its
content arrives, and where it differs from what the model held, the model had a stale page until then.

What is chosen: 64 stores. Far fewer are enough for the design, which zaps a table at its third store in a row; the rest is for models
that wait longer (`--flood` up to 64), and costs events.
"""

#: What is compared: name, and where it is in the facts.
COMPARED = {
    "faults": ("access", "faults"),
    "lookups": ("get_page", "lookups"),
    "hits": ("get_page", "hits"),
    "pages made": ("get_page", "misses"),
    "stores emulated": ("writes", "protected"),
    "flood zaps": ("zaps", "flood"),
    "leaf entries made": ("fills", "leaf"),
    "pages alive": ("live", "total"),
    "contents late": ("contents", "changed"),
}

#: Kind of access, place in its table.
_Slot = tuple[int, int]


class _Touches:
    """First-touch tables of one vCPU, as the plugin has them (qemu-scripts/plugin/access.c)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tags: dict[_Slot, int] = {}
        self._through: dict[_Slot, set[int]] = {}
        self._slots: dict[int, set[_Slot]] = {}

    def has(self, access: Event) -> bool:
        """Whether an access is no first touch."""
        return self._tags.get(self._slot(access)) == _tag(access)

    def enter(self, access: Event, tables: set[int]) -> None:
        """The access is none from now on, until one of ``tables``, each by its class, is stored to."""
        slot = self._slot(access)
        self._tags[slot], self._through[slot] = _tag(access), tables
        for table in tables:
            self._slots.setdefault(table, set()).add(slot)

    def clear(self) -> None:
        """Forget all."""
        self._tags.clear()
        self._slots.clear()

    def store(self, table: int) -> None:
        """Forget what went through tables of a class."""
        for slot in self._slots.pop(table, ()):
            if table in self._through[slot]:
                self._tags.pop(slot, None)

    def invlpg(self, page: int) -> None:
        """Forget one page."""
        for kind in (0, ACCESS_WRITE, ACCESS_FETCH):
            slot = kind, page % self._size
            if slot in self._tags and self._tags[slot] >> 1 == page:
                del self._tags[slot]

    def _slot(self, access: Event) -> _Slot:
        return access.flags & (ACCESS_WRITE | ACCESS_FETCH), (access.addr >> 12) % self._size


def _tag(access: Event) -> int:
    return access.addr >> 12 << 1 | bool(access.flags & ACCESS_USER)


def _class(gfn: int) -> int:
    """Which of 64 classes a table is in: the plugin keeps sets of these."""
    return (gfn * 0x9E3779B97F4A7C15 & MASK64) >> 58


def _tables_of(rebuilt: Rebuilt, va: int) -> set[int]:
    """The classes of the tables that translate an address now."""
    cpu, found = rebuilt.cpus.get(0, Cpu()), set()
    for start, root in roots(rebuilt.memory, cpu.cr3, cpu.mode, cpu.pdptes):
        if cpu.mode is Mode.PAE and start >> 30 != va >> 30 & 3:
            continue
        table = root
        while table.gfn in rebuilt.pages:
            found.add(_class(table.gfn))
            at = (va >> index_shift(table.level, table.entry_bytes) & PAGE_BYTES // table.entry_bytes - 1) * table.entry_bytes
            entry = int.from_bytes(rebuilt.pages[table.gfn][at : at + table.entry_bytes], "little")
            if table.level == 1 or not entry & PRESENT or is_big_page(entry, table.level, cpu.mode, cpu.cr4):
                break
            table = Table(child_gfn(entry, table.entry_bytes), table.level - 1, table.entry_bytes)
    return found


def _stores_to_table(events: list[Event], number: int) -> bool:
    """Whether an access is a store to a table: it comes next, but for the contents of tables that it links."""
    access, following = events[number], number + 1
    while following < len(events) and events[following].kind == Kind.PAGE:
        following += 1
    if not access.flags & ACCESS_WRITE or following == len(events):
        return False
    store = events[following]
    return store.kind == Kind.WRITE and store.flags >> WRITE_SEEN_SHIFT == Seen.EXACT and (store.addr ^ access.addr) % PAGE_BYTES == 0


def first_touches(events: list[Event], start: int, size: int, at_stores: bool) -> Iterator[Event]:
    """The events that a recording with tables of ``size`` entries would hold from event ``start`` on.

    Before it there are first touches alone. ``at_stores``: a store to a page table drops what went through that table, and is recorded
    as an access each time. An access that faulted is recorded and is no touch: its translation failed.
    """
    touches, rebuilt = _Touches(size), Rebuilt()
    # All tables are emptied there.
    last_load = max((number for number in range(start) if events[number].kind in (Kind.CR3, Kind.REGS)), default=0)
    for number, event in enumerate(events):
        rebuilt.apply(event)
        if event.kind == Kind.ACCESS and not event.flags & ACCESS_FAULT and number >= last_load:
            if not touches.has(event):
                touches.enter(event, _tables_of(rebuilt, event.addr) if at_stores else set())
            elif number >= start and not (at_stores and _stores_to_table(events, number)):
                continue
        elif event.kind in (Kind.CR3, Kind.REGS):
            touches.clear()
        elif event.kind == Kind.WRITE and at_stores:
            touches.store(_class(event.addr >> 12))
        elif event.kind == Kind.INVLPG:
            touches.invlpg(event.addr >> 12)
        yield event


def replayed(events: Iterator[Event]) -> tuple[int, Facts]:
    """How many accesses there were, and the facts of the default model."""
    mmu = Mmu(parameters("kvm-2.6.20"))
    for event in events:
        feed(mmu, event)
    return mmu.counters.events_access, facts(outcome(mmu))


def measured(trace: Path) -> str:
    """One trace's table, in Markdown."""
    with TraceReader(trace) as opened:
        events = list(opened.events())
        starts = [mark["seq"] for mark in opened.rows("mark") if mark["name"] == FIRST_PROCESS]
    start = starts[0] if starts else 0
    accesses, every = replayed(iter(events))
    rows = [f"| every access | {accesses:,} | " + " | ".join(f"{every[s][k]:,}" for s, k in COMPARED.values()) + " |"]
    for at_stores in (False, True):
        for size in SIZES:
            accesses, some = replayed(first_touches(events, start, size, at_stores))
            name = f"{size} entries" + (", dropped at stores" if at_stores else "")
            cells = (f"{some[s][k]:,} ({_difference(some[s][k], every[s][k])})" for s, k in COMPARED.values())
            rows.append(f"| {name} | {accesses:,} | " + " | ".join(cells) + " |")
    head = "| recorded | accesses | " + " | ".join(COMPARED) + " |\n" + "| --- " * (len(COMPARED) + 2) + "|\n"
    return head + "\n".join(rows) + "\n"


def lingering(program: Path, guest: str, folder: Path) -> str:
    """A table over how long retired tables are watched: whole boots of a guest, each recorded anew, all on instruction counts."""
    rows = []
    for linger in LINGERS:
        trace = folder / f"{guest}-{linger}.db"
        subprocess.run([program, "record", guest, "-o", trace, "--retire-after-stores", str(linger), "--deterministic"], check=True)
        with TraceReader(trace) as opened:
            found = run(opened, "kvm-2.6.20", parameters("kvm-2.6.20"), __version__)[0].facts
        trace.unlink()
        kinds, contents = found["events"], found["contents"]
        counts = (kinds["write"], kinds["page"], contents["on_shadowed"], contents["changed"], found["zaps"]["flood"])
        rows.append(f"| {linger} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    head = "| linger | stores recorded | contents | of frames still shadowed | of these changed | flood zaps |\n" + "| --- " * 6 + "|\n"
    return head + "\n".join(rows) + "\n"


def _difference(some: int, every: int) -> str:
    return f"{100 * (some - every) / every:+.2f}%" if every else f"{some:+}"


def main() -> None:
    """Record, measure, write."""
    program = Path(sys.executable).with_name("shadowtrace")
    common = ["--touch", "every"]
    with tempfile.TemporaryDirectory() as folder:
        boot, bare = Path(folder) / "boot.db", Path(folder) / "bare.db"
        subprocess.run([program, "record", "cloud-amd64", "-o", boot, *common, "--events", str(EVENTS), "--deterministic"], check=True)
        subprocess.run([program, "record", "bare", "-o", bare, *common], check=True)
        text = (Path(__file__).parent / "accuracy.head.md").read_text()
        text += (
            f"\n## A segment of a boot\n\nThe cloud kernel from its first user process on, {EVENTS:,} events in all.\n\n{measured(boot)}"
        )
        text += f"\n## The bare-metal guest\n\n{measured(bare)}"
        text += f"\n## How long a retired table is watched\n\n{_LINGER_TEXT}"
        for guest in LINGER_GUESTS:
            text += f"\nA whole boot of {guest}:\n\n{lingering(program, guest, Path(folder))}"
    (Path(__file__).parent / "accuracy.md").write_text(text)


if __name__ == "__main__":
    main()
