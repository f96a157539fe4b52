"""Modes, roots and control registers over arrays: ``analyzer.model.roots``, function by function."""

from __future__ import annotations

from typing import Any

from analyzer.model.context import PT32E_ROOT_LEVEL, PT64_ROOT_LEVEL, PT_DIRECTORY_LEVEL
from analyzer.model.fast.cache import add, drop_pages, find_page, free_some_pages, get_page
from analyzer.model.fast.compiled import compiled
from analyzer.model.fast.frames import frame_of, word_at
from analyzer.model.fast.layout import (
    BIRTH,
    CR0,
    CR3,
    CR4,
    EFER,
    KEEP,
    KEEP_WORDS,
    KEPT,
    PDPTR,
    ROOT,
    ROOT_COUNT,
    ROOT_KEY,
    ROOT_LEVEL,
    Ints,
)
from analyzer.model.journal import NO_PAGE, ROOT_SHIFT, What
from analyzer.model.roots import (
    CR0_RESERVED,
    CR3_RESERVED,
    CR3_RESERVED_LONG,
    CR4_RESERVED,
    EFER_RESERVED,
    KVM_GUEST_CR0_MASK,
    KVM_GUEST_CR4_MASK,
    PDPTE_RESERVED,
)
from x86.paging import PAGE_SHIFT, PRESENT
from x86.registers import CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME

_SWITCHED = int(What.ROOTS_LOADED)
#: A cr3 shifted right without its sign.
_ROOTS = (1 << 64 - ROOT_SHIFT) - 1
_TO_ROOT = PAGE_SHIFT - ROOT_SHIFT


def _signed(mask: int) -> int:
    return mask - (1 << 64) if mask >> 63 else mask


_CR0_RESERVED = _signed(CR0_RESERVED)
_CR3_RESERVED_LONG = _signed(CR3_RESERVED_LONG)
_CR4_RESERVED = _signed(CR4_RESERVED)
_EFER_RESERVED = _signed(EFER_RESERVED)
_PDPTE_RESERVED = _signed(PDPTE_RESERVED)

#: Roots are copied with their key: four pages, a level, four frames.
_ROOT_WORDS = 9
_KEY_WORDS = 5
_KEY_AT = ROOT_KEY - ROOT


@compiled
def create(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints) -> None:
    """The virtual machine is made: every vCPU takes roots with paging off."""
    for vcpu in range(len(cpu)):
        vm.vcpu = vcpu
        _alloc_roots(vm, cpu, pages, nodes, frames, journal, births, vcpu)


@compiled
def guest_cr0(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints, vcpu: int, cr0: int
) -> None:
    """The guest writes CR0: VMX exits only where a bit of the host's changes."""
    if not vm.strict:
        cr0 &= ~_CR0_RESERVED
    if (cr0 ^ cpu[vcpu, CR0]) & KVM_GUEST_CR0_MASK == 0:
        cpu[vcpu, CR0] = cr0
        return
    paging_starts = cr0 & CR0_PG and not cpu[vcpu, CR0] & CR0_PG
    paging_ends = cpu[vcpu, CR0] & CR0_PG and not cr0 & CR0_PG
    long = cpu[vcpu, EFER] & EFER_LME
    if cr0 & _CR0_RESERVED or (cr0 & CR0_NW and not cr0 & CR0_CD) or (cr0 & CR0_PG and not cr0 & CR0_PE):
        vm.mode_gp_injected += 1
        return
    pae = cpu[vcpu, CR4] & CR4_PAE
    if paging_starts and long and not pae:
        vm.mode_gp_injected += 1
        return
    if paging_starts and not long and pae and not _load_pdptrs(vm, cpu, frames, memory, vcpu, cpu[vcpu, CR3]):
        vm.mode_gp_injected += 1
        return
    if long and paging_starts:
        cpu[vcpu, EFER] |= EFER_LMA
    if long and paging_ends:
        cpu[vcpu, EFER] &= ~EFER_LMA
    cpu[vcpu, CR0] = cr0
    reset_context(vm, cpu, pages, nodes, frames, journal, births, vcpu)


