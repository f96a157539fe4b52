"""The shadow MMU around the cache: modes, roots, faults and stores, as Linux 2.6.20 had them on VMX.

One ``Mmu`` is one virtual machine: one cache, one ``Context`` for each vCPU. It takes events (``regs``, ``cr3``, ``write``,
``page``, ``access``, ``invlpg``) and counts. Functions that stand for a kernel function say which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from analyzer.cache import ShadowCache, ShadowPage
from analyzer.counters import Counters
from analyzer.memory import GuestMemory
from analyzer.model import Parameters
from analyzer.role import pack, quadrant
from analyzer.sharing import Sharing
from x86.paging import (
    ACCESSED,
    BASE32,
    BASE64,
    DIRTY,
    GLOBAL,
    NX,
    PAGE_BYTES,
    PAGE_SHIFT,
    PAGE_SIZE,
    PRESENT,
    USER,
    WRITABLE,
)
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
    EFER_NX,
    RESET,
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

PT_PAGE_TABLE_LEVEL = 1
PT_DIRECTORY_LEVEL = 2
PT32E_ROOT_LEVEL = 3
PT64_ROOT_LEVEL = 4

#: Software bits of a shadow entry: a big page's level-2 entry, an mmio leaf; what the guest allows.
PT_SHADOW_PS_MARK = 1 << 9
PT_SHADOW_IO_MARK = 1 << 9
PT_SHADOW_WRITABLE_MASK = 1 << 10
PT_SHADOW_USER_MASK = 1 << 11
PT_SHADOW_BITS_OFFSET = 9

PT32_PTE_COPY_MASK = PRESENT | ACCESSED | DIRTY | GLOBAL
PT64_PTE_COPY_MASK = PT32_PTE_COPY_MASK | NX

PFERR_PRESENT = 1
PFERR_WRITE = 2
PFERR_USER = 4
PFERR_FETCH = 16


@dataclass(slots=True)
class Roots:
    """The root pages in use: one in long mode, four (``pae_root``) elsewhere, ``None`` where there is none."""

    key: tuple[int, ...]
    pages: list[ShadowPage | None]


@dataclass(slots=True)
class Context:
    """One vCPU's registers and MMU context (``struct kvm_vcpu``)."""

    vcpu: int
    cr0: int = RESET["cr0"]
    cr3: int = RESET["cr3"]
    cr4: int = RESET["cr4"]
    efer: int = RESET["efer"]
    pdptrs: tuple[int, int, int, int] = (0, 0, 0, 0)
    root_level: int = 0
    roots: Roots | None = None
    kept_roots: list[Roots] = field(default_factory=list)
    last_pt_write_gfn: int = 0
    last_pt_write_count: int = 0


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


class Mmu:
    """The model: feed it events, read ``counters``, ``sharing`` and ``cache`` at any time."""

    def __init__(self, parameters: Parameters, vcpus: int = 1) -> None:
        parameters.check(vcpus)
        self.parameters = parameters
        self.counters = Counters()
        self.sharing = Sharing()
        self.memory = GuestMemory(parameters.ram_pages)
        self.cache = ShadowCache(parameters, self.counters, self.sharing)
        #: Leaves that got W though they map another frame than the guest's entry: spte address to that frame, for the audit.
        self.stale_writable: dict[int, int] = {}
        self.contexts = [Context(vcpu) for vcpu in range(vcpus)]
        for context in self.contexts:
            self._alloc_roots(context)

    # -- events ----------------------------------------------------------------------------------------------------

    def regs(self, vcpu: int, cr0: int | None, cr4: int | None, efer: int | None) -> None:
        """The mode registers take these values; ``None`` leaves one as it is."""
        self.counters.events_total += 1
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
        self.counters.events_total += 1
        self.counters.events_cr3 += 1
        self._set_cr3(self.contexts[vcpu], value, pdptes)

    def write(self, vcpu: int, gpa: int, size: int, value: int) -> None:
        """A guest store of 1 to 8 bytes to physical memory."""
        self.counters.events_total += 1
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
        counters.events_total += 1
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
        if counters.kvm_stat_pf_guest != guest_faults:
            counters.access_guest_faults += 1
        elif emulate:
            if write and self._allows(context, self._shadow_leaf(context, va), False, user, False):
                counters.access_write_to_shadowed += 1
            else:
                counters.access_mmio += 1
        elif self._allows(context, self._shadow_leaf(context, va), write, user, fetch):
            counters.access_shadow_fixed += 1
        else:
            counters.access_unresolved += 1

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

    @staticmethod
    def _root_for(context: Context, va: int) -> tuple[ShadowPage | None, int]:
        """The shadow root for an address and its level: ``pae_root`` is no shadow page, so its tables are the roots."""
        if context.roots is None:
            return None, 0
        if context.root_level == PT64_ROOT_LEVEL:
            return context.roots.pages[0], PT64_ROOT_LEVEL
        return context.roots.pages[va >> 30 & 3], PT_DIRECTORY_LEVEL

    # -- modes, roots, control registers -----------------------------------------------------------------------------

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

    @staticmethod
    def _role(context: Context, va: int, level: int, metaphysical: bool) -> int:
        return pack(context.root_level, level, quadrant(va, context.root_level, level), int(metaphysical))

    def _get_page(self, context: Context, gfn: int, va: int, level: int, metaphysical: bool, parent: int | None) -> ShadowPage | None:
        self.counters.get_page_lookups += 1
        return self.cache.get_page(gfn, self._role(context, va, level, metaphysical), parent, context.vcpu)

    # -- page faults -------------------------------------------------------------------------------------------------

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

    def _take_from_all(self) -> None:
        if len(self.cache.free) < self.parameters.min_free:
            for other in self.contexts:
                self.cache.drop_pages(other.vcpu)

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
        walk = self._walk_addr(context, va, error)
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

    def _walk_addr(self, context: Context, va: int, error: int) -> Walk | None:
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
            entry = self.memory.read(gpa, entry_bytes)
            if (
                not entry & PRESENT
                or (write and not entry & WRITABLE and (user or context.cr0 & CR0_WP))
                or (user and not entry & USER)
                or (check_nx and entry & NX)
            ):
                return None
            if not entry & ACCESSED:
                entry |= ACCESSED
                self.memory.write(gpa, entry_bytes, entry)
            if level == PT_PAGE_TABLE_LEVEL:
                return Walk(entry, gpa, (entry & base) >> PAGE_SHIFT, level, inherited, tuple(tables))
            if level == PT_DIRECTORY_LEVEL and entry & PAGE_SIZE and (not two_level or context.cr4 & CR4_PSE):
                target = (entry & base & -(1 << PAGE_SHIFT + index_bits)) >> PAGE_SHIFT
                return Walk(entry, gpa, target + (va >> PAGE_SHIFT & index_mask), level, inherited, tuple(tables))
            inherited &= entry
            gfn = (entry & base) >> PAGE_SHIFT
            level -= 1

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
        for page in self.cache.shadows(gfn):
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
