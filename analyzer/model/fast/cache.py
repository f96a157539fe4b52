"""The shadow page cache over arrays: ``analyzer.model.cache``, function by function.

The hash table itself is not here: each frame knows its pages, in the order in which they stand in their bucket, which no
look-up can tell from a walk of the bucket. How long the buckets are is counted at the end.
"""

from __future__ import annotations

from typing import Any

from analyzer.model.cache import NR_PTE_CHAIN_ENTRIES, RMAP_EXT
from analyzer.model.fast.compiled import compiled
from analyzer.model.fast.frames import find, frame_of, known
from analyzer.model.fast.layout import (
    BIRTH,
    CHAINS,
    ENTRIES,
    GFN,
    LEVEL,
    LINK,
    LIVE,
    NEWER,
    NEXT,
    OLDER,
    OWNER,
    PARENT,
    RMAP,
    ROLE,
    ROOT_COUNT,
    SHADOWS,
    SLOT,
    USED,
    Ints,
)
from analyzer.model.journal import AS_ROOT, CAUSES, NO_PAGE, What
from analyzer.model.role import METAPHYSICAL
from x86.paging import BASE64, PRESENT, WRITABLE

_MADE, _FOUND, _LINKED, _UNLINKED = int(What.ALLOC), int(What.HIT), int(What.LINKED), int(What.UNLINKED)
_DIED, _EMPTIED = int(What.ZAP_FREED), int(What.ZAP_ROOT_KEPT)

MISALIGNED, FLOOD, MISALIGNED_AND_FLOOD, USER_FAULT, EVICT, DROPPED = range(len(CAUSES))

_PW = PRESENT | WRITABLE


@compiled
def add(vm: Any, journal: Ints, what: int, cause: int, page: int, other: int) -> None:
    """Write a row of the journal (``JournalWriter.add``)."""
    journal[vm.rows, 0] = vm.event | what << 32 | vm.vcpu << 40 | cause << 48
    journal[vm.rows, 1] = page | other << 32
    vm.rows += 1


@compiled
def lookup_page(pages: Ints, frames: Ints, gfn: int) -> int:
    """``kvm_mmu_lookup_page``: the newest non-metaphysical page of the frame, or -1."""
    page = frames[find(frames, gfn), SHADOWS] - 1
    while page >= 0 and pages[page, ROLE] & METAPHYSICAL:
        page = pages[page, NEXT]
    return page


@compiled
def next_shadow(pages: Ints, page: int) -> int:
    """The next older non-metaphysical page of the same frame, or -1."""
    page = pages[page, NEXT]
    while page >= 0 and pages[page, ROLE] & METAPHYSICAL:
        page = pages[page, NEXT]
    return page


@compiled
def find_page(pages: Ints, frames: Ints, gfn: int, role: int) -> int:
    """The page of this key, or -1."""
    page = frames[find(frames, gfn), SHADOWS] - 1
    while page >= 0 and pages[page, ROLE] != role:
        page = pages[page, NEXT]
    return page


@compiled
def get_page(
    vm: Any, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, births: Ints,
    gfn: int, role: int, parent: int, owner: int, root: int,
) -> int:  # fmt: skip
    """``kvm_mmu_get_page``. ``parent`` is -1 for a root; the answer is -1 when the free list is empty."""
    as_root = AS_ROOT if parent < 0 else 0
    if vm.caching:
        page = find_page(pages, frames, gfn, role)
        if page >= 0:
            vm.get_page_hits += 1
            add(vm, journal, _FOUND, as_root, pages[page, BIRTH], root)
            if parent >= 0:
                add_parent(vm, pages, nodes, journal, page, parent)
            return page
    if vm.free_pages == 0:
        return -1
    vm.get_page_misses += 1
    page = _alloc_page(vm, pages, births, gfn, role, parent, owner)
    add(vm, journal, _MADE, as_root, pages[page, BIRTH], root)
    if parent >= 0:
        vm.links += 1
        add(vm, journal, _LINKED, 0, pages[page, BIRTH], pages[parent >> 9, BIRTH])
    if vm.caching:
        row = known(vm, frames, gfn)
        pages[page, NEXT] = frames[row, SHADOWS] - 1
        frames[row, SHADOWS] = page + 1
        if not role & METAPHYSICAL:
            rmap_write_protect(vm, pages, nodes, frames, gfn)
    return page


