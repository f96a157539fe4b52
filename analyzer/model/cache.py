"""The shadow page cache: pages, hash table, parents in pte chains, reverse map, zapping and eviction.

cea0f0e7ea "MMU: Shadow page table caching" and what 2.6.20 added to it. Names are the kernel's. An address of a shadow
entry (``spte`` address) is ``page.index << 9 | entry index``; a present entry above level 1 holds its child's index from
bit 12 up, as the kernel's holds the child's host frame.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from analyzer.model.counters import Counters
from analyzer.model.journal import AS_ROOT, CAUSES, NO_PAGE, JournalWriter, What
from analyzer.model.parameters import Parameters
from analyzer.model.role import METAPHYSICAL, unpack
from x86.paging import BASE64, PAGE_SHIFT, PRESENT, WRITABLE

NR_PTE_CHAIN_ENTRIES = 5
RMAP_EXT = 4
PT64_ENT_PER_PAGE = 512

_GOLDEN_RATIO_64 = 0x61C8_8646_80B5_83EB


class ShadowPage:
    """``struct kvm_mmu_page``: one shadow table of 512 entries.

    Parents are spte addresses: ``parent_pte`` for one, ``parent_ptes`` (pte chains, first chain first) when ``multimapped``.
    """

    __slots__ = (
        "birth",
        "entries",
        "gfn",
        "index",
        "level",
        "live",
        "multimapped",
        "owner",
        "parent_pte",
        "parent_ptes",
        "role",
        "root_count",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.birth = NO_PAGE
        self.gfn = 0
        self.role = 0
        self.level = 0
        self.entries = [0] * PT64_ENT_PER_PAGE
        self.multimapped = False
        self.parent_pte: int | None = None
        self.parent_ptes: list[list[int]] = []
        self.root_count = 0
        self.live = False
        self.owner = 0

    def parents(self) -> list[int]:
        """Every parent's spte address, in the order the kernel would meet them."""
        if self.multimapped:
            return [parent for chain in self.parent_ptes for parent in chain]
        return [] if self.parent_pte is None else [self.parent_pte]


def hash_function(parameters: Parameters) -> Callable[[int], int]:
    """``kvm_page_table_hashfn``: from a gfn to its bucket."""
    buckets = parameters.buckets
    if parameters.hash == "mod":
        return lambda gfn: gfn % buckets
    shift = 64 - (buckets.bit_length() - 1)
    return lambda gfn: (gfn * _GOLDEN_RATIO_64 & (1 << 64) - 1) >> shift


