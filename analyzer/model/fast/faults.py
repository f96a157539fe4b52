"""Page faults over arrays: ``analyzer.model.walk`` and ``analyzer.model.faults``, function by function."""

from __future__ import annotations

from typing import Any, NamedTuple

from analyzer.model.context import (
    PFERR_FETCH,
    PFERR_USER,
    PFERR_WRITE,
    PT32E_ROOT_LEVEL,
    PT64_ROOT_LEVEL,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    PT_SHADOW_BITS_OFFSET,
    PT_SHADOW_IO_MARK,
    PT_SHADOW_PS_MARK,
    PT_SHADOW_USER_MASK,
    PT_SHADOW_WRITABLE_MASK,
)
from analyzer.model.fast.cache import USER_FAULT, free_some_pages, lookup_page, next_shadow, rmap_add, zap_page
from analyzer.model.fast.compiled import compiled
from analyzer.model.fast.frames import frame_of, read, rewrite, word_at
from analyzer.model.fast.layout import CR0, CR3, CR4, EFER, LAST_COUNT, LIVE, PDPTR, ROOT_LEVEL, Ints
from analyzer.model.fast.roots import reset_context, root_for, table_page, take_from_all
from analyzer.model.faults import PT32_PTE_COPY_MASK
from x86.paging import ACCESSED, BASE32, BASE64, DIRTY, PAGE_SIZE, PRESENT, USER, WRITABLE
from x86.registers import CR0_WP, CR4_PSE, EFER_NX

#: NX is bit 63: the sign.
NX = -(1 << 63)

_PT64_PTE_COPY_MASK = PT32_PTE_COPY_MASK | NX
_BOTH = PT_SHADOW_USER_MASK | PT_SHADOW_WRITABLE_MASK
_PW = PRESENT | WRITABLE


class Walk(NamedTuple):
    """A guest walk: ``analyzer.model.walk.Walk``, with the place of the last guest entry instead of its address."""

    found: bool
    """False: the fault is the guest's."""
    entry: int
    at: int
    """Where in memory its word lies."""
    offset: int
    """Its byte in its frame."""
    gfn: int
    level: int
    inherited: int
    table1: int
    table2: int
    table3: int