@compiled
def _alloc_page(vm: Any, pages: Ints, births: Ints, gfn: int, role: int, parent: int, owner: int) -> int:
    page = vm.free
    vm.free = pages[page, NEXT]
    vm.free_pages -= 1
    _activate(vm, pages, page)
    pages[page, GFN] = gfn
    pages[page, ROLE] = role
    pages[page, LEVEL] = role >> 4 & 15
    pages[page, PARENT] = parent + 1
    pages[page, LIVE] = 1
    pages[page, OWNER] = owner
    pages[page, BIRTH] = vm.births
    births[vm.births_kept, 0] = gfn
    births[vm.births_kept, 1] = role
    vm.births += 1
    vm.births_kept += 1
    return page


@compiled
def _activate(vm: Any, pages: Ints, page: int) -> None:
    """Put a page at the head of the active list: it is the newest."""
    pages[page, NEWER] = -1
    pages[page, OLDER] = vm.newest
    if vm.newest >= 0:
        pages[vm.newest, NEWER] = page
    else:
        vm.oldest = page
    vm.newest = page
    vm.active_pages += 1


@compiled
def _deactivate(vm: Any, pages: Ints, page: int) -> None:
    newer, older = pages[page, NEWER], pages[page, OLDER]
    if newer >= 0:
        pages[newer, OLDER] = older
    else:
        vm.newest = older
    if older >= 0:
        pages[older, NEWER] = newer
    else:
        vm.oldest = newer
    vm.active_pages -= 1


# -- nodes -----------------------------------------------------------------------------------------------------------


@compiled
def _take_node(vm: Any, nodes: Ints, link: int, slot: int) -> int:
    """A node with one slot used and this one after it."""
    node = vm.free_node
    if node:
        vm.free_node = nodes[node, LINK]
    else:
        node = vm.next_node
        vm.next_node += 1
    vm.nodes += 1
    nodes[node, LINK] = link
    nodes[node, USED] = 1
    nodes[node, SLOT] = slot
    return node


@compiled
def _give_node(vm: Any, nodes: Ints, node: int) -> None:
    nodes[node, LINK] = vm.free_node
    vm.free_node = node
    vm.nodes -= 1


@compiled
def _slot_of(nodes: Ints, node: int, address: int) -> int:
    """Which slot of the node holds an address, or -1."""
    for slot in range(nodes[node, USED]):
        if nodes[node, SLOT + slot] == address:
            return slot
    return -1


# -- parents ---------------------------------------------------------------------------------------------------------


@compiled
def _take_chain(vm: Any, nodes: Ints, link: int, parent: int) -> int:
    vm.pte_chain_allocated += 1
    vm.pte_chain_live_end += 1
    vm.pte_chain_live_peak = max(vm.pte_chain_live_peak, vm.pte_chain_live_end)
    return _take_node(vm, nodes, link, parent)


@compiled
def add_parent(vm: Any, pages: Ints, nodes: Ints, journal: Ints, page: int, parent: int) -> None:
    """``mmu_page_add_parent_pte``."""
    vm.links += 1
    add(vm, journal, _LINKED, 0, pages[page, BIRTH], pages[parent >> 9, BIRTH])
    if not pages[page, CHAINS]:
        if not pages[page, PARENT]:
            pages[page, PARENT] = parent + 1
            return
        vm.multimapped_end += 1
        vm.multimapped_peak = max(vm.multimapped_peak, vm.multimapped_end)
        pages[page, CHAINS] = _take_chain(vm, nodes, 0, pages[page, PARENT] - 1)
        pages[page, PARENT] = 0
    chain = pages[page, CHAINS]
    while chain:
        used = nodes[chain, USED]
        if used < NR_PTE_CHAIN_ENTRIES:
            nodes[chain, SLOT + used] = parent
            nodes[chain, USED] = used + 1
            return
        chain = nodes[chain, LINK]
    pages[page, CHAINS] = _take_chain(vm, nodes, pages[page, CHAINS], parent)


