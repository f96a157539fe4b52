"""The loop over events: ``analyzer.model.machine``, function by function, over columns of events."""

from __future__ import annotations

from typing import Any

import numpy as np

from analyzer.model.context import PFERR_FETCH, PFERR_PRESENT, PFERR_USER, PFERR_WRITE, PT64_ROOT_LEVEL, PT_DIRECTORY_LEVEL
from analyzer.model.fast.cache import (
    FLOOD,
    MISALIGNED,
    MISALIGNED_AND_FLOOD,
    add,
    lookup_page,
    next_shadow,
    remove_parent,
    rmap_remove,
    zap_page,
)
from analyzer.model.fast.compiled import compiled, entry
from analyzer.model.fast.faults import NX, page_fault
from analyzer.model.fast.frames import frame_of, set_page, write
from analyzer.model.fast.layout import (
    BIRTH,
    CR0,
    EFER,
    ENTRIES,
    EVENT_BIRTHS,
    EVENT_CONTENTS,
    EVENT_FRAMES,
    EVENT_NODES,
    LAST_COUNT,
    LAST_GFN,
    LEVEL,
    ROLE,
    ROOT,
    ROOT_LEVEL,
    SHORT_OF_FRAMES,
    SHORT_OF_MEMORY,
    SHORT_OF_NODES,
    SHORT_OF_ROWS,
    Ints,
)
from analyzer.model.fast.roots import create, guest_cr0, guest_cr4, guest_efer, set_cr3
from analyzer.model.journal import FLOODED, NO_PAGE, Fault, What
from x86.paging import PRESENT, USER, WRITABLE
from x86.registers import CR0_PG, EFER_NX

# Kinds of events and flags of accesses and stores, as x86/event.py has them: the model does not know the trace file.
REGS, CR3, WRITE, PAGE, ACCESS, INVLPG = 1, 2, 3, 4, 5, 6
ACCESS_WRITE, ACCESS_USER, ACCESS_FETCH = 1, 2, 4
WRITE_SIZE = 15

_FAULT, _STORE = int(What.FAULT), int(What.STORE)
_SHADOW_FIXED, _GUEST, _WRITE_TO_SHADOWED, _MMIO, _UNRESOLVED = (int(answer) for answer in Fault)


@entry
def begin(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints) -> None:
    """Make the virtual machine, before any event."""
    create(vm, cpu, pages, nodes, frames, memory, journal, births)


@entry
def run(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints,
    kind: Any, vcpus: Any, flags: Any, addr: Ints, value: Ints,
    registers: Ints, pdptes: Ints, offsets: Ints, indexes: Any, words: Ints, first: int, last: int,
) -> int:  # fmt: skip
    """Replay events ``first`` to ``last`` of a batch; the number of the first that was not, for which ``vm.short`` names what to grow.

    An event is begun only where every pool has room for all that it can take.
    """
    for i in range(first, last):
        # Wider than the columns: numba compiles what is called for one width only.
        what: Any = np.int64(kind[i])
        vcpu: Any = np.int64(vcpus[i])
        bits: Any = np.int64(flags[i])
        if what == ACCESS:
            va = addr[i]
            if cpu[vcpu, ROOT_LEVEL] != PT64_ROOT_LEVEL:
                va &= 0xFFFF_FFFF
            if _allows(cpu, vcpu, _spte(pages, leaf_address(cpu, pages, vcpu, va)), bits):
                vm.access_mapped += 1
                continue
        vm.short = _short(vm, nodes, frames, memory, journal, births)
        if vm.short:
            vm.events_total += i - first
            return i
        vm.event = vm.events_total + i - first + 1
        vm.vcpu = vcpu
        if what == ACCESS:
            _access(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, va, bits)
        elif what == WRITE:
            _write(vm, cpu, pages, nodes, frames, memory, journal, vcpu, addr[i], bits & WRITE_SIZE, value[i])
        elif what == CR3:
            vm.events_cr3 += 1
            set_cr3(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, addr[i], pdptes, value[i])
        elif what == INVLPG:
            _invlpg(vm, cpu, pages, nodes, frames, vcpu, addr[i])
        elif what == PAGE:
            row = value[i]
            vm.events_page += 1
            changed = set_page(vm, frames, memory, frame_of(addr[i]), indexes, words, offsets[row], offsets[row + 1])
            if lookup_page(pages, frames, frame_of(addr[i])) >= 0:
                vm.contents_on_shadowed += 1
                vm.contents_changed += changed
        else:
            row = value[i]
            given, cr0, cr4, efer = registers[row, 0], registers[row, 1], registers[row, 2], registers[row, 3]
            _regs(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, given, cr0, cr4, efer)
    vm.events_total += last - first
    return last


