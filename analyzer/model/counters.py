"""The counters of a replay: each named once, with its definition."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _counter(definition: str) -> Any:
    return field(default=0, metadata={"definition": definition})


@dataclass(slots=True)
class Counters:
    """Everything that a replay counts as it goes. Field ``a_b`` of section ``a`` is ``a.b`` in JSON."""

    events_total: int = _counter("events replayed")
    events_regs: int = _counter("mode-register events")
    events_cr3: int = _counter("cr3 loads")
    events_write: int = _counter("guest stores to physical memory")
    events_page: int = _counter("page contents that arrived")
    events_access: int = _counter("accesses to a virtual address")
    events_invlpg: int = _counter("INVLPG instructions")
    events_unknown: int = _counter("events of no known kind: always 0, they are refused")

    access_mapped: int = _counter("accesses that the shadow tables allowed at once")
    access_faults: int = _counter("accesses that they did not: every one is an exit to the hypervisor")
    access_shadow_fixed: int = _counter("faults after which the shadow tables allowed the access")
    access_guest_faults: int = _counter("faults that were the guest's own, injected into it")
    access_write_to_shadowed: int = _counter("faults answered by emulating a store to a shadowed table")
    access_mmio: int = _counter("faults answered by emulating device access")
    access_unresolved: int = _counter("faults after which the access would fault again")
    access_error: int = _counter("accesses that the model could not judge: always 0")

    kvm_stat_pf_fixed: int = _counter("the kernel's pf_fixed: page faults that ended in the shadow code (never with paging off)")
    kvm_stat_pf_guest: int = _counter("the kernel's pf_guest: page faults injected into the guest")
    kvm_stat_tlb_flush: int = _counter("the kernel's tlb_flush: cr3 loads with paging on")
    kvm_stat_invlpg: int = _counter("the kernel's invlpg: never incremented in 2.6.20, INVLPG was not intercepted")

    get_page_lookups: int = _counter("calls of get_page, for roots and for tables under them")
    get_page_hits: int = _counter("look-ups that found a page of equal gfn and role")
    get_page_misses: int = _counter("look-ups that made a page")

    writes_plain: int = _counter("stores to frames that nothing shadowed (a page-crossing store counts as two)")
    writes_protected: int = _counter("stores to shadowed frames, intercepted and emulated")
    writes_split: int = _counter("stores that crossed a page and were taken as two")
    writes_shadow_entries_cleared: int = _counter("shadow entries an intercepted store set to 0, empty ones included")
    writes_present_cleared: int = _counter("of these, entries that were present")
    writes_present_leaf_cleared: int = _counter("of these, entries of level 1")

    zaps_total: int = _counter("calls of zap_page")
    zaps_freed: int = _counter("zapped pages that went to the free list")
    zaps_root_kept: int = _counter("zapped pages that were roots in use: emptied, but kept")
    zaps_misaligned: int = _counter("zaps by a store that was not inside one aligned entry")
    zaps_flood: int = _counter("zaps by a store in a row to one table, at the flood threshold or past it")
    zaps_misaligned_and_flood: int = _counter("zaps by a store that was both")
    zaps_user_fault: int = _counter("zaps by a user store to a shadowed frame: no page table any more")
    zaps_evict: int = _counter("zaps by eviction")
    zaps_dropped: int = _counter("zaps at a root load by the model without a cache")

    evictions_calls: int = _counter("times eviction ran: the free list was below its low mark")
    evictions_zaps: int = _counter("pages that eviction zapped")
    evictions_freed: int = _counter("pages that eviction freed")

    multimapped_end: int = _counter("pages with a pte chain at the end")
    multimapped_peak: int = _counter("most pages with a pte chain at once")

    pte_chain_allocated: int = _counter("pte chains allocated")
    pte_chain_freed: int = _counter("pte chains freed")
    pte_chain_live_end: int = _counter("pte chains in use at the end")
    pte_chain_live_peak: int = _counter("most pte chains in use at once")

    rmap_write_protected_sptes: int = _counter("writable leaf entries that lost W because a shadow page was made for their frame")
    rmap_desc_allocated: int = _counter("reverse-map descriptors allocated")
    rmap_desc_freed: int = _counter("reverse-map descriptors freed")

    mode_gp_injected: int = _counter("register loads refused with #GP")
    mode_arch_tlb_flush: int = _counter("TLB flushes the MMU code asked for")

    fills_leaf: int = _counter("level-1 shadow entries made from a guest entry")
    fills_table: int = _counter("shadow entries linked to a lower table")

    contents_on_shadowed: int = _counter("page contents that arrived for a frame the model still shadows: taken as memory only")
    contents_changed: int = _counter("of these, contents that differ from what the model held")

    roots_reused: int = _counter("root loads answered from kept roots, without a look-up (keep_roots)")

    corner_roots_without_free_page: int = _counter(
        "a mode change needed a root with the free list empty (2.6.20: host oops); evicted first"
    )
    corner_user_store_to_root: int = _counter(
        "a user store to a root in use (2.6.20: endless loop); emulated as a store to a table, unless its leaf's table went too"
    )
    corner_leaf_zapped_by_store: int = _counter(
        "a user store zapped the table its own leaf is in (2.6.20: writes to a freed page); left to fault again"
    )
    corner_stale_rmap: int = _counter("a reverse-map entry that lost W without being removed (2.6.20: BUG later); dropped when met")
    corner_root_outside_ram: int = _counter("a root whose frame is not RAM (2.6.20: BUG); made without write protection")
    corner_stale_leaf_written: int = _counter(
        "a store was let through a leaf that maps an older frame than the guest's entry does (2.6.20: the same); the frame may be shadowed"
    )
    corner_no_root: int = _counter(
        "an access needed a root that was left out because its PDPTE was absent at the load (skip_absent_pdptes); left to fault again"
    )
    corner_out_of_pages: int = _counter("a page was needed while none could be freed; the fault stayed unresolved")


#: The sections of the JSON form, in order.
SECTIONS = (
    "events", "access", "kvm_stat", "get_page", "writes", "zaps", "evictions", "multimapped", "pte_chain", "rmap", "mode",
    "fills", "contents", "roots", "corner",
)  # fmt: skip


def section_of(name: str) -> tuple[str, str]:
    """Section and key of a counter's field name: ``pte_chain_live_end`` is ``("pte_chain", "live_end")``."""
    section = next(s for s in SECTIONS if name.startswith(s + "_"))
    return section, name[len(section) + 1 :]


def definitions() -> dict[str, str]:
    """Each counter's definition by its JSON name, such as ``zaps.flood``."""
    return {".".join(section_of(f.name)): f.metadata["definition"] for f in fields(Counters)}


def as_sections(counters: Counters) -> dict[str, dict[str, int]]:
    """The counters as nested dictionaries, the JSON form."""
    out: dict[str, dict[str, int]] = {section: {} for section in SECTIONS}
    for f in fields(Counters):
        section, key = section_of(f.name)
        out[section][key] = getattr(counters, f.name)
    return out