@compiled
def guest_cr4(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints, vcpu: int, cr4: int
) -> None:
    """The guest writes CR4: VMX exits only where a bit of the host's changes."""
    if not vm.strict:
        cr4 &= ~_CR4_RESERVED
    before = cpu[vcpu, CR4]
    if (cr4 ^ before) & KVM_GUEST_CR4_MASK == 0:
        cpu[vcpu, CR4] = cr4
        return
    if cr4 & _CR4_RESERVED:
        vm.mode_gp_injected += 1
        return
    if cpu[vcpu, EFER] & EFER_LME:
        if not cr4 & CR4_PAE:
            vm.mode_gp_injected += 1
            return
    elif (
        cpu[vcpu, CR0] & CR0_PG
        and cr4 & CR4_PAE
        and not before & CR4_PAE
        and not _load_pdptrs(vm, cpu, frames, memory, vcpu, cpu[vcpu, CR3])
    ):
        # 2.6.20 injects the fault and goes on with the write all the same.
        vm.mode_gp_injected += 1
    cpu[vcpu, CR4] = cr4
    reset_context(vm, cpu, pages, nodes, frames, journal, births, vcpu)


@compiled
def guest_efer(vm: Any, cpu: Ints, vcpu: int, efer: int) -> None:
    """``set_efer``: no reset of any kind follows; LMA is the hypervisor's own."""
    if not vm.strict:
        efer &= ~_EFER_RESERVED
    before = cpu[vcpu, EFER]
    if (efer ^ before) & ~EFER_LMA == 0:
        return
    if efer & _EFER_RESERVED or (cpu[vcpu, CR0] & CR0_PG and (efer ^ before) & EFER_LME):
        vm.mode_gp_injected += 1
        return
    cpu[vcpu, EFER] = efer & ~EFER_LMA | before & EFER_LMA


@compiled
def _take_pdptrs(cpu: Ints, vcpu: int, first: int, second: int, third: int, fourth: int) -> bool:
    for entry in (first, second, third, fourth):
        if entry & PRESENT and entry & _PDPTE_RESERVED:
            return False
    cpu[vcpu, PDPTR] = first
    cpu[vcpu, PDPTR + 1] = second
    cpu[vcpu, PDPTR + 2] = third
    cpu[vcpu, PDPTR + 3] = fourth
    return True


@compiled
def _load_pdptrs(vm: Any, cpu: Ints, frames: Ints, memory: Ints, vcpu: int, cr3: int) -> bool:
    """``load_pdptrs``: take the four PDPTEs from memory, unless one is bad."""
    offset = cr3 & 0xFE0
    at = word_at(vm, frames, frame_of(cr3), offset)
    if at < 0:
        return _take_pdptrs(cpu, vcpu, 0, 0, 0, 0)
    return _take_pdptrs(cpu, vcpu, memory[at], memory[at + 1], memory[at + 2], memory[at + 3])


@compiled
def set_cr3(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, memory: Ints, journal: Ints, births: Ints,
    vcpu: int, cr3: int, pdptes: Ints, given: int,
) -> None:  # fmt: skip
    """``set_cr3``: row ``given`` of ``pdptes`` is what a PAE load read; -1: it has to be read from memory."""
    long = cpu[vcpu, EFER] & EFER_LME
    reserved = _CR3_RESERVED_LONG if long else CR3_RESERVED
    if not vm.strict:
        cr3 &= ~reserved
    if cr3 & reserved:
        vm.mode_gp_injected += 1
        return
    if not long and cpu[vcpu, CR0] & CR0_PG and cpu[vcpu, CR4] & CR4_PAE:
        if given >= 0:
            good = _take_pdptrs(cpu, vcpu, pdptes[given, 0], pdptes[given, 1], pdptes[given, 2], pdptes[given, 3])
        else:
            good = _load_pdptrs(vm, cpu, frames, memory, vcpu, cr3)
        if not good:
            vm.mode_gp_injected += 1
            return
    cpu[vcpu, CR3] = cr3
    if frame_of(cr3) >= vm.ram_pages:
        vm.mode_gp_injected += 1
        return
    # paging_new_cr3: eviction first, while the old roots are not pinned any more (7f7417d67e).
    if cpu[vcpu, ROOT_LEVEL] == 0:
        return
    _free_roots(vm, cpu, pages, nodes, frames, journal, vcpu)
    if vm.caching and vm.free_pages < vm.min_free:
        free_some_pages(vm, pages, nodes, frames, journal)
    _alloc_roots(vm, cpu, pages, nodes, frames, journal, births, vcpu)
    vm.kvm_stat_tlb_flush += 1
    vm.mode_arch_tlb_flush += 1


