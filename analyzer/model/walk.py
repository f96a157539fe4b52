"""The guest's own walk of its tables, as the hypervisor does it in a fault (part 6.2 of the design)."""

from __future__ import annotations

from typing import NamedTuple

from analyzer.model.context import (
    PFERR_FETCH,
    PFERR_USER,
    PFERR_WRITE,
    PT32E_ROOT_LEVEL,
    PT64_ROOT_LEVEL,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    Context,
)
from analyzer.model.memory import GuestMemory
from x86.paging import ACCESSED, BASE32, BASE64, NX, PAGE_SHIFT, PAGE_SIZE, PRESENT, USER, WRITABLE
from x86.registers import CR0_WP, CR4_PSE, EFER_NX


class Walk(NamedTuple):
    """A guest walk that succeeded: the last guest entry, where it lies, what it maps."""

    entry: int
    entry_gpa: int
    gfn: int
    """Target frame, without PSE-36 bits."""
    level: int
    """1, or 2 for a big page."""
    inherited: int
    """Rights (W, U) that the levels above grant."""
    table_gfn: tuple[int, ...]
    """The guest table's frame by level; index 0 is unused."""


def walk_addr(memory: GuestMemory, context: Context, va: int, error: int) -> Walk | None:
    """``walk_addr``: the guest's own walk, with A bits set as it goes; ``None`` where the fault is the guest's."""
    two_level = context.root_level == PT_DIRECTORY_LEVEL
    entry_bytes, index_bits = (4, 10) if two_level else (8, 9)
    index_mask = (1 << index_bits) - 1
    base = BASE32 if two_level else BASE64
    write, user = error & PFERR_WRITE, error & PFERR_USER
    check_nx = not two_level and error & PFERR_FETCH and context.efer & EFER_NX
    tables = [0] * (PT64_ROOT_LEVEL + 1)
    inherited = WRITABLE | USER
    if context.root_level == PT32E_ROOT_LEVEL:
        pdpte = context.pdptrs[va >> 30 & 3]
        if not pdpte & PRESENT:
            return None
        level, gfn = PT_DIRECTORY_LEVEL, (pdpte & BASE64) >> PAGE_SHIFT
    else:
        # The address field of a cr3 is that of a 64-bit entry in every mode, as the roots have it.
        level, gfn = context.root_level, (context.cr3 & BASE64) >> PAGE_SHIFT
    while True:
        tables[level] = gfn
        index = va >> PAGE_SHIFT + (level - 1) * index_bits & index_mask
        gpa = gfn << PAGE_SHIFT | index * entry_bytes
        entry = memory.read(gpa, entry_bytes)
        if (
            not entry & PRESENT
            or (write and not entry & WRITABLE and (user or context.cr0 & CR0_WP))
            or (user and not entry & USER)
            or (check_nx and entry & NX)
        ):
            return None
        if not entry & ACCESSED:
            entry |= ACCESSED
            memory.write(gpa, entry_bytes, entry)
        if level == PT_PAGE_TABLE_LEVEL:
            return Walk(entry, gpa, (entry & base) >> PAGE_SHIFT, level, inherited, tuple(tables))
        if level == PT_DIRECTORY_LEVEL and entry & PAGE_SIZE and (not two_level or context.cr4 & CR4_PSE):
            target = (entry & base & -(1 << PAGE_SHIFT + index_bits)) >> PAGE_SHIFT
            return Walk(entry, gpa, target + (va >> PAGE_SHIFT & index_mask), level, inherited, tuple(tables))
        inherited &= entry
        gfn = (entry & base) >> PAGE_SHIFT
        level -= 1
