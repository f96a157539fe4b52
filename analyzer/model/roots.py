"""Modes, roots and control registers (part 5 of the design): what a vCPU walks from, and when it changes."""

from __future__ import annotations

from analyzer.model.cache import ShadowCache, ShadowPage
from analyzer.model.context import PT32E_ROOT_LEVEL, PT64_ROOT_LEVEL, PT_DIRECTORY_LEVEL, Context, Roots
from analyzer.model.counters import Counters
from analyzer.model.journal import NO_PAGE, ROOT_SHIFT, JournalWriter, What
from analyzer.model.memory import GuestMemory
from analyzer.model.parameters import Parameters
from analyzer.model.role import pack, quadrant
from x86.paging import PAGE_BYTES, PAGE_SHIFT, PRESENT
from x86.registers import (
    CR0_CD,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    CR4_VME,
    CR4_VMXE,
    EFER_LMA,
    EFER_LME,
)

#: What VMX lets the host own: a guest write that changes none of these bits does not exit.
KVM_GUEST_CR0_MASK = CR0_PE | CR0_NE | CR0_WP | CR0_NW | CR0_CD | CR0_PG
KVM_GUEST_CR4_MASK = CR4_VME | CR4_PSE | CR4_PAE | CR4_PGE | CR4_VMXE

CR0_RESERVED = 0xFFFF_FFFF_1FFA_FFC0
CR4_RESERVED = ~0x7FF & (1 << 64) - 1
CR3_RESERVED_LONG = ~((1 << 40) - 1) & (1 << 64) - 1 | 0xFE7
CR3_RESERVED = 0x7
EFER_RESERVED = 0xFFFF_FFFF_FFFF_F2FE
PDPTE_RESERVED = 0xFFFF_FFF0_0000_01E6


