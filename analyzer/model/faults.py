"""Page faults (part 6 of the design): the guest is walked, the shadow built, the leaf repaired."""

from __future__ import annotations

from analyzer.model.cache import ShadowPage
from analyzer.model.context import (
    PFERR_USER,
    PFERR_WRITE,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    PT_SHADOW_BITS_OFFSET,
    PT_SHADOW_IO_MARK,
    PT_SHADOW_PS_MARK,
    PT_SHADOW_USER_MASK,
    PT_SHADOW_WRITABLE_MASK,
    Context,
)
from analyzer.model.roots import RootedMmu
from analyzer.model.walk import Walk, walk_addr
from x86.paging import ACCESSED, BASE32, BASE64, DIRTY, GLOBAL, NX, PAGE_SHIFT, PRESENT, USER, WRITABLE
from x86.registers import CR0_WP

PT32_PTE_COPY_MASK = PRESENT | ACCESSED | DIRTY | GLOBAL
PT64_PTE_COPY_MASK = PT32_PTE_COPY_MASK | NX


class FaultingMmu(RootedMmu):
    """An MMU that answers page faults."""

    def _page_fault(self, context: Context, va: int, error: int) -> bool:
        """``kvm_mmu_page_fault``: whether the instruction has to be emulated."""
        if len(self.cache.free) < self.parameters.min_free:
            self._refill(context)
        if context.root_level == 0:
            return self._nonpaging_page_fault(context, va)
        return self._paging_page_fault(context, va, error)

    def _refill(self, context: Context) -> None:
        """The free list is low: evict; without a cache, start this vCPU anew and take from the others what they do not stand on."""
        if self.parameters.caching:
            self.cache.free_some_pages()
            return
        self._reset_context(context)
        self._take_from_all()

    def _nonpaging_page_fault(self, context: Context, va: int) -> bool:
        """``nonpaging_map``: identity, never write-protected, whoever shadows the frame (part 10.6)."""
        gfn = va >> PAGE_SHIFT
        if not self.memory.is_ram(gfn):
            return True
        root, _ = self._root_for(context, va)
        table = None if root is None else self._nonpaging_table(context, root, va)
        if table is None:
            self.counters.corner_out_of_pages += 1
            return False
        leaf = table.index << 9 | gfn & 511
        if self.cache.spte(leaf) & (PRESENT | WRITABLE) != PRESENT | WRITABLE:
            self.cache.set_spte(leaf, gfn << PAGE_SHIFT | PRESENT | WRITABLE | USER)
            self.counters.fills_leaf += 1
            self.cache.rmap_add(leaf)
        return False

    def _nonpaging_table(self, context: Context, root: ShadowPage, va: int) -> ShadowPage | None:
        index = va >> 21 & 511
        if root.entries[index]:
            return self.cache.child(root.entries[index])
        gfn = (va & ~0x1F_FFFF) >> PAGE_SHIFT
        table = self._get_page(context, gfn, va, PT_PAGE_TABLE_LEVEL, True, root.index << 9 | index)
        if table is not None:
            root.entries[index] = table.index << PAGE_SHIFT | PRESENT | WRITABLE | USER
            self.counters.fills_table += 1
        return table

    def _paging_page_fault(self, context: Context, va: int, error: int) -> bool:
        """``page_fault`` of paging_tmpl.h: walk the guest, build the shadow, repair the leaf."""
        walk = walk_addr(self.memory, context, va, error)
        if walk is None:
            self.counters.kvm_stat_pf_guest += 1
            self._forget_flood(context)
            return False
        leaf = self._fetch(context, va, walk)
        if leaf is None:
            if self._root_for(context, va)[0] is None and self.cache.free:
                self.counters.corner_no_root += 1
            else:
                self.counters.corner_out_of_pages += 1
            return False
        emulate = False
        if error & PFERR_WRITE:
            emulate = self._fix_write_pf(context, leaf, walk, bool(error & PFERR_USER))
        else:
            self._fix_read_pf(leaf)
        if not emulate:
            self._forget_flood(context)
        if self.cache.spte(leaf) & PT_SHADOW_IO_MARK:
            return True
        self.counters.kvm_stat_pf_fixed += 1
        return emulate

    def _forget_flood(self, context: Context) -> None:
        if self.parameters.flood_reset_by_faults:
            context.last_pt_write_count = 0

    def _fetch(self, context: Context, va: int, walk: Walk) -> int | None:
        """``fetch``: the spte address of the leaf for ``va``, with every level above it made where it was missing."""
        page, level = self._root_for(context, va)
        above: int | None = None
        while page is not None:
            address = page.index << 9 | va >> 9 * level + 3 & 511
            entry = self.cache.spte(address)
            if level == PT_PAGE_TABLE_LEVEL:
                if not entry & (PRESENT | PT_SHADOW_IO_MARK):
                    if walk.level == PT_DIRECTORY_LEVEL and above is not None:
                        self.cache.set_spte(above, self.cache.spte(above) | PT_SHADOW_PS_MARK)
                    self._set_leaf(context, address, walk)
                return address
            made = entry & (PRESENT | PT_SHADOW_PS_MARK)
            page = self.cache.child(entry) if made else self._link_table(context, va, walk, level, address)
            above = address
            level -= 1
        return None

    def _link_table(self, context: Context, va: int, walk: Walk, level: int, address: int) -> ShadowPage | None:
        """Make the entry at ``address`` point to the shadow of the guest's next table, or of a big page."""
        metaphysical = level == PT_DIRECTORY_LEVEL and walk.level == PT_DIRECTORY_LEVEL
        if metaphysical:
            # The whole address field: PAT and PSE-36 bits become low bits of the key.
            base = BASE32 if context.root_level == PT_DIRECTORY_LEVEL else BASE64
            gfn = (walk.entry & base) >> PAGE_SHIFT
        else:
            gfn = walk.table_gfn[level - 1]
        page = self._get_page(context, gfn, va, level - 1, metaphysical, address)
        if page is not None:
            self.cache.set_spte(address, page.index << PAGE_SHIFT | PRESENT | ACCESSED | WRITABLE | USER)
            self.counters.fills_table += 1
        return page

    def _set_leaf(self, context: Context, address: int, walk: Walk) -> None:
        """``set_pte_common``: all rights are in the leaf, from the walk that made it."""
        entry = walk.entry
        access = walk.inherited & entry & (WRITABLE | USER)
        spte = entry & (PT32_PTE_COPY_MASK if context.root_level == PT_DIRECTORY_LEVEL else PT64_PTE_COPY_MASK)
        spte |= access << PT_SHADOW_BITS_OFFSET
        if not entry & DIRTY:
            access &= ~WRITABLE
        spte |= access
        gpa = walk.gfn << PAGE_SHIFT
        if walk.level == PT_DIRECTORY_LEVEL and context.root_level == PT_DIRECTORY_LEVEL:
            gpa |= (entry >> 13 & 15) << 32
        spte |= gpa
        self.counters.fills_leaf += 1
        if not self.memory.is_ram(gpa >> PAGE_SHIFT):
            self.cache.set_spte(address, (spte | PT_SHADOW_IO_MARK) & ~PRESENT)
            return
        if access & WRITABLE and self.cache.lookup_page(walk.gfn) is not None:
            spte &= ~WRITABLE
            self.counters.mode_arch_tlb_flush += 1
        self.cache.set_spte(address, spte)
        self.cache.rmap_add(address)

    def _fix_read_pf(self, leaf: int) -> None:
        """``fix_read_pf``: a page that a supervisor store took from the user gets its U back and loses W (part 10.4)."""
        spte = self.cache.spte(leaf)
        if spte & PT_SHADOW_USER_MASK and not spte & USER:
            self.cache.set_spte(leaf, (spte | USER) & ~WRITABLE)

    def _fix_write_pf(self, context: Context, leaf: int, walk: Walk, user: bool) -> bool:
        """``fix_write_pf``: let the store through, or answer that it has to be emulated."""
        cache = self.cache
        spte = cache.spte(leaf)
        if spte & WRITABLE:
            return False
        if user:
            if spte & (PT_SHADOW_USER_MASK | PT_SHADOW_WRITABLE_MASK) != PT_SHADOW_USER_MASK | PT_SHADOW_WRITABLE_MASK:
                return False
        elif not spte & PT_SHADOW_WRITABLE_MASK:
            if context.cr0 & CR0_WP:
                return False
            cache.set_spte(leaf, spte & ~USER)
        entry_bytes = 4 if context.root_level == PT_DIRECTORY_LEVEL else 8
        entry = self.memory.read(walk.entry_gpa, entry_bytes)
        if not entry & PRESENT:
            cache.set_spte(leaf, 0)
            return False
        emulate = False
        if user:
            emulate = self._user_store_to(walk.gfn)
            if not cache.pages[leaf >> 9].live or not cache.spte(leaf):
                self.counters.corner_leaf_zapped_by_store += 1
                return False
        elif cache.lookup_page(walk.gfn) is not None:
            emulate = True
        if not emulate:
            spte = cache.spte(leaf)
            cache.set_spte(leaf, spte | WRITABLE)
            if spte & PRESENT and (spte & BASE64) >> PAGE_SHIFT != walk.gfn:
                # The leaf is older than the guest's entry: the question was asked of another frame than it maps.
                self.counters.corner_stale_leaf_written += 1
                self.stale_writable[leaf] = (spte & BASE64) >> PAGE_SHIFT
        self.memory.write(walk.entry_gpa, entry_bytes, entry | DIRTY)
        if not emulate:
            cache.rmap_add(leaf)
        return emulate

    def _user_store_to(self, gfn: int) -> bool:
        """143646567f: a user store cannot be a page-table update, so the frame is no table any more: zap its pages.

        A root in use cannot go. 2.6.20 would try for ever; here the store is then emulated: the answer is true.
        """
        for page in self.cache.shadows(gfn):
            self.cache.zap_page(page, "user_fault")
        if self.cache.lookup_page(gfn) is None:
            return False
        self.counters.corner_user_store_to_root += 1
        return True