@compiled
def _short(vm: Any, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints) -> int:
    short = 0
    if vm.rows + rows_of_an_event(vm) > len(journal) or vm.births_kept + EVENT_BIRTHS > len(births):
        short |= SHORT_OF_ROWS
    if vm.nodes + EVENT_NODES >= len(nodes):
        short |= SHORT_OF_NODES
    if vm.frames + EVENT_FRAMES > len(frames) >> 1:
        short |= SHORT_OF_FRAMES
    if (vm.contents + EVENT_CONTENTS) * ENTRIES > len(memory):
        short |= SHORT_OF_MEMORY
    return short


@compiled
def rows_of_an_event(vm: Any) -> int:
    """More rows than the next event can write: every page zapped by eviction and twice more, every link undone."""
    return vm.links + 4 * vm.active_pages + 64


@compiled
def _regs(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints,
    vcpu: int, given: int, cr0: int, cr4: int, efer: int,
) -> None:  # fmt: skip
    """The mode registers take these values; bits 0 to 2 of ``given`` say which of CR0, CR4, EFER are."""
    vm.events_regs += 1
    if given & 1 and cpu[vcpu, CR0] & CR0_PG and not cr0 & CR0_PG:
        guest_cr0(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, cr0)
        if given & 2:
            guest_cr4(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, cr4)
        if given & 4:
            guest_efer(vm, cpu, vcpu, efer)
        return
    if given & 4:
        guest_efer(vm, cpu, vcpu, efer)
    if given & 2:
        guest_cr4(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, cr4)
    if given & 1:
        guest_cr0(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, cr0)


@compiled
def _access(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints, vcpu: int, va: int, flags: int
) -> None:
    """An access that the shadow does not allow: an exit, and how it was answered."""
    vm.access_faults += 1
    is_write = flags & ACCESS_WRITE
    error = PFERR_PRESENT if _spte(pages, leaf_address(cpu, pages, vcpu, va)) & PRESENT else 0
    if is_write:
        error |= PFERR_WRITE
    if flags & ACCESS_USER or cpu[vcpu, ROOT_LEVEL] == 0:
        error |= PFERR_USER
    if flags & ACCESS_FETCH and cpu[vcpu, EFER] & EFER_NX:
        error |= PFERR_FETCH
    guest_faults = vm.kvm_stat_pf_guest
    emulate = page_fault(vm, cpu, pages, nodes, frames, memory, journal, births, vcpu, va, error)
    address = leaf_address(cpu, pages, vcpu, va)
    leaf = _spte(pages, address)
    if vm.kvm_stat_pf_guest != guest_faults:
        vm.access_guest_faults += 1
        answer = _GUEST
    elif emulate and is_write and _allows(cpu, vcpu, leaf, flags & ACCESS_USER):
        vm.access_write_to_shadowed += 1
        answer = _WRITE_TO_SHADOWED
    elif emulate:
        vm.access_mmio += 1
        answer = _MMIO
    elif _allows(cpu, vcpu, leaf, flags):
        vm.access_shadow_fixed += 1
        answer = _SHADOW_FIXED
    else:
        vm.access_unresolved += 1
        answer = _UNRESOLVED
    add(vm, journal, _FAULT, answer, NO_PAGE if address < 0 else pages[address >> 9, BIRTH], NO_PAGE)


@compiled
def leaf_address(cpu: Ints, pages: Ints, vcpu: int, va: int) -> int:
    """The spte address of the level-1 entry that translates ``va``; -1 where a level above is empty."""
    if cpu[vcpu, ROOT_LEVEL] == PT64_ROOT_LEVEL:
        page, shift = cpu[vcpu, ROOT], 39
    else:
        page, shift = cpu[vcpu, ROOT + (va >> 30 & 3)], 21
    if page < 0:
        return -1
    while shift > 12:
        entry = pages[page, va >> shift & 511]
        if not entry & PRESENT:
            return -1
        page = entry >> 12
        shift -= 9
    return page << 9 | va >> 12 & 511


@compiled
def _spte(pages: Ints, address: int) -> int:
    return pages[address >> 9, address & 511] if address >= 0 else 0


@compiled
def _allows(cpu: Ints, vcpu: int, leaf: int, flags: int) -> bool:
    """The hardware's check; only leaves restrict. VMX forces CR0.WP on, so a store needs W whoever makes it."""
    if not leaf & PRESENT or (flags & ACCESS_WRITE and not leaf & WRITABLE):
        return False
    if not leaf & USER and (flags & ACCESS_USER or cpu[vcpu, ROOT_LEVEL] == 0):
        return False
    return not (flags & ACCESS_FETCH and leaf & NX and cpu[vcpu, EFER] & EFER_NX)


