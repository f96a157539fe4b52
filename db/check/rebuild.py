"""Tables and registers as a trace's events leave them, and how they compare with real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from db.trace import TraceReader
from x86.event import WRITE_SIZE, Event, Kind, unpack_words
from x86.paging import PAGE_BYTES, PRESENT, WALKER_BITS, Memory, Table, entries, pdptes, tables
from x86.registers import RESET, Mode, paging_mode

#: The kinds of events that a rebuild takes.
TABLE_KINDS = (Kind.REGS, Kind.CR3, Kind.WRITE, Kind.PAGE)

_DETAILS = 8


@dataclass
class Cpu:
    """One vCPU's paging registers."""

    cr0: int = RESET["cr0"]
    cr3: int = RESET["cr3"]
    cr4: int = RESET["cr4"]
    efer: int = RESET["efer"]
    pdptes: tuple[int, ...] | None = None

    @property
    def mode(self) -> Mode:
        """The paging mode in force."""
        return paging_mode(self.cr0, self.cr4, self.efer)


@dataclass
class Rebuilt:
    """Table pages and registers as the events give them."""

    pages: dict[int, bytearray] = field(default_factory=dict)
    cpus: dict[int, Cpu] = field(default_factory=dict)
    seq: int = 0
    """The last event looked at."""

    def memory(self, gfn: int) -> bytes | None:
        """A frame's content, for a walk; ``None`` for a frame that no event names."""
        page = self.pages.get(gfn)
        return None if page is None else bytes(page)

    def apply(self, event: Event) -> None:
        """Take one more event."""
        if event.kind == Kind.WRITE:
            self._store(event.addr, event.value.to_bytes(8, "little")[: event.flags & WRITE_SIZE])
        elif event.kind == Kind.PAGE and isinstance(event.extra, bytes):
            page = bytearray(PAGE_BYTES)
            for index, word in unpack_words(event.extra):
                page[8 * index : 8 * index + 8] = word.to_bytes(8, "little")
            self.pages[event.addr >> 12] = page
        elif event.kind in (Kind.CR3, Kind.REGS):
            self._load(self.cpus.setdefault(event.vcpu, Cpu()), event)

    def _store(self, gpa: int, data: bytes) -> None:
        offset = gpa & PAGE_BYTES - 1
        here = data[: PAGE_BYTES - offset]
        page = self.pages.get(gpa >> 12)
        if page is not None:
            page[offset : offset + len(here)] = here
        if len(here) < len(data):
            self._store(gpa + len(here), data[len(here) :])

    def _load(self, cpu: Cpu, event: Event) -> None:
        given = event.extra if isinstance(event.extra, tuple) else None
        if event.kind == Kind.CR3:
            cpu.cr3 = event.addr
            cpu.pdptes = None if given is None else tuple(entry or 0 for entry in given)
            return
        before = cpu.mode
        for name, value in zip(("cr0", "cr4", "efer"), given or (), strict=False):
            if value is not None:
                setattr(cpu, name, value)
        if cpu.mode is Mode.PAE and before is not Mode.PAE:
            cpu.pdptes = pdptes(self.memory, cpu.cr3)


def rebuild(trace: TraceReader, rebuilt: Rebuilt | None = None) -> Rebuilt:
    """The tables and registers that a trace's events leave behind; going on from ``rebuilt`` where that is given."""
    rebuilt = rebuilt or Rebuilt()
    last = trace.count()
    for event in trace.events(TABLE_KINDS, rebuilt.seq):
        rebuilt.apply(event)
    rebuilt.seq = last
    return rebuilt


@dataclass
class Verdict:
    """What a comparison found; columns of the trace's ``memory_check`` table."""

    tables: int = 0
    entries: int = 0
    missing: int = 0
    different: int = 0
    leaves: int | None = None
    leaves_different: int | None = None
    details: list[str] = field(default_factory=list)
    pages: list[tuple[Table, bytes]] = field(default_factory=list)
    """The guest's own tables, as its memory has them."""

    def say(self, text: str) -> None:
        """Keep one of the first differences in words."""
        if len(self.details) < _DETAILS:
            self.details.append(text)


def compare(rebuilt: Rebuilt, real: Memory, cpus: Mapping[int, Cpu]) -> Verdict:
    """Hold every table that a walk of ``real`` memory from ``cpus`` reaches against the rebuilt ones, accessed and dirty bits aside."""
    verdict = Verdict()
    seen: set[Table] = set()
    for number, cpu in sorted(cpus.items()):
        recorded = rebuilt.cpus.get(number, Cpu())
        if cpu.mode is not Mode.NONE and (cpu.cr3, cpu.mode) != (recorded.cr3, recorded.mode):
            verdict.different += 1
            verdict.say(f"vCPU {number}: cr3 {cpu.cr3:#x} in {cpu.mode.label} mode, recorded {recorded.cr3:#x} in {recorded.mode.label}")
        seen |= tables(real, cpu.cr3, cpu.mode, cpu.cr4, cpu.pdptes or recorded.pdptes)
    for table in sorted(seen):
        page = bytes(real(table.gfn) or bytes(PAGE_BYTES))
        verdict.pages.append((table, page))
        _compare_table(table, page, rebuilt.memory(table.gfn), verdict)
    return verdict


def _compare_table(table: Table, real: bytes, recorded: bytes | None, verdict: Verdict) -> None:
    verdict.tables += 1
    there = entries(real, table.entry_bytes)
    present = sum(entry & PRESENT for entry in there)
    verdict.entries += present
    if recorded is None:
        verdict.missing += max(1, present)
        verdict.say(f"table {table.gfn:#x} of level {table.level} is not in the trace")
        return
    for index, (entry, ours) in enumerate(zip(there, entries(recorded, table.entry_bytes), strict=True)):
        if (entry ^ ours) & ~WALKER_BITS:
            missing = entry & PRESENT and not ours & PRESENT
            verdict.missing += bool(missing)
            verdict.different += not missing
            verdict.say(f"table {table.gfn:#x} of level {table.level}, entry {index}: {entry:#x} in memory, {ours:#x} in the trace")