@compiled
def reset_context(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, births: Ints, vcpu: int) -> None:
    """``kvm_mmu_reset_context``: no eviction, no TLB statistics; pages of the other modes stay cached."""
    _free_roots(vm, cpu, pages, nodes, frames, journal, vcpu)
    _alloc_roots(vm, cpu, pages, nodes, frames, journal, births, vcpu)


@compiled
def _free_roots(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, vcpu: int) -> None:
    if vm.keep_roots:
        for i in range(KEEP + KEEP_WORDS * cpu[vcpu, KEPT] - 1, KEEP - 1, -1):
            cpu[vcpu, i + KEEP_WORDS] = cpu[vcpu, i]
        for i in range(_ROOT_WORDS):
            cpu[vcpu, KEEP + i] = cpu[vcpu, ROOT + i]
        cpu[vcpu, KEPT] += 1
    else:
        _count_roots(cpu, pages, vcpu, ROOT, -1)
    for i in range(4):
        cpu[vcpu, ROOT + i] = -1
    if not vm.caching:
        drop_pages(vm, pages, nodes, frames, journal, vcpu)


@compiled
def _count_roots(cpu: Ints, pages: Ints, vcpu: int, at: int, change: int) -> None:
    for i in range(at, at + 4):
        if cpu[vcpu, i] >= 0:
            pages[cpu[vcpu, i], ROOT_COUNT] += change


@compiled
def _alloc_roots(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, births: Ints, vcpu: int) -> None:
    """``mmu_alloc_roots`` after ``init_kvm_mmu`` chose the mode: the test is EFER.LME, not LMA."""
    if not cpu[vcpu, CR0] & CR0_PG:
        level = 0
    elif cpu[vcpu, EFER] & EFER_LME:
        level = PT64_ROOT_LEVEL
    else:
        level = PT32E_ROOT_LEVEL if cpu[vcpu, CR4] & CR4_PAE else 2
    cpu[vcpu, ROOT_LEVEL] = level
    frame = frame_of(cpu[vcpu, CR3])
    root = cpu[vcpu, CR3] >> ROOT_SHIFT & _ROOTS if level == PT32E_ROOT_LEVEL else frame << _TO_ROOT
    add(vm, journal, _SWITCHED, level, root & 0xFFFF_FFFF, root >> 32)
    _wanted_roots(vm, cpu, vcpu, level, frame)
    if _reuse(vm, cpu, vcpu):
        vm.roots_reused += 1
        return
    if cpu[vcpu, KEPT] > vm.keep_roots:
        cpu[vcpu, KEPT] -= 1
        _count_roots(cpu, pages, vcpu, KEEP + KEEP_WORDS * cpu[vcpu, KEPT], -1)
    for i in range(1 if level == PT64_ROOT_LEVEL else 4):
        gfn = cpu[vcpu, ROOT_KEY + 1 + i]
        if gfn >= 0:
            page = _root_page(vm, cpu, pages, nodes, frames, journal, births, vcpu, gfn, i)
            cpu[vcpu, ROOT + i] = page
            if page >= 0:
                pages[page, ROOT_COUNT] += 1