@compiled
def _invlpg(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, vcpu: int, va: int) -> None:
    """INVLPG: not intercepted since 5f015a5b28. Without a cache it drops the leaf, as before."""
    vm.events_invlpg += 1
    if vm.caching:
        return
    leaf = leaf_address(cpu, pages, vcpu, va)
    if leaf >= 0:
        rmap_remove(vm, pages, nodes, frames, leaf)
        pages[leaf >> 9, leaf & 511] = 0


@compiled
def _write(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints,
    vcpu: int, gpa: int, size: int, value: int,
) -> None:  # fmt: skip
    """A guest store to physical memory."""
    vm.events_write += 1
    gfn, offset = frame_of(gpa), gpa & 0xFFF
    room = 4096 - offset
    if size > room:
        vm.writes_split += 1
        rest = (value >> 8 * room) & (1 << 64 - 8 * room) - 1 if room < 8 else 0
        _store(vm, cpu, pages, nodes, frames, memory, journal, vcpu, gfn, offset, room, value)
        _store(vm, cpu, pages, nodes, frames, memory, journal, vcpu, gfn + 1, 0, size - room, rest)
    else:
        _store(vm, cpu, pages, nodes, frames, memory, journal, vcpu, gfn, offset, size, value)


@compiled
def _store(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints,
    vcpu: int, gfn: int, offset: int, size: int, value: int,
) -> None:  # fmt: skip
    """One store within a page: intercepted if the frame is shadowed, in whatever mode."""
    newest = lookup_page(pages, frames, gfn)
    if newest >= 0:
        vm.writes_protected += 1
        _pre_write(vm, cpu, pages, nodes, frames, journal, vcpu, gfn, offset, size, newest)
    else:
        vm.writes_plain += 1
    write(vm, frames, memory, gfn, offset, size, value)


@compiled
def _pre_write(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints,
    vcpu: int, gfn: int, offset: int, size: int, newest: int,
) -> None:  # fmt: skip
    """``kvm_mmu_pre_write``: every shadow of the frame is zapped or loses the entry that the store changes."""
    if gfn == cpu[vcpu, LAST_GFN]:
        cpu[vcpu, LAST_COUNT] += 1
        flooded = 0 < vm.flood <= cpu[vcpu, LAST_COUNT]
    else:
        cpu[vcpu, LAST_GFN] = gfn
        cpu[vcpu, LAST_COUNT] = 1
        flooded = vm.flood == 1
    shadows, page = 0, newest
    while page >= 0:
        shadows += 1
        page = next_shadow(pages, page)
    add(vm, journal, _STORE, FLOODED if flooded else 0, pages[newest, BIRTH], shadows)
    page = newest
    while page >= 0:
        older = next_shadow(pages, page)
        pte_bytes = 4 if pages[page, ROLE] & 15 == 2 else 8
        misaligned = (offset ^ offset + size - 1) & -pte_bytes != 0 or (vm.small_store_misaligned and size < 4)
        if misaligned and flooded:
            zap_page(vm, pages, nodes, frames, journal, page, MISALIGNED_AND_FLOOD)
        elif misaligned or flooded:
            zap_page(vm, pages, nodes, frames, journal, page, FLOOD if flooded else MISALIGNED)
        else:
            _clear_entries(vm, pages, nodes, frames, journal, page, offset)
        page = older


@compiled
def _clear_entries(vm: Any, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, page: int, offset: int) -> None:
    """Set the shadow of the guest entry at ``offset`` to 0; what it pointed to stays cached."""
    count = 1
    if pages[page, ROLE] & 15 == 2:
        offset *= 2
        if vm.directory_fix and pages[page, LEVEL] == PT_DIRECTORY_LEVEL:
            offset = (offset & ~7) * 2
            count = 2
        if vm.quadrant_test and offset >> 12 != pages[page, ROLE] >> 8 & 3:
            return
        offset &= 0xFFF
    for index in range(offset >> 3, (offset >> 3) + count):
        entry = pages[page, index]
        vm.writes_shadow_entries_cleared += 1
        if entry & PRESENT:
            vm.writes_present_cleared += 1
            if pages[page, LEVEL] == 1:
                vm.writes_present_leaf_cleared += 1
                rmap_remove(vm, pages, nodes, frames, page << 9 | index)
            else:
                remove_parent(vm, pages, nodes, journal, entry >> 12, page << 9 | index)
        pages[page, index] = 0