class RootedMmu:
    """The cache, the guest's memory and the vCPUs' contexts, with roots that follow the control registers."""

    def __init__(self, parameters: Parameters, vcpus: int = 1) -> None:
        parameters.check(vcpus)
        self.parameters = parameters
        self.counters = Counters()
        self.journal = JournalWriter()
        self.memory = GuestMemory(parameters.ram_pages)
        self.cache = ShadowCache(parameters, self.counters, self.journal)
        #: Leaves that got W though they map another frame than the guest's entry: spte address to that frame, for the audit.
        self.stale_writable: dict[int, int] = {}
        self.contexts = [Context(vcpu) for vcpu in range(vcpus)]
        for context in self.contexts:
            self.journal.vcpu = context.vcpu
            self._alloc_roots(context)

    def _gp(self) -> None:
        self.counters.mode_gp_injected += 1

    def _guest_cr0(self, context: Context, cr0: int | None) -> None:
        if cr0 is None:
            return
        if not self.parameters.strict:
            cr0 &= ~CR0_RESERVED
        if (cr0 ^ context.cr0) & KVM_GUEST_CR0_MASK:
            self._set_cr0(context, cr0)
        else:
            context.cr0 = cr0

    def _guest_cr4(self, context: Context, cr4: int | None) -> None:
        if cr4 is None:
            return
        if not self.parameters.strict:
            cr4 &= ~CR4_RESERVED
        if (cr4 ^ context.cr4) & KVM_GUEST_CR4_MASK:
            self._set_cr4(context, cr4)
        else:
            context.cr4 = cr4

    def _guest_efer(self, context: Context, efer: int | None) -> None:
        """``set_efer``: no reset of any kind follows; LMA is the hypervisor's own."""
        if efer is None:
            return
        if not self.parameters.strict:
            efer &= ~EFER_RESERVED
        if not (efer ^ context.efer) & ~EFER_LMA:
            return
        if efer & EFER_RESERVED or (context.cr0 & CR0_PG and (efer ^ context.efer) & EFER_LME):
            self._gp()
            return
        context.efer = efer & ~EFER_LMA | context.efer & EFER_LMA

    def _set_cr0(self, context: Context, cr0: int) -> None:
        paging_starts = cr0 & CR0_PG and not context.cr0 & CR0_PG
        paging_ends = context.cr0 & CR0_PG and not cr0 & CR0_PG
        long = context.efer & EFER_LME
        if cr0 & CR0_RESERVED or (cr0 & CR0_NW and not cr0 & CR0_CD) or (cr0 & CR0_PG and not cr0 & CR0_PE):
            self._gp()
            return
        if paging_starts and long and not context.cr4 & CR4_PAE:
            self._gp()
            return
        if paging_starts and not long and context.cr4 & CR4_PAE and not self._load_pdptrs(context, context.cr3, None):
            self._gp()
            return
        if long and paging_starts:
            context.efer |= EFER_LMA
        if long and paging_ends:
            context.efer &= ~EFER_LMA
        context.cr0 = cr0
        self._reset_context(context)

    def _set_cr4(self, context: Context, cr4: int) -> None:
        if cr4 & CR4_RESERVED:
            self._gp()
            return
        if context.efer & EFER_LME:
            if not cr4 & CR4_PAE:
                self._gp()
                return
        elif context.cr0 & CR0_PG and cr4 & CR4_PAE and not context.cr4 & CR4_PAE and not self._load_pdptrs(context, context.cr3, None):
            # 2.6.20 injects the fault and goes on with the write all the same.
            self._gp()
        context.cr4 = cr4
        self._reset_context(context)

    def _load_pdptrs(self, context: Context, cr3: int, given: tuple[int, int, int, int] | None) -> bool:
        """``load_pdptrs``: take the four PDPTEs, unless one is bad."""
        base = cr3 & ~(PAGE_BYTES - 1) | cr3 & 0xFE0
        pdptrs = given or tuple(self.memory.read(base + 8 * i, 8) for i in range(4))
        if any(entry & PRESENT and entry & PDPTE_RESERVED for entry in pdptrs):
            return False
        first, second, third, fourth = pdptrs
        context.pdptrs = (first, second, third, fourth)
        return True

    def _set_cr3(self, context: Context, cr3: int, pdptes: tuple[int, int, int, int] | None) -> None:
        long = context.efer & EFER_LME
        reserved = CR3_RESERVED_LONG if long else CR3_RESERVED
        if not self.parameters.strict:
            cr3 &= ~reserved
        if cr3 & reserved:
            self._gp()
            return
        if not long and context.cr0 & CR0_PG and context.cr4 & CR4_PAE and not self._load_pdptrs(context, cr3, pdptes):
            self._gp()
            return
        context.cr3 = cr3
        if not self.memory.is_ram(cr3 >> PAGE_SHIFT):
            self._gp()
            return
        self._new_cr3(context)

    def _new_cr3(self, context: Context) -> None:
        """``paging_new_cr3``: new roots. Eviction first, while the old roots are not pinned any more (7f7417d67e)."""
        if context.root_level == 0:
            return
        self._free_roots(context)
        if self.parameters.caching and len(self.cache.free) < self.parameters.min_free:
            self.cache.free_some_pages()
        self._alloc_roots(context)
        self.counters.kvm_stat_tlb_flush += 1
        self.counters.mode_arch_tlb_flush += 1

    def _reset_context(self, context: Context) -> None:
        """``kvm_mmu_reset_context``: no eviction, no TLB statistics; pages of the other modes stay cached."""
        self._free_roots(context)
        self._alloc_roots(context)

    def _free_roots(self, context: Context) -> None:
        """``mmu_free_roots``: roots are unpinned, and nothing else happens to them."""
        if context.roots is None:
            return
        if self.parameters.keep_roots:
            context.kept_roots.insert(0, context.roots)
        else:
            self._unpin(context.roots)
        context.roots = None
        if not self.parameters.caching:
            self.cache.drop_pages(context.vcpu)

    @staticmethod
    def _unpin(roots: Roots) -> None:
        for page in roots.pages:
            if page is not None:
                page.root_count -= 1

    def _alloc_roots(self, context: Context) -> None:
        """``mmu_alloc_roots`` after ``init_kvm_mmu`` chose the mode: the test is EFER.LME, not LMA."""
        if not context.cr0 & CR0_PG:
            context.root_level = 0
        elif context.efer & EFER_LME:
            context.root_level = PT64_ROOT_LEVEL
        else:
            context.root_level = PT32E_ROOT_LEVEL if context.cr4 & CR4_PAE else 2
        root = (context.cr3 if context.root_level == PT32E_ROOT_LEVEL else context.cr3 & -PAGE_BYTES) >> ROOT_SHIFT
        self.journal.add(What.ROOTS_LOADED, context.root_level, root & 0xFFFF_FFFF, root >> 32)
        wanted = self._wanted_roots(context)
        key = (context.root_level, *(-1 if gfn is None else gfn for gfn in wanted))
        reused = next((kept for kept in context.kept_roots if kept.key == key), None)
        if reused is not None:
            context.kept_roots.remove(reused)
            context.roots = reused
            self.counters.roots_reused += 1
            return
        if len(context.kept_roots) > self.parameters.keep_roots:
            self._unpin(context.kept_roots.pop())
        context.roots = Roots(key, [])
        for i, gfn in enumerate(wanted):
            page = None if gfn is None else self._root_page(context, gfn, i)
            context.roots.pages.append(page)
            if page is not None:
                page.root_count += 1

    def _wanted_roots(self, context: Context) -> list[int | None]:
        """The frames the roots stand for, ``None`` for one that is left out."""
        if context.root_level == PT64_ROOT_LEVEL:
            return [context.cr3 >> PAGE_SHIFT]
        if context.root_level == PT32E_ROOT_LEVEL:
            # 2.6.20 makes a root of an absent PDPTE too: of frame 0, where it is all zero.
            skip = self.parameters.skip_absent_pdptes
            return [None if skip and not pdpte & PRESENT else pdpte >> PAGE_SHIFT for pdpte in context.pdptrs]
        return [context.cr3 >> PAGE_SHIFT if context.root_level else 0] * 4

    def _root_page(self, context: Context, gfn: int, i: int) -> ShadowPage | None:
        if context.root_level and not self.memory.is_ram(gfn):
            self.counters.corner_root_outside_ram += 1
        level = PT64_ROOT_LEVEL if context.root_level == PT64_ROOT_LEVEL else PT_DIRECTORY_LEVEL
        if not self.cache.free:
            self._make_room(context, gfn, i << 30, level)
        page = self._get_page(context, gfn, i << 30, level, not context.root_level, None)
        if page is None:
            self.counters.corner_out_of_pages += 1
        return page

    def _make_room(self, context: Context, gfn: int, va: int, level: int) -> None:
        """A mode change has no eviction of its own: where 2.6.20 would meet an empty free list, evict first."""
        if not self.parameters.caching:
            self._take_from_all()
            return
        role = self._role(context, va, level, not context.root_level)
        if not any(p.gfn == gfn and p.role == role for p in self.cache.buckets[self.cache.hashfn(gfn)]):
            self.counters.corner_roots_without_free_page += 1
            self.cache.free_some_pages()

    def _take_from_all(self) -> None:
        if len(self.cache.free) < self.parameters.min_free:
            for other in self.contexts:
                self.cache.drop_pages(other.vcpu)

    @staticmethod
    def _root_for(context: Context, va: int) -> tuple[ShadowPage | None, int]:
        """The shadow root for an address and its level: ``pae_root`` is no shadow page, so its tables are the roots."""
        if context.roots is None:
            return None, 0
        if context.root_level == PT64_ROOT_LEVEL:
            return context.roots.pages[0], PT64_ROOT_LEVEL
        return context.roots.pages[va >> 30 & 3], PT_DIRECTORY_LEVEL

    @staticmethod
    def _role(context: Context, va: int, level: int, metaphysical: bool) -> int:
        return pack(context.root_level, level, quadrant(va, context.root_level, level), int(metaphysical))

    def _get_page(self, context: Context, gfn: int, va: int, level: int, metaphysical: bool, parent: int | None) -> ShadowPage | None:
        self.counters.get_page_lookups += 1
        root = None if parent is None else self._root_for(context, va)[0]
        return self.cache.get_page(
            gfn, self._role(context, va, level, metaphysical), parent, context.vcpu, NO_PAGE if root is None else root.birth
        )