@compiled
def _wanted_roots(vm: Any, cpu: Ints, vcpu: int, level: int, frame: int) -> None:
    """The frames the roots stand for, into the vCPU's key; -1 for one that is left out."""
    cpu[vcpu, ROOT_KEY] = level
    for i in range(4):
        gfn = frame
        if level == PT32E_ROOT_LEVEL:
            # 2.6.20 makes a root of an absent PDPTE too: of frame 0, where it is all zero.
            pdpte = cpu[vcpu, PDPTR + i]
            gfn = -1 if vm.skip_absent_pdptes and not pdpte & PRESENT else frame_of(pdpte)
        elif level == 0:
            gfn = 0
        elif level == PT64_ROOT_LEVEL and i:
            gfn = -1
        cpu[vcpu, ROOT_KEY + 1 + i] = gfn


@compiled
def _reuse(vm: Any, cpu: Ints, vcpu: int) -> bool:
    """Take the newest kept roots of the same key, if there are any."""
    for kept in range(cpu[vcpu, KEPT]):
        at = KEEP + KEEP_WORDS * kept
        same = True
        for i in range(_KEY_WORDS):
            same &= cpu[vcpu, at + _KEY_AT + i] == cpu[vcpu, ROOT_KEY + i]
        if same:
            for i in range(4):
                cpu[vcpu, ROOT + i] = cpu[vcpu, at + i]
            for i in range(at, KEEP + KEEP_WORDS * (cpu[vcpu, KEPT] - 1)):
                cpu[vcpu, i] = cpu[vcpu, i + KEEP_WORDS]
            cpu[vcpu, KEPT] -= 1
            return True
    return False


@compiled
def _root_page(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, births: Ints, vcpu: int, gfn: int, i: int) -> int:
    root_level = cpu[vcpu, ROOT_LEVEL]
    if root_level and gfn >= vm.ram_pages:
        vm.corner_root_outside_ram += 1
    level = PT64_ROOT_LEVEL if root_level == PT64_ROOT_LEVEL else PT_DIRECTORY_LEVEL
    role = role_of(root_level, i << 30, level, 0 if root_level else 1)
    if not vm.free_pages:
        # A mode change has no eviction of its own: where 2.6.20 would meet an empty free list, evict first.
        if not vm.caching:
            take_from_all(vm, cpu, pages, nodes, frames, journal)
        elif find_page(pages, frames, gfn, role) < 0:
            vm.corner_roots_without_free_page += 1
            free_some_pages(vm, pages, nodes, frames, journal)
    vm.get_page_lookups += 1
    page = get_page(vm, pages, nodes, frames, journal, births, gfn, role, -1, vcpu, NO_PAGE)
    if page < 0:
        vm.corner_out_of_pages += 1
    return page


@compiled
def take_from_all(vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints) -> None:
    """Without caching, where the free list is low: drop what the vCPUs do not stand on."""
    if vm.free_pages < vm.min_free:
        for vcpu in range(len(cpu)):
            drop_pages(vm, pages, nodes, frames, journal, vcpu)


@compiled
def role_of(root_level: int, va: int, level: int, metaphysical: int) -> int:
    """The role word (``analyzer.model.role``) of a table at ``level`` for an address, in a mode."""
    quadrant = 0 if root_level > 2 else va >> 12 + 9 * level & (1 << level) - 1
    return root_level | level << 4 | quadrant << 8 | metaphysical << 16


@compiled
def root_for(cpu: Ints, vcpu: int, va: int) -> int:
    """The shadow root for an address; -1 where it was left out."""
    return cpu[vcpu, ROOT] if cpu[vcpu, ROOT_LEVEL] == PT64_ROOT_LEVEL else cpu[vcpu, ROOT + (va >> 30 & 3)]


@compiled
def table_page(
    vm: Any, cpu: Ints, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, births: Ints,
    vcpu: int, gfn: int, va: int, level: int, metaphysical: int, parent: int,
) -> int:  # fmt: skip
    """``_get_page`` for a table under a root: counted, told which root its walk began at."""
    vm.get_page_lookups += 1
    role = role_of(cpu[vcpu, ROOT_LEVEL], va, level, metaphysical)
    return get_page(vm, pages, nodes, frames, journal, births, gfn, role, parent, vcpu, pages[root_for(cpu, vcpu, va), BIRTH])