class ShadowCache:
    """The pages of one virtual machine, whatever its vCPUs: what ``struct kvm`` holds of the MMU."""

    def __init__(self, parameters: Parameters, counters: Counters, journal: JournalWriter) -> None:
        self.parameters = parameters
        self.counters = counters
        self.journal = journal
        self.pages = [ShadowPage(index) for index in range(parameters.pages)]
        #: LIFO: the next page to be taken is the last.
        self.free = self.pages[::-1]
        #: ``active_mmu_pages``, the newest last.
        self.active: OrderedDict[int, ShadowPage] = OrderedDict()
        #: ``mmu_page_hash``: each bucket newest first.
        self.buckets: list[list[ShadowPage]] = [[] for _ in range(parameters.buckets)]
        self.hashfn = hash_function(parameters)
        #: Frame to its writable present leaves: one address, or descriptors of up to ``RMAP_EXT``.
        self.rmap: dict[int, int | list[list[int]]] = {}

    # -- lookup and allocation -------------------------------------------------------------------------------------

    def lookup_page(self, gfn: int) -> ShadowPage | None:
        """``kvm_mmu_lookup_page``: the newest non-metaphysical page of the frame: is it shadowed?"""
        for page in self.buckets[self.hashfn(gfn)]:
            if page.gfn == gfn and not page.role & METAPHYSICAL:
                return page
        return None

    def shadows(self, gfn: int) -> list[ShadowPage]:
        """Every non-metaphysical page of the frame, newest first."""
        return [page for page in self.buckets[self.hashfn(gfn)] if page.gfn == gfn and not page.role & METAPHYSICAL]

    def get_page(self, gfn: int, role: int, parent: int | None, owner: int, root: int = NO_PAGE) -> ShadowPage | None:
        """``kvm_mmu_get_page``: the page of this key, found or made, with ``parent`` among its parents.

        ``owner`` is the vCPU that asks, ``root`` the birth number of the root its walk began at. ``None`` when a page had to be made and the free list is empty.
        """
        if self.parameters.caching:
            for page in self.buckets[self.hashfn(gfn)]:
                if page.gfn == gfn and page.role == role:
                    self.counters.get_page_hits += 1
                    self.journal.add(What.HIT, AS_ROOT if parent is None else 0, page.birth, root)
                    if parent is not None:
                        self.add_parent(page, parent)
                    return page
        if not self.free:
            return None
        self.counters.get_page_misses += 1
        page = self._alloc_page(gfn, role, parent, owner, root)
        if self.parameters.caching:
            self.buckets[self.hashfn(gfn)].insert(0, page)
            if not role & METAPHYSICAL:
                self.rmap_write_protect(gfn)
        return page

    def _alloc_page(self, gfn: int, role: int, parent: int | None, owner: int, root: int) -> ShadowPage:
        page = self.free.pop()
        self.active[page.index] = page
        page.gfn, page.role, page.level = gfn, role, unpack(role).level
        page.multimapped, page.parent_pte, page.parent_ptes = False, parent, []
        page.live, page.owner = True, owner
        page.birth = self.journal.born(gfn, role)
        self.journal.add(What.ALLOC, AS_ROOT if parent is None else 0, page.birth, root)
        if parent is not None:
            self._linked(page, parent)
        return page

    def _linked(self, page: ShadowPage, parent: int) -> None:
        self.journal.add(What.LINKED, 0, page.birth, self.pages[parent >> 9].birth)

    def _unlinked(self, page: ShadowPage, parent: int) -> None:
        self.journal.add(What.UNLINKED, 0, page.birth, self.pages[parent >> 9].birth)

    def spte(self, address: int) -> int:
        """The shadow entry at an spte address."""
        return self.pages[address >> 9].entries[address & 511]

    def set_spte(self, address: int, value: int) -> None:
        """Store a shadow entry."""
        self.pages[address >> 9].entries[address & 511] = value

    def child(self, entry: int) -> ShadowPage:
        """The page that a present entry above level 1 points to."""
        return self.pages[entry >> PAGE_SHIFT]

    # -- parents ---------------------------------------------------------------------------------------------------

    def add_parent(self, page: ShadowPage, parent: int) -> None:
        """``mmu_page_add_parent_pte``: a second parent turns ``parent_pte`` into pte chains of five."""
        counters = self.counters
        self._linked(page, parent)
        if not page.multimapped:
            if page.parent_pte is None:
                page.parent_pte = parent
                return
            page.multimapped = True
            counters.multimapped_end += 1
            counters.multimapped_peak = max(counters.multimapped_peak, counters.multimapped_end)
            page.parent_ptes = [[page.parent_pte]]
            page.parent_pte = None
            self._count_chain()
        for chain in page.parent_ptes:
            if len(chain) < NR_PTE_CHAIN_ENTRIES:
                chain.append(parent)
                return
        page.parent_ptes.insert(0, [parent])
        self._count_chain()

    def _count_chain(self) -> None:
        counters = self.counters
        counters.pte_chain_allocated += 1
        counters.pte_chain_live_end += 1
        counters.pte_chain_live_peak = max(counters.pte_chain_live_peak, counters.pte_chain_live_end)

    def remove_parent(self, page: ShadowPage, parent: int) -> None:
        """``mmu_page_remove_parent_pte``. A page with one parent left stays multimapped; chains are never merged."""
        if not page.multimapped:
            if page.parent_pte != parent:
                raise AssertionError(f"{parent:#x} is not the parent of page {page.index}")
            page.parent_pte = None
            self._unlinked(page, parent)
            return
        for position, chain in enumerate(page.parent_ptes):
            if parent not in chain:
                continue
            chain.remove(parent)
            self._unlinked(page, parent)
            if not chain:
                del page.parent_ptes[position]
                self.counters.pte_chain_freed += 1
                self.counters.pte_chain_live_end -= 1
                if not page.parent_ptes:
                    page.multimapped = False
                    self.counters.multimapped_end -= 1
            return
        raise AssertionError(f"{parent:#x} is not among the parents of page {page.index}")

    # -- reverse map -----------------------------------------------------------------------------------------------

    def rmap_add(self, address: int) -> None:
        """Note a leaf that is present and writable in its frame's reverse map; others are not in it."""
        spte = self.spte(address)
        if spte & (PRESENT | WRITABLE) != PRESENT | WRITABLE:
            return
        frame = (spte & BASE64) >> PAGE_SHIFT
        known = self.rmap.get(frame)
        if known is None:
            self.rmap[frame] = address
        elif isinstance(known, int):
            self.rmap[frame] = [[known, address]]
            self.counters.rmap_desc_allocated += 1
        else:
            descriptor = next((d for d in known if len(d) < RMAP_EXT), None)
            if descriptor is None:
                known.append([address])
                self.counters.rmap_desc_allocated += 1
            else:
                descriptor.append(address)

    def rmap_remove(self, address: int) -> None:
        """Take a leaf out of its frame's reverse map; acts only on entries that are present and writable."""
        spte = self.spte(address)
        if spte & (PRESENT | WRITABLE) == PRESENT | WRITABLE:
            self._rmap_drop((spte & BASE64) >> PAGE_SHIFT, address)

    def _rmap_drop(self, frame: int, address: int) -> None:
        known = self.rmap.get(frame)
        if isinstance(known, int) and known == address:
            del self.rmap[frame]
            return
        if isinstance(known, list):
            for position, descriptor in enumerate(known):
                if address not in descriptor:
                    continue
                last = descriptor.pop()
                if last != address:
                    descriptor[descriptor.index(address)] = last
                if not descriptor:
                    del known[position]
                    self.counters.rmap_desc_freed += 1
                    if not known:
                        del self.rmap[frame]
                return
        self.counters.corner_stale_rmap += 1

    def rmap_write_protect(self, gfn: int) -> None:
        """374cbac033: no writable leaf maps a frame once a shadow page stands for it."""
        while (known := self.rmap.get(gfn)) is not None:
            address = known if isinstance(known, int) else known[0][0]
            self._rmap_drop(gfn, address)
            spte = self.spte(address)
            if spte & (PRESENT | WRITABLE) != PRESENT | WRITABLE or (spte & BASE64) >> PAGE_SHIFT != gfn:
                self.counters.corner_stale_rmap += 1
                continue
            self.counters.mode_arch_tlb_flush += 1
            self.counters.rmap_write_protected_sptes += 1
            self.set_spte(address, spte & ~WRITABLE)

    # -- zapping and eviction --------------------------------------------------------------------------------------

    def zap_page(self, page: ShadowPage, cause: str) -> None:
        """``kvm_mmu_zap_page``: unlink parents and children; free the page, or keep it emptied if it is a root in use.

        Not recursive: children stay in the cache, possibly as orphans. ``cause`` is the ``zaps_<cause>`` counted.
        """
        counters = self.counters
        counters.zaps_total += 1
        setattr(counters, f"zaps_{cause}", getattr(counters, f"zaps_{cause}") + 1)
        while (parent := self._first_parent(page)) is not None:
            self.remove_parent(page, parent)
            self.set_spte(parent, 0)
        self._unlink_children(page)
        if page.root_count:
            counters.zaps_root_kept += 1
            self.journal.add(What.ZAP_ROOT_KEPT, CAUSES.index(cause), page.birth, NO_PAGE)
            self.active.move_to_end(page.index)
            return
        counters.zaps_freed += 1
        del self.active[page.index]
        if self.parameters.caching:
            self.buckets[self.hashfn(page.gfn)].remove(page)
        page.live = False
        self.free.append(page)
        self.journal.add(What.ZAP_FREED, CAUSES.index(cause), page.birth, NO_PAGE)

    @staticmethod
    def _first_parent(page: ShadowPage) -> int | None:
        return page.parent_ptes[0][0] if page.multimapped else page.parent_pte

    def _unlink_children(self, page: ShadowPage) -> None:
        entries = page.entries
        base = page.index << 9
        if page.level == 1:
            for index, entry in enumerate(entries):
                if entry & PRESENT:
                    self.rmap_remove(base | index)
            page.entries = [0] * PT64_ENT_PER_PAGE
            self.counters.mode_arch_tlb_flush += 1
            return
        page.entries = [0] * PT64_ENT_PER_PAGE
        for index, entry in enumerate(entries):
            if entry & PRESENT:
                self.remove_parent(self.child(entry), base | index)

    def free_some_pages(self) -> None:
        """``kvm_mmu_free_some_pages``: zap the oldest page until ``refill`` are free. Hits do not make a page younger."""
        counters = self.counters
        counters.evictions_calls += 1
        kept = 0
        while len(self.free) < self.parameters.refill and kept < len(self.active):
            page = next(iter(self.active.values()))
            counters.evictions_zaps += 1
            self.zap_page(page, "evict")
            if page.live:
                kept += 1
            else:
                kept = 0
                counters.evictions_freed += 1

    def drop_pages(self, owner: int) -> None:
        """Without caching: zap every page of a vCPU that is no root in use."""
        for page in [page for page in self.active.values() if page.owner == owner and not page.root_count]:
            self.zap_page(page, "dropped")
