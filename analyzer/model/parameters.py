"""The models by name, and the parameters each can be run with."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

#: Free pages below which a fault or a cr3 load evicts first, and how many it then frees up to
#: (ebeace8609 "MMU: oom handling").
KVM_MIN_FREE_MMU_PAGES = 5
KVM_REFILL_PAGES = 25

HASHES = ("mod", "hash_64")


@dataclass(frozen=True)
class Parameters:
    """What a model can be told. The defaults are Linux 2.6.20's."""

    pages: int = 256
    """Shadow pages there are."""
    buckets: int = 256
    """Buckets of the hash table."""
    hash: str = "mod"
    """``mod``: gfn mod buckets. ``hash_64``: today's multiplicative hash (114df303a7ee); buckets a power of two."""
    flood: int = 3
    """The store in a row to one table that zaps it (86a5ba025d); 0 = never."""
    min_free: int = KVM_MIN_FREE_MMU_PAGES
    """Free pages below which eviction starts."""
    refill: int = KVM_REFILL_PAGES
    """Free pages at which eviction stops."""
    keep_roots: int = 0
    """Earlier roots that stay in use across cr3 loads, so that switching back needs no look-up (later KVMs: 3)."""
    caching: bool = True
    """False: every shadow page is private to its parent and dropped at every root load, as before cea0f0e7ea."""
    directory_fix: bool = False
    """A store to a two-level directory clears the two entries that shadow it (ac1b714e78, 6b8d0f9b18)."""
    quadrant_test: bool = False
    """A store clears entries only in the quadrant that shadows it (2.6.24)."""
    small_store_misaligned: bool = False
    """A store of fewer than 4 bytes counts as misaligned (2.6.24)."""
    flood_reset_by_faults: bool = False
    """A fault that is no store to a table starts the flood counter anew (2.6.24)."""
    skip_absent_pdptes: bool = False
    """An absent PDPTE makes no root page (2.6.22)."""
    strict: bool = False
    """Refuse (#GP) reserved CR0, CR3, CR4 and EFER bits as 2.6.20 did; otherwise they are masked."""
    ram_pages: int = 1 << 40
    """Frames from here up are not RAM."""

    def check(self, vcpus: int = 1) -> None:
        """Raise ``ValueError`` with a sentence where no run is possible with these values and ``vcpus`` vCPUs."""
        pinned = 4 * vcpus * (1 + self.keep_roots)
        if self.pages < self.refill + pinned:
            raise ValueError(f"{self.pages} shadow pages are too few: {pinned} can be roots in use and eviction frees up to {self.refill}")
        if not 0 < self.min_free <= self.refill:
            raise ValueError("the refill marks must be positive, and the lower one not above the upper one")
        if self.min_free < 4:
            raise ValueError("a lower refill mark under 4 would let one fault use up the free list")
        if self.buckets < 1 or self.pages > 1 << 20 or self.buckets > 1 << 20:
            raise ValueError("shadow pages and buckets must lie between 1 and 1048576")
        if self.hash not in HASHES:
            raise ValueError(f"no hash function is called {self.hash!r}: there are {', '.join(HASHES)}")
        if self.hash == "hash_64" and self.buckets & self.buckets - 1:
            raise ValueError("hash_64 needs a power of two as the number of buckets")
        if min(self.flood, self.keep_roots, self.ram_pages) < 0:
            raise ValueError("parameters are not negative")

    def as_dict(self) -> dict[str, Any]:
        """Every parameter by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Model:
    """A named set of choices: ``about`` says what it is, for people."""

    name: str
    about: str
    parameters: Parameters


MODELS = {
    model.name: model
    for model in (
        Model(
            "kvm-2.6.20",
            "The shadow MMU of Linux 2.6.20 (February 2007): the page cache of cea0f0e7ea with what followed it in the same series:"
            " write protection (374cbac033), zapping on stores (9b7a032567), eviction (ebeace8609), flood detection (86a5ba025d) and"
            " pinned roots (3bb65a22a4). A store to a two-level directory clears the wrong entries, as it did then.",
            Parameters(),
        ),
        Model(
            "kvm-2.6.21",
            "2.6.20 with stores to two-level directories mended: the two shadow entries that stand for the 4 MiB entry are cleared"
            " (ac1b714e78, 6b8d0f9b18).",
            Parameters(directory_fix=True),
        ),
        Model(
            "kvm-2.6.24",
            "What 2.6.22 and 2.6.24 changed in the cache's behaviour: 1024 pages and buckets, stores act on their own quadrant only,"
            " stores under 4 bytes count as misaligned, faults reset the flood counter, absent PDPTEs make no root. The rights in the"
            " key (hugepage_access) and the installing of new entries at the store are left out.",
            Parameters(
                pages=1024,
                buckets=1024,
                directory_fix=True,
                quadrant_test=True,
                small_store_misaligned=True,
                flood_reset_by_faults=True,
                skip_absent_pdptes=True,
            ),
        ),
        Model(
            "uncached",
            "What cea0f0e7ea replaced: no hash table, no write protection; every shadow page is private to its parent, all are dropped"
            " at every root load, and INVLPG drops the leaf. The yardstick for what the cache saves.",
            Parameters(caching=False),
        ),
    )
}


def parameters(model: str, **changes: Any) -> Parameters:
    """The parameters of the model called ``model`` with ``changes``; ``None`` leaves a value as the model has it.

    ``pages`` sets ``buckets`` too where that is not given.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if "pages" in given and "buckets" not in given:
        given["buckets"] = given["pages"]
    return replace(MODELS[model].parameters, **given)
