"""Table entries and guest walks for every paging mode (Intel SDM volume 3, chapter 4).

Physical memory is any callable ``table(gfn) -> bytes``: 4096 bytes of that frame, or ``None`` where there is no RAM.
Everything here is a pure function of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from x86.registers import CR4_PSE, Mode

PAGE_SHIFT = 12
PAGE_BYTES = 4096

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
PWT = 1 << 3
PCD = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
PAGE_SIZE = 1 << 7
GLOBAL = 1 << 8
NX = 1 << 63

BASE64 = 0x000F_FFFF_FFFF_F000
#: Where cr3 says that PAE's PDPTEs lie: at 32 bytes, not at a page.
BASE_PDPT = 0xFFFF_FFE0
BASE32 = 0xFFFF_F000

#: Bits the processor itself sets in a table entry: a comparison of tables leaves them out.
WALKER_BITS = ACCESSED | DIRTY

Memory = Callable[[int], "bytes | memoryview | None"]


class Leaf(NamedTuple):
    """One translation: ``va`` (canonical) to ``gpa``, ``size`` bytes long, with the leaf ``entry`` itself."""

    va: int
    gpa: int
    size: int
    entry: int


class Table(NamedTuple):
    """A frame that a walk uses as a table: its ``gfn``, its ``level`` (1 = leaf table), its entry size in bytes."""

    gfn: int
    level: int
    entry_bytes: int


def entries(page: bytes | memoryview, entry_bytes: int) -> tuple[int, ...]:
    """The 1024 (``entry_bytes`` 4) or 512 (8) entries of a table page."""
    return struct.unpack("<1024I" if entry_bytes == 4 else "<512Q", page)


def is_big_page(entry: int, level: int, mode: Mode, cr4: int) -> bool:
    """Whether a present entry at ``level`` maps a big page: 4 MiB or 2 MiB at level 2, 1 GiB at level 3 of long mode."""
    if level == 1 or not entry & PAGE_SIZE:
        return False
    if level == 2:
        return mode is not Mode.TWO_LEVEL or bool(cr4 & CR4_PSE)
    return level == 3 and mode in (Mode.LONG, Mode.LA57)


def child_gfn(entry: int, entry_bytes: int) -> int:
    """The frame of the table that a present entry points to."""
    return (entry & (BASE32 if entry_bytes == 4 else BASE64)) >> PAGE_SHIFT


def index_shift(level: int, entry_bytes: int) -> int:
    """The lowest address bit that selects an entry of a table at ``level``."""
    return PAGE_SHIFT + (level - 1) * (10 if entry_bytes == 4 else 9)


def pdptes(memory: Memory, cr3: int) -> tuple[int, int, int, int]:
    """The four page-directory-pointer entries that a PAE load of ``cr3`` reads; zeros where there is no RAM."""
    page = memory(cr3 >> PAGE_SHIFT)
    if page is None:
        return (0, 0, 0, 0)
    first, second, third, fourth = struct.unpack_from("<4Q", page, cr3 & 0xFE0)
    return (first, second, third, fourth)


def roots(memory: Memory, cr3: int, mode: Mode, loaded_pdptes: tuple[int, ...] | None = None) -> list[tuple[int, Table]]:
    """The tables a walk starts from, each with the first virtual address it covers.

    ``loaded_pdptes`` are PAE's four registers as the processor holds them; without them they are read at ``cr3``.
    """
    if mode is Mode.NONE:
        return []
    if mode is Mode.PAE:
        registers = loaded_pdptes if loaded_pdptes is not None else pdptes(memory, cr3)
        return [(i << 30, Table(child_gfn(e, 8), 2, 8)) for i, e in enumerate(registers) if e & PRESENT]
    base = BASE32 if mode is Mode.TWO_LEVEL else BASE64
    return [(0, Table((cr3 & base) >> PAGE_SHIFT, int(mode), mode.entry_bytes))]


def canonical(va: int, mode: Mode) -> int:
    """``va`` with its top bits as the processor wants them, as an unsigned 64-bit number."""
    bits = {Mode.LONG: 48, Mode.LA57: 57}.get(mode)
    if bits is None:
        return va & 0xFFFF_FFFF
    return (va | -(1 << bits)) & (1 << 64) - 1 if va >> (bits - 1) & 1 else va


def tables(memory: Memory, cr3: int, mode: Mode, cr4: int, loaded_pdptes: tuple[int, ...] | None = None) -> set[Table]:
    """Every table that a walk from ``cr3`` can reach."""
    found: set[Table] = set()
    todo = [table for _, table in roots(memory, cr3, mode, loaded_pdptes)]
    while todo:
        table = todo.pop()
        if table in found:
            continue
        page = memory(table.gfn)
        if page is None:
            continue
        found.add(table)
        if table.level == 1:
            continue
        for entry in set(entries(page, table.entry_bytes)):
            if entry & PRESENT and not is_big_page(entry, table.level, mode, cr4):
                todo.append(Table(child_gfn(entry, table.entry_bytes), table.level - 1, table.entry_bytes))
    return found


def leaves(memory: Memory, cr3: int, mode: Mode, cr4: int, loaded_pdptes: tuple[int, ...] | None = None) -> Iterator[Leaf]:
    """Every translation from ``cr3``, in order of virtual address."""
    for va, table in roots(memory, cr3, mode, loaded_pdptes):
        yield from _leaves(memory, table, va, mode, cr4)


def _leaves(memory: Memory, table: Table, start: int, mode: Mode, cr4: int) -> Iterator[Leaf]:
    page = memory(table.gfn)
    if page is None:
        return
    shift = index_shift(table.level, table.entry_bytes)
    for index, entry in enumerate(entries(page, table.entry_bytes)):
        if not entry & PRESENT:
            continue
        va = start | index << shift
        if table.level == 1 or is_big_page(entry, table.level, mode, cr4):
            yield Leaf(canonical(va, mode), _target(entry, shift, table.entry_bytes), 1 << shift, entry)
        else:
            child = Table(child_gfn(entry, table.entry_bytes), table.level - 1, table.entry_bytes)
            yield from _leaves(memory, child, va, mode, cr4)


def _target(entry: int, shift: int, entry_bytes: int) -> int:
    """The physical address a leaf maps; a 4 MiB page carries address bits 32..39 in bits 13..20 (PSE-36)."""
    base = entry & (BASE32 if entry_bytes == 4 else BASE64) & -(1 << shift)
    if entry_bytes == 4 and shift > PAGE_SHIFT:
        base |= (entry >> 13 & 0xFF) << 32
    return base
