"""The audit: is the cache consistent with itself? KVM had one (37a7d8b046 "MMU: add audit code"), this is in its spirit."""

from __future__ import annotations

from collections import Counter

from analyzer.model.cache import ShadowPage
from analyzer.model.machine import Mmu
from analyzer.model.role import unpack
from x86.paging import BASE64, PAGE_SHIFT, PRESENT, WRITABLE


class AuditError(AssertionError):
    """The model contradicts itself: a defect of the model. The message says where."""


def audit(mmu: Mmu) -> None:
    """Raise ``AuditError`` where an invariant of the cache does not hold."""
    _lists(mmu)
    _parents(mmu)
    _roots(mmu)
    _write_protection(mmu)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AuditError(what)


def _lists(mmu: Mmu) -> None:
    """Free and active pages are all pages, once each; the hash holds the active ones, in their buckets."""
    cache = mmu.cache
    _require(len(cache.free) + len(cache.active) == len(cache.pages), "free and active pages are not all pages")
    _require(not {page.index for page in cache.free} & set(cache.active), "a page is free and active")
    _require(all(not page.live and not any(page.entries) for page in cache.free), "a free page is not empty")
    hashed = [page for bucket in cache.buckets for page in bucket]
    wanted = set(cache.active) if mmu.parameters.caching else set()
    _require(len(hashed) == len(wanted) and {page.index for page in hashed} == wanted, "hash and active list differ")
    for number, bucket in enumerate(cache.buckets):
        _require(all(cache.hashfn(page.gfn) == number for page in bucket), f"bucket {number} holds a page of another")
    keys = Counter((page.gfn, page.role) for page in hashed)
    _require(all(count == 1 for count in keys.values()), "two pages have the same key")


def _parents(mmu: Mmu) -> None:
    """Each present entry above level 1 is in its child's parent list, and nothing else is in any."""
    cache = mmu.cache
    pointing: dict[int, Counter[int]] = {}
    for page in cache.active.values():
        _require(page.level == unpack(page.role).level, "a page's level is not its role's")
        if page.level == 1:
            continue
        for index, entry in enumerate(page.entries):
            if entry & PRESENT:
                child = cache.child(entry)
                _require(
                    child.live and child.level == page.level - 1, f"an entry of page {page.index} points to no table of the next level"
                )
                pointing.setdefault(child.index, Counter())[page.index << 9 | index] += 1
    for page in cache.active.values():
        _require(
            Counter(page.parents()) == pointing.get(page.index, Counter()), f"parents of page {page.index} differ from who points to it"
        )
        _chains(page)


def _chains(page: ShadowPage) -> None:
    if page.multimapped:
        _require(page.parent_pte is None and bool(page.parent_ptes), f"page {page.index} is multimapped without a chain")
        _require(all(0 < len(chain) <= 5 for chain in page.parent_ptes), f"page {page.index} has a chain of a wrong length")
    else:
        _require(not page.parent_ptes, f"page {page.index} has chains and is not multimapped")


def _roots(mmu: Mmu) -> None:
    """``root_count`` is how often the vCPUs' roots, in use or kept, name the page."""
    named: Counter[int] = Counter()
    for context in mmu.contexts:
        for roots in [context.roots, *context.kept_roots]:
            if roots is not None:
                named.update(page.index for page in roots.pages if page is not None)
    for page in mmu.cache.pages:
        _require(page.root_count == named[page.index], f"root_count of page {page.index} is {page.root_count}, not {named[page.index]}")


def _write_protection(mmu: Mmu) -> None:
    """No writable leaf maps a frame that a non-metaphysical page stands for, and the reverse map knows every writable leaf.

    2.6.20 itself allows exceptions. ``nonpaging``: leaves made with paging off are never protected (part 6.1).
    ``stale leaf``: a leaf that is older than the guest's entry - a directory store that cleared the wrong entry, content that
    came late, CR4.PSE toggled - is asked about by the entry's frame when a store is let through it. ``pse36``: write protection looks for the
    frame without a 4 MiB page's address bits above 32, the reverse map for the frame with them (part 6.3).
    """
    cache = mmu.cache
    known = {a for entry in cache.rmap.values() for a in ([entry] if isinstance(entry, int) else [a for d in entry for a in d])}
    for page in cache.active.values():
        if page.level != 1:
            continue
        role = unpack(page.role)
        for index, spte in enumerate(page.entries):
            if spte & (PRESENT | WRITABLE) != PRESENT | WRITABLE:
                continue
            address = page.index << 9 | index
            _require(address in known, f"the reverse map lacks entry {index} of page {page.index}")
            frame = (spte & BASE64) >> PAGE_SHIFT
            pse36 = role.glevels == 2 and role.metaphysical and frame >> 20
            stale = mmu.stale_writable.get(address) == frame
            if role.glevels and not pse36 and not stale:
                shadow = cache.lookup_page(frame)
                _require(
                    shadow is None or not mmu.memory.is_ram(frame),
                    f"entry {index} of page {page.index} maps shadowed frame {frame:#x} writable",
                )
