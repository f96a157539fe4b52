"""What a core leaves behind when a replay ends: the same from every core, and all that facts are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analyzer.model.cache import ShadowPage
from analyzer.model.counters import Counters
from analyzer.model.journal import Journal
from analyzer.model.machine import Mmu
from analyzer.model.parameters import Parameters


@dataclass(frozen=True)
class LivePage:
    """A shadow page in use at the end."""

    gfn: int
    role: int
    birth: int
    """Its birth number in the journal."""
    root_count: int
    multimapped: bool
    parents: int
    chains: tuple[int, ...]
    """Used slots of each pte chain, first chain first; none where it is not multimapped."""
    entries: Mapping[int, int | tuple[int, int]]
    """What is not zero, by index in order: at level 1 the entry, above the (gfn, role) of the child it points to."""


@dataclass(frozen=True)
class Outcome:
    """The end of a replay."""

    parameters: Parameters
    counters: Counters
    journal: Journal
    pages: list[LivePage]
    """Newest allocation first: ``active_mmu_pages`` from its head."""
    free: int
    buckets: list[int]
    """Pages in each bucket of the hash table."""
    nonzero_pages: int
    """Guest frames that are not all zero, as the model knows memory."""
    memory_crc32: int
    """CRC-32 over them by gfn: 8 bytes of gfn, little-endian, and 4096 of content each."""


def outcome(mmu: Mmu) -> Outcome:
    """What the readable core leaves behind."""
    cache = mmu.cache
    nonzero, crc = mmu.memory.digest()
    return Outcome(
        mmu.parameters,
        mmu.counters,
        mmu.journal.finish(),
        [_live(mmu, page) for page in reversed(cache.active.values())],
        len(cache.free),
        [len(bucket) for bucket in cache.buckets],
        nonzero,
        crc,
    )


def _live(mmu: Mmu, page: ShadowPage) -> LivePage:
    entries: dict[int, int | tuple[int, int]] = {}
    for index, entry in enumerate(page.entries):
        if entry and page.level == 1:
            entries[index] = entry
        elif entry:
            child = mmu.cache.child(entry)
            entries[index] = (child.gfn, child.role)
    chains = tuple(len(chain) for chain in page.parent_ptes)
    return LivePage(page.gfn, page.role, page.birth, page.root_count, page.multimapped, len(page.parents()), chains, entries)
