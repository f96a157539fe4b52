"""The shadow MMU around the cache, as Linux 2.6.20 had it on VMX: events in, stores to shadowed pages, the hardware's walk.

One ``Mmu`` is one virtual machine: one cache, one ``Context`` for each vCPU. It takes events (``regs``, ``cr3``, ``write``,
``page``, ``access``, ``invlpg``) and counts. Functions that stand for a kernel function say which.
"""

from __future__ import annotations

from analyzer.model.cache import ShadowPage
from analyzer.model.context import (
    PFERR_FETCH,
    PFERR_PRESENT,
    PFERR_USER,
    PFERR_WRITE,
    PT64_ROOT_LEVEL,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    Context,
)
from analyzer.model.faults import FaultingMmu
from analyzer.model.journal import FLOODED, NO_PAGE, Fault, What
from x86.paging import NX, PAGE_BYTES, PAGE_SHIFT, PRESENT, USER, WRITABLE
from x86.registers import CR0_PG, EFER_NX


class Mmu(FaultingMmu):
    """The model: feed it events, read ``counters``, ``journal`` and ``cache`` at any time."""

    # -- events ----------------------------------------------------------------------------------------------------

    def _begin(self, vcpu: int) -> None:
        self.counters.events_total += 1
        self.journal.event = self.counters.events_total
        self.journal.vcpu = vcpu

    def regs(self, vcpu: int, cr0: int | None, cr4: int | None, efer: int | None) -> None:
        """The mode registers take these values; ``None`` leaves one as it is."""
        self._begin(vcpu)
        self.counters.events_regs += 1
        context = self.contexts[vcpu]
        paging_ends = cr0 is not None and context.cr0 & CR0_PG and not cr0 & CR0_PG
        if paging_ends:
            self._guest_cr0(context, cr0)
            self._guest_cr4(context, cr4)
            self._guest_efer(context, efer)
        else:
            self._guest_efer(context, efer)
            self._guest_cr4(context, cr4)
            self._guest_cr0(context, cr0)

    def cr3(self, vcpu: int, value: int, pdptes: tuple[int, int, int, int] | None = None) -> None:
        """The guest loads cr3. ``pdptes`` are the four entries a PAE load read; without them they come from memory."""
        self._begin(vcpu)
        self.counters.events_cr3 += 1
        self._set_cr3(self.contexts[vcpu], value, pdptes)

    def write(self, vcpu: int, gpa: int, size: int, value: int) -> None:
        """A guest store of 1 to 8 bytes to physical memory."""
        self._begin(vcpu)
        self.counters.events_write += 1
        context = self.contexts[vcpu]
        room = PAGE_BYTES - (gpa & PAGE_BYTES - 1)
        if size > room:
            self.counters.writes_split += 1
            self._store(context, gpa, room, value)
            self._store(context, gpa + room, size - room, value >> 8 * room)
        else:
            self._store(context, gpa, size, value)

    def page(self, gfn: int, words: list[tuple[int, int]]) -> None:
        """The frame has had this content from before; not a guest store, so no shadow page hears of it."""
        counters = self.counters
        counters.events_total += 1
        counters.events_page += 1
        changed = self.memory.set_page(gfn, words)
        if self.cache.lookup_page(gfn) is not None:
            counters.contents_on_shadowed += 1
            counters.contents_changed += changed

    def invlpg(self, vcpu: int, va: int) -> None:
        """INVLPG: not intercepted since 5f015a5b28. Without a cache it drops the leaf, as before."""
        self.counters.events_total += 1
        self.counters.events_invlpg += 1
        if self.parameters.caching:
            return
        leaf = self._leaf_address(self.contexts[vcpu], va)
        if leaf is not None:
            self.cache.rmap_remove(leaf)
            self.cache.set_spte(leaf, 0)

    def access(self, vcpu: int, va: int, write: bool, user: bool, fetch: bool) -> None:
        """The guest touches a virtual address: the hardware walks the shadow, and exits where that forbids it."""
        counters = self.counters
        self._begin(vcpu)
        counters.events_access += 1
        context = self.contexts[vcpu]
        if context.root_level != PT64_ROOT_LEVEL:
            va &= 0xFFFF_FFFF
        user = user or context.root_level == 0
        leaf = self._shadow_leaf(context, va)
        if self._allows(context, leaf, write, user, fetch):
            counters.access_mapped += 1
            return
        counters.access_faults += 1
        error = (
            (PFERR_PRESENT if leaf & PRESENT else 0)
            | (PFERR_WRITE if write else 0)
            | (PFERR_USER if user else 0)
            | (PFERR_FETCH if fetch and context.efer & EFER_NX else 0)
        )
        guest_faults = counters.kvm_stat_pf_guest
        emulate = self._page_fault(context, va, error)
        address = self._leaf_address(context, va)
        leaf = 0 if address is None else self.cache.spte(address)
        if counters.kvm_stat_pf_guest != guest_faults:
            counters.access_guest_faults += 1
            answer = Fault.GUEST
        elif emulate and write and self._allows(context, leaf, False, user, False):
            counters.access_write_to_shadowed += 1
            answer = Fault.WRITE_TO_SHADOWED
        elif emulate:
            counters.access_mmio += 1
            answer = Fault.MMIO
        elif self._allows(context, leaf, write, user, fetch):
            counters.access_shadow_fixed += 1
            answer = Fault.SHADOW_FIXED
        else:
            counters.access_unresolved += 1
            answer = Fault.UNRESOLVED
        self.journal.add(What.FAULT, answer, NO_PAGE if address is None else self.cache.pages[address >> 9].birth, NO_PAGE)

    # -- the hardware's walk of the shadow ---------------------------------------------------------------------------

    def _leaf_address(self, context: Context, va: int) -> int | None:
        """The spte address of the level-1 entry that translates ``va``; ``None`` where a level above is empty."""
        page, level = self._root_for(context, va)
        pages = self.cache.pages
        while page is not None and level > PT_PAGE_TABLE_LEVEL:
            entry = page.entries[va >> 9 * level + 3 & 511]
            if not entry & PRESENT:
                return None
            page = pages[entry >> PAGE_SHIFT]
            level -= 1
        return None if page is None else page.index << 9 | va >> PAGE_SHIFT & 511

    def _shadow_leaf(self, context: Context, va: int) -> int:
        """The leaf entry for ``va``, 0 where a level above is empty."""
        address = self._leaf_address(context, va)
        return 0 if address is None else self.cache.spte(address)

    @staticmethod
    def _allows(context: Context, leaf: int, write: bool, user: bool, fetch: bool) -> bool:
        """The hardware's check; only leaves restrict. VMX forces CR0.WP on, so a store needs W whoever makes it."""
        return bool(
            leaf & PRESENT
            and (not write or leaf & WRITABLE)
            and (not user or leaf & USER)
            and not (fetch and context.efer & EFER_NX and leaf & NX)
        )

    # -- stores to shadowed pages ------------------------------------------------------------------------------------

    def _store(self, context: Context, gpa: int, size: int, value: int) -> None:
        """One store within a page: intercepted if the frame is shadowed, in whatever mode."""
        if self.cache.lookup_page(gpa >> PAGE_SHIFT) is not None:
            self.counters.writes_protected += 1
            self._pre_write(context, gpa, size)
        else:
            self.counters.writes_plain += 1
        self.memory.write(gpa, size, value)

    def _pre_write(self, context: Context, gpa: int, size: int) -> None:
        """``kvm_mmu_pre_write``: every shadow of the frame is zapped or loses the entry that the store changes."""
        gfn, offset = gpa >> PAGE_SHIFT, gpa & PAGE_BYTES - 1
        if gfn == context.last_pt_write_gfn:
            context.last_pt_write_count += 1
            flooded = 0 < self.parameters.flood <= context.last_pt_write_count
        else:
            context.last_pt_write_gfn, context.last_pt_write_count = gfn, 1
            flooded = self.parameters.flood == 1
        shadows = self.cache.shadows(gfn)
        self.journal.add(What.STORE, FLOODED if flooded else 0, shadows[0].birth, len(shadows))
        for page in shadows:
            pte_bytes = 4 if page.role & 15 == 2 else 8
            misaligned = bool((offset ^ offset + size - 1) & -pte_bytes)
            misaligned |= self.parameters.small_store_misaligned and size < 4
            if misaligned and flooded:
                self.cache.zap_page(page, "misaligned_and_flood")
            elif misaligned or flooded:
                self.cache.zap_page(page, "flood" if flooded else "misaligned")
            else:
                self._clear_entries(page, offset)

    def _clear_entries(self, page: ShadowPage, offset: int) -> None:
        """Set the shadow of the guest entry at ``offset`` to 0; what it pointed to stays cached.

        For a two-level table 2.6.20 clears the entry in every quadrant; and for a two-level directory it clears the
        wrong one, as if a directory entry were shadowed by one entry. ``directory_fix`` clears the two that it is.
        """
        count = 1
        if page.role & 15 == 2:
            offset *= 2
            if self.parameters.directory_fix and page.level == PT_DIRECTORY_LEVEL:
                offset = (offset & ~7) * 2
                count = 2
            if self.parameters.quadrant_test and offset >> PAGE_SHIFT != page.role >> 8 & 3:
                return
            offset &= PAGE_BYTES - 1
        counters = self.counters
        for index in range(offset >> 3, (offset >> 3) + count):
            entry = page.entries[index]
            address = page.index << 9 | index
            counters.writes_shadow_entries_cleared += 1
            if entry & PRESENT:
                counters.writes_present_cleared += 1
                if page.level == PT_PAGE_TABLE_LEVEL:
                    counters.writes_present_leaf_cleared += 1
                    self.cache.rmap_remove(address)
                else:
                    self.cache.remove_parent(self.cache.child(entry), address)
            page.entries[index] = 0