@compiled
def remove_parent(vm: Any, pages: Ints, nodes: Ints, journal: Ints, page: int, parent: int) -> None:
    """``mmu_page_remove_parent_pte``: slots move up, an empty chain goes."""
    vm.links -= 1
    add(vm, journal, _UNLINKED, 0, pages[page, BIRTH], pages[parent >> 9, BIRTH])
    if not pages[page, CHAINS]:
        pages[page, PARENT] = 0
        return
    before, chain = 0, pages[page, CHAINS]
    slot = _slot_of(nodes, chain, parent)
    while slot < 0:
        before, chain = chain, nodes[chain, LINK]
        slot = _slot_of(nodes, chain, parent)
    used = nodes[chain, USED] - 1
    nodes[chain, USED] = used
    for i in range(slot, used):
        nodes[chain, SLOT + i] = nodes[chain, SLOT + i + 1]
    if used:
        return
    vm.pte_chain_freed += 1
    vm.pte_chain_live_end -= 1
    if before:
        nodes[before, LINK] = nodes[chain, LINK]
    else:
        pages[page, CHAINS] = nodes[chain, LINK]
        if not nodes[chain, LINK]:
            vm.multimapped_end -= 1
    _give_node(vm, nodes, chain)


# -- reverse map -----------------------------------------------------------------------------------------------------


@compiled
def rmap_add(vm: Any, pages: Ints, nodes: Ints, frames: Ints, address: int) -> None:
    """Note a leaf that is present and writable in its frame's reverse map; others are not in it."""
    spte = pages[address >> 9, address & 511]
    if spte & _PW != _PW:
        return
    row = known(vm, frames, frame_of(spte & BASE64))
    head = frames[row, RMAP]
    if not head:
        frames[row, RMAP] = address + 1 << 1
        return
    if not head & 1:
        node = _take_node(vm, nodes, 0, (head >> 1) - 1)
        nodes[node, SLOT + 1] = address
        nodes[node, USED] = 2
        frames[row, RMAP] = node << 1 | 1
        vm.rmap_desc_allocated += 1
        return
    node = head >> 1
    while nodes[node, USED] == RMAP_EXT and nodes[node, LINK]:
        node = nodes[node, LINK]
    used = nodes[node, USED]
    if used == RMAP_EXT:
        nodes[node, LINK] = _take_node(vm, nodes, 0, address)
        vm.rmap_desc_allocated += 1
        return
    nodes[node, SLOT + used] = address
    nodes[node, USED] = used + 1


@compiled
def rmap_remove(vm: Any, pages: Ints, nodes: Ints, frames: Ints, address: int) -> None:
    """Take a leaf out of its frame's reverse map; acts only on entries that are present and writable."""
    spte = pages[address >> 9, address & 511]
    if spte & _PW == _PW:
        _rmap_drop(vm, nodes, frames, frame_of(spte & BASE64), address)


@compiled
def _rmap_drop(vm: Any, nodes: Ints, frames: Ints, gfn: int, address: int) -> None:
    row = find(frames, gfn)
    head = frames[row, RMAP]
    if head == address + 1 << 1:
        frames[row, RMAP] = 0
        return
    if head & 1:
        before, node = 0, head >> 1
        while node:
            slot = _slot_of(nodes, node, address)
            if slot >= 0:
                used = nodes[node, USED] - 1
                nodes[node, SLOT + slot] = nodes[node, SLOT + used]
                nodes[node, USED] = used
                if not used:
                    vm.rmap_desc_freed += 1
                    if before:
                        nodes[before, LINK] = nodes[node, LINK]
                    else:
                        frames[row, RMAP] = nodes[node, LINK] << 1 | 1 if nodes[node, LINK] else 0
                    _give_node(vm, nodes, node)
                return
            before, node = node, nodes[node, LINK]
    vm.corner_stale_rmap += 1


@compiled
def rmap_write_protect(vm: Any, pages: Ints, nodes: Ints, frames: Ints, gfn: int) -> None:
    """374cbac033: no writable leaf maps a frame once a shadow page stands for it."""
    row = find(frames, gfn)
    while frames[row, RMAP]:
        head = frames[row, RMAP]
        address = nodes[head >> 1, SLOT] if head & 1 else (head >> 1) - 1
        _rmap_drop(vm, nodes, frames, gfn, address)
        spte = pages[address >> 9, address & 511]
        if spte & _PW != _PW or frame_of(spte & BASE64) != gfn:
            vm.corner_stale_rmap += 1
            continue
        vm.mode_arch_tlb_flush += 1
        vm.rmap_write_protected_sptes += 1
        pages[address >> 9, address & 511] = spte & ~WRITABLE