@compiled
def _walk_addr(vm: Any, cpu: Ints, frames: Ints, memory: Ints, vcpu: int, va: int, error: int) -> Walk:
    """``walk_addr``: the guest's own walk, with A bits set as it goes."""
    root_level = cpu[vcpu, ROOT_LEVEL]
    two_level = root_level == PT_DIRECTORY_LEVEL
    entry_bytes = 4 if two_level else 8
    index_bits = 10 if two_level else 9
    index_mask = (1 << index_bits) - 1
    base = BASE32 if two_level else BASE64
    write, user = error & PFERR_WRITE, error & PFERR_USER
    check_nx = not two_level and error & PFERR_FETCH and cpu[vcpu, EFER] & EFER_NX
    table1 = table2 = table3 = 0
    inherited = WRITABLE | USER
    if root_level == PT32E_ROOT_LEVEL:
        pdpte = cpu[vcpu, PDPTR + (va >> 30 & 3)]
        if not pdpte & PRESENT:
            return Walk(False, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        level, gfn = PT_DIRECTORY_LEVEL, frame_of(pdpte & BASE64)
    else:
        # The address field of a cr3 is that of a 64-bit entry in every mode, as the roots have it.
        level, gfn = root_level, frame_of(cpu[vcpu, CR3] & BASE64)
    while True:
        if level == 1:
            table1 = gfn
        elif level == 2:
            table2 = gfn
        elif level == 3:
            table3 = gfn
        offset = (va >> 12 + (level - 1) * index_bits & index_mask) * entry_bytes
        at = word_at(vm, frames, gfn, offset)
        entry = read(memory, at, offset, entry_bytes)
        if (
            not entry & PRESENT
            or (write and not entry & WRITABLE and (user or cpu[vcpu, CR0] & CR0_WP))
            or (user and not entry & USER)
            or (check_nx and entry & NX)
        ):
            return Walk(False, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        if not entry & ACCESSED:
            entry |= ACCESSED
            rewrite(memory, at, offset, entry_bytes, entry)
        if level == PT_PAGE_TABLE_LEVEL:
            return Walk(True, entry, at, offset, frame_of(entry & base), level, inherited, table1, table2, table3)
        if level == PT_DIRECTORY_LEVEL and entry & PAGE_SIZE and (not two_level or cpu[vcpu, CR4] & CR4_PSE):
            target = frame_of(entry & base & -(1 << 12 + index_bits)) + (va >> 12 & index_mask)
            return Walk(True, entry, at, offset, target, level, inherited, table1, table2, table3)
        inherited &= entry
        gfn = frame_of(entry & base)
        level -= 1


@compiled
def page_fault(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints,
    vcpu: int, va: int, error: int,
) -> bool:  # fmt: skip
    """``kvm_mmu_page_fault``: whether the instruction has to be emulated."""
    if vm.free_pages < vm.min_free:
        if vm.caching:
            free_some_pages(vm, pages, nodes, frames, journal)
        else:
            reset_context(vm, cpu, pages, nodes, frames, journal, births, vcpu)
            take_from_all(vm, cpu, pages, nodes, frames, journal)
    if cpu[vcpu, ROOT_LEVEL] == 0:
        return _nonpaging_page_fault(vm, cpu, pages, nodes, frames, journal, births, vcpu, va)
    return _paging_page_fault(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, va, error)


@compiled
def _nonpaging_page_fault(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, births: Ints, vcpu: int, va: int
) -> bool:
    """``nonpaging_map``: identity, never write-protected, whoever shadows the frame (part 10.6)."""
    gfn = frame_of(va)
    if gfn >= vm.ram_pages:
        return True
    root, index = root_for(cpu, vcpu, va), va >> 21 & 511
    table = -1
    if root >= 0 and pages[root, index]:
        table = pages[root, index] >> 12
    elif root >= 0:
        table = table_page(
            vm, cpu, pages, nodes, frames, journal, births, vcpu, frame_of(va & ~0x1F_FFFF), va, PT_PAGE_TABLE_LEVEL, 1, root << 9 | index
        )
        if table >= 0:
            pages[root, index] = table << 12 | PRESENT | WRITABLE | USER
            vm.fills_table += 1
    if table < 0:
        vm.corner_out_of_pages += 1
        return False
    if pages[table, gfn & 511] & _PW != _PW:
        pages[table, gfn & 511] = gfn << 12 | PRESENT | WRITABLE | USER
        vm.fills_leaf += 1
        rmap_add(vm, pages, nodes, frames, table << 9 | gfn & 511)
    return False


@compiled
def _paging_page_fault(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints,
    vcpu: int, va: int, error: int,
) -> bool:  # fmt: skip
    """``page_fault`` of paging_tmpl.h: walk the guest, build the shadow, repair the leaf."""
    walk = _walk_addr(vm, cpu, frames, memory, vcpu, va, error)
    if not walk.found:
        vm.kvm_stat_pf_guest += 1
        _forget_flood(vm, cpu, vcpu)
        return False
    leaf = _fetch(vm, cpu, pages, nodes, frames, journal, births, vcpu, va, walk)
    if leaf < 0:
        if root_for(cpu, vcpu, va) < 0 and vm.free_pages:
            vm.corner_no_root += 1
        else:
            vm.corner_out_of_pages += 1
        return False
    emulate = False
    if error & PFERR_WRITE:
        emulate = _fix_write_pf(vm, cpu, pages, nodes, frames, memory, journal, vcpu, leaf, walk, error & PFERR_USER != 0)
    else:
        _fix_read_pf(pages, leaf)
    if not emulate:
        _forget_flood(vm, cpu, vcpu)
    if pages[leaf >> 9, leaf & 511] & PT_SHADOW_IO_MARK:
        return True
    vm.kvm_stat_pf_fixed += 1
    return emulate


@compiled
def _forget_flood(vm: Any, cpu: Ints, vcpu: int) -> None:
    if vm.flood_reset_by_faults:
        cpu[vcpu, LAST_COUNT] = 0


@compiled
def _fetch(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, births: Ints, vcpu: int, va: int, walk: Walk) -> int:
    """``fetch``: the spte address of the leaf for ``va``, with every level above it made where it was missing; or -1."""
    page = root_for(cpu, vcpu, va)
    level = PT64_ROOT_LEVEL if cpu[vcpu, ROOT_LEVEL] == PT64_ROOT_LEVEL else PT_DIRECTORY_LEVEL
    above = -1
    while page >= 0:
        index = va >> 9 * level + 3 & 511
        entry = pages[page, index]
        if level == PT_PAGE_TABLE_LEVEL:
            if not entry & (PRESENT | PT_SHADOW_IO_MARK):
                if walk.level == PT_DIRECTORY_LEVEL and above >= 0:
                    pages[above >> 9, above & 511] |= PT_SHADOW_PS_MARK
                _set_leaf(vm, cpu, pages, nodes, frames, vcpu, page << 9 | index, walk)
            return page << 9 | index
        above = page << 9 | index
        if entry & (PRESENT | PT_SHADOW_PS_MARK):
            page = entry >> 12
        else:
            page = _link_table(vm, cpu, pages, nodes, frames, journal, births, vcpu, va, walk, level, above)
        level -= 1
    return -1


@compiled
def _link_table(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, births: Ints,
    vcpu: int, va: int, walk: Walk, level: int, address: int,
) -> int:  # fmt: skip
    """Make the entry at ``address`` point to the shadow of the guest's next table, or of a big page."""
    metaphysical = 0
    if level == PT_DIRECTORY_LEVEL and walk.level == PT_DIRECTORY_LEVEL:
        # The whole address field: PAT and PSE-36 bits become low bits of the key.
        metaphysical = 1
        gfn = frame_of(walk.entry & (BASE32 if cpu[vcpu, ROOT_LEVEL] == PT_DIRECTORY_LEVEL else BASE64))
    elif level == 2:
        gfn = walk.table1
    else:
        gfn = walk.table2 if level == 3 else walk.table3
    page = table_page(vm, cpu, pages, nodes, frames, journal, births, vcpu, gfn, va, level - 1, metaphysical, address)
    if page >= 0:
        pages[address >> 9, address & 511] = page << 12 | PRESENT | ACCESSED | WRITABLE | USER
        vm.fills_table += 1
    return page


@compiled
def _set_leaf(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, vcpu: int, address: int, walk: Walk) -> None:
    """``set_pte_common``: all rights are in the leaf, from the walk that made it."""
    two_level = cpu[vcpu, ROOT_LEVEL] == PT_DIRECTORY_LEVEL
    entry = walk.entry
    access = walk.inherited & entry & (WRITABLE | USER)
    spte = entry & (PT32_PTE_COPY_MASK if two_level else _PT64_PTE_COPY_MASK)
    spte |= access << PT_SHADOW_BITS_OFFSET
    if not entry & DIRTY:
        access &= ~WRITABLE
    gpa = walk.gfn << 12
    if walk.level == PT_DIRECTORY_LEVEL and two_level:
        gpa |= (entry >> 13 & 15) << 32
    spte |= access | gpa
    vm.fills_leaf += 1
    if frame_of(gpa) >= vm.ram_pages:
        pages[address >> 9, address & 511] = (spte | PT_SHADOW_IO_MARK) & ~PRESENT
        return
    if access & WRITABLE and lookup_page(pages, frames, walk.gfn) >= 0:
        spte &= ~WRITABLE
        vm.mode_arch_tlb_flush += 1
    pages[address >> 9, address & 511] = spte
    rmap_add(vm, pages, nodes, frames, address)


@compiled
def _fix_read_pf(pages: Ints, leaf: int) -> None:
    """``fix_read_pf``: a page that a supervisor store took from the user gets its U back and loses W (part 10.4)."""
    spte = pages[leaf >> 9, leaf & 511]
    if spte & PT_SHADOW_USER_MASK and not spte & USER:
        pages[leaf >> 9, leaf & 511] = (spte | USER) & ~WRITABLE


@compiled
def _fix_write_pf(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints,
    vcpu: int, leaf: int, walk: Walk, user: bool,
) -> bool:  # fmt: skip
    """``fix_write_pf``: let the store through, or answer that it has to be emulated."""
    table, index = leaf >> 9, leaf & 511
    spte = pages[table, index]
    if spte & WRITABLE:
        return False
    if user:
        if spte & _BOTH != _BOTH:
            return False
    elif not spte & PT_SHADOW_WRITABLE_MASK:
        if cpu[vcpu, CR0] & CR0_WP:
            return False
        pages[table, index] = spte & ~USER
    entry_bytes = 4 if cpu[vcpu, ROOT_LEVEL] == PT_DIRECTORY_LEVEL else 8
    entry = read(memory, walk.at, walk.offset, entry_bytes)
    if not entry & PRESENT:
        pages[table, index] = 0
        return False
    emulate = False
    if user:
        emulate = _user_store_to(vm, pages, nodes, frames, journal, walk.gfn)
        if not pages[table, LIVE] or not pages[table, index]:
            vm.corner_leaf_zapped_by_store += 1
            return False
    elif lookup_page(pages, frames, walk.gfn) >= 0:
        emulate = True
    if not emulate:
        spte = pages[table, index]
        pages[table, index] = spte | WRITABLE
        if spte & PRESENT and frame_of(spte & BASE64) != walk.gfn:
            # The leaf is older than the guest's entry: the question was asked of another frame than it maps.
            vm.corner_stale_leaf_written += 1
    rewrite(memory, walk.at, walk.offset, entry_bytes, entry | DIRTY)
    if not emulate:
        rmap_add(vm, pages, nodes, frames, leaf)
    return emulate


@compiled
def _user_store_to(vm: Any, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, gfn: int) -> bool:
    """143646567f: a user store cannot be a page-table update: zap the frame's pages. True where a root in use stays."""
    page = lookup_page(pages, frames, gfn)
    while page >= 0:
        older = next_shadow(pages, page)
        zap_page(vm, pages, nodes, frames, journal, page, USER_FAULT)
        page = older
    if lookup_page(pages, frames, gfn) < 0:
        return False
    vm.corner_user_store_to_root += 1
    return True
