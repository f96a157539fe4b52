"""What `--touch first` keeps of every access, worked out from a recording of every access of one vCPU."""

from __future__ import annotations

from db.event import ACCESS_FAULT, ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, Event, Kind
from db.rebuild import Cpu, Rebuilt
from x86.paging import PAGE_BYTES, PRESENT, Table, child_gfn, index_shift, is_big_page, roots
from x86.registers import Mode

ENTRIES = 1024


def table_bit(gfn: int) -> int:
    """Which of 64 a table is in a set of them."""
    return (gfn * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 58


def through(rebuilt: Rebuilt, va: int) -> set[int]:
    """The tables that translate an address, each as its bit."""
    cpu, found = rebuilt.cpus.get(0, Cpu()), set()
    for start, root in roots(rebuilt.memory, cpu.cr3, cpu.mode, cpu.pdptes):
        table = root
        if cpu.mode is Mode.PAE and start >> 30 != va >> 30 & 3:
            continue
        while table.gfn in rebuilt.pages:
            found.add(table_bit(table.gfn))
            at = (va >> index_shift(table.level, table.entry_bytes)) * table.entry_bytes % PAGE_BYTES
            entry = int.from_bytes(rebuilt.pages[table.gfn][at : at + table.entry_bytes], "little")
            if table.level == 1 or not entry & PRESENT or is_big_page(entry, table.level, cpu.mode, cpu.cr4):
                break
            table = Table(child_gfn(entry, table.entry_bytes), table.level - 1, table.entry_bytes)
    return found


def first_touches(events: list[Event]) -> list[Event]:
    """The accesses of a recording of every access that are first touches, faults, or stores to tables."""
    rebuilt, kept = Rebuilt(), []
    touched: dict[tuple[int, int], tuple[int, set[int]]] = {}
    for number, event in enumerate(events):
        page = event.addr >> 12
        if event.kind == Kind.ACCESS and event.flags & ACCESS_FAULT:
            kept.append(event)
        elif event.kind == Kind.ACCESS:
            slot = (event.flags & (ACCESS_WRITE | ACCESS_FETCH), page % ENTRIES)
            tag = page << 1 | bool(event.flags & ACCESS_USER)
            # The content of a table that a store links comes before the store.
            following = next((e.kind for e in events[number + 1 :] if e.kind != Kind.PAGE), None)
            new = touched.get(slot, (None,))[0] != tag
            if new or following == Kind.WRITE:
                kept.append(event)
            if new:
                touched[slot] = tag, through(rebuilt, event.addr)
        elif event.kind in (Kind.CR3, Kind.REGS):
            touched.clear()
        elif event.kind == Kind.INVLPG:
            touched = {slot: held for slot, held in touched.items() if held[0] >> 1 != page}
        elif event.kind == Kind.WRITE:
            touched = {slot: held for slot, held in touched.items() if table_bit(page) not in held[1]}
        rebuilt.apply(event)
    return kept