# -- zapping and eviction --------------------------------------------------------------------------------------------


@compiled
def zap_page(vm: Any, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, page: int, cause: int) -> None:
    """``kvm_mmu_zap_page``: unlink parents and children; free the page, or keep it emptied if it is a root in use."""
    _count_zap(vm, cause)
    while pages[page, PARENT] or pages[page, CHAINS]:
        parent = nodes[pages[page, CHAINS], SLOT] if pages[page, CHAINS] else pages[page, PARENT] - 1
        remove_parent(vm, pages, nodes, journal, page, parent)
        pages[parent >> 9, parent & 511] = 0
    _unlink_children(vm, pages, nodes, frames, journal, page)
    _deactivate(vm, pages, page)
    if pages[page, ROOT_COUNT]:
        vm.zaps_root_kept += 1
        add(vm, journal, _EMPTIED, cause, pages[page, BIRTH], NO_PAGE)
        _activate(vm, pages, page)
        return
    vm.zaps_freed += 1
    if vm.caching:
        _unhash(pages, frames, page)
    pages[page, LIVE] = 0
    pages[page, NEXT] = vm.free
    vm.free = page
    vm.free_pages += 1
    add(vm, journal, _DIED, cause, pages[page, BIRTH], NO_PAGE)


@compiled
def _count_zap(vm: Any, cause: int) -> None:
    vm.zaps_total += 1
    if cause == MISALIGNED:
        vm.zaps_misaligned += 1
    elif cause == FLOOD:
        vm.zaps_flood += 1
    elif cause == MISALIGNED_AND_FLOOD:
        vm.zaps_misaligned_and_flood += 1
    elif cause == USER_FAULT:
        vm.zaps_user_fault += 1
    elif cause == EVICT:
        vm.zaps_evict += 1
    else:
        vm.zaps_dropped += 1


@compiled
def _unhash(pages: Ints, frames: Ints, page: int) -> None:
    row = find(frames, pages[page, GFN])
    newer = frames[row, SHADOWS] - 1
    if newer == page:
        frames[row, SHADOWS] = pages[page, NEXT] + 1
        return
    while pages[newer, NEXT] != page:
        newer = pages[newer, NEXT]
    pages[newer, NEXT] = pages[page, NEXT]


@compiled
def _unlink_children(vm: Any, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, page: int) -> None:
    leaves = pages[page, LEVEL] == 1
    for index in range(ENTRIES):
        entry = pages[page, index]
        if not entry:
            continue
        if entry & PRESENT:
            if leaves:
                rmap_remove(vm, pages, nodes, frames, page << 9 | index)
            else:
                remove_parent(vm, pages, nodes, journal, entry >> 12, page << 9 | index)
        pages[page, index] = 0
    if leaves:
        vm.mode_arch_tlb_flush += 1


@compiled
def free_some_pages(vm: Any, pages: Ints, nodes: Ints, frames: Ints, journal: Ints) -> None:
    """``kvm_mmu_free_some_pages``: zap the oldest page until ``refill`` are free. Hits do not make a page younger."""
    vm.evictions_calls += 1
    kept = 0
    while vm.free_pages < vm.refill and kept < vm.active_pages:
        page = vm.oldest
        vm.evictions_zaps += 1
        zap_page(vm, pages, nodes, frames, journal, page, EVICT)
        if pages[page, LIVE]:
            kept += 1
        else:
            kept = 0
            vm.evictions_freed += 1


@compiled
def drop_pages(vm: Any, pages: Ints, nodes: Ints, frames: Ints, journal: Ints, owner: int) -> None:
    """Without caching: zap every page of a vCPU that is no root in use."""
    page = vm.oldest
    while page >= 0:
        newer = pages[page, NEWER]
        if pages[page, OWNER] == owner and not pages[page, ROOT_COUNT]:
            zap_page(vm, pages, nodes, frames, journal, page, DROPPED)
        page = newer
