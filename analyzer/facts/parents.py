"""One shadow page, several parents: by level, how many, and whose are the most shared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from analyzer.facts.spaces import Spaces
from analyzer.facts.tree import Moment
from analyzer.model.cache import NR_PTE_CHAIN_ENTRIES
from analyzer.model.outcome import LivePage
from analyzer.model.role import Role, unpack

#: The most shared pages that are named.
TOP = 20


@dataclass(frozen=True)
class LevelParents:
    """The live pages of one level and their parents."""

    level: int
    pages: int
    several_parents: int
    most_parents: int
    most_shared_gfn: int | None
    """Of the page with the most, where that is more than one."""
    chains: int
    chains_not_full: int
    chains_half_empty: int
    """With two used slots or fewer, of five."""
    histogram: dict[str, int]
    """Pages by number of parents."""


@dataclass(frozen=True)
class SharedPage:
    """A page with several parents."""

    gfn: int
    glevels: int
    level: int
    quadrant: int
    metaphysical: int
    parents: int
    birth: int
    kernel_half: bool | None
    """Whether only the upper half of long-mode roots leads to it (for two-level guests: the last GiB). ``None`` where both do,
    or no root does, or PAE leaves it open."""
    spaces: tuple[str, ...]
    """Names of the address spaces that it is part of, each once."""


def by_level(pages: list[LivePage]) -> list[LevelParents]:
    """Every level with live pages, lowest first."""
    rows = []
    for level in sorted({unpack(page.role).level for page in pages}):
        here = [page for page in pages if unpack(page.role).level == level]
        chains = [used for page in here for used in page.chains]
        top = max(here, key=lambda page: (page.parents, -page.gfn))
        rows.append(
            LevelParents(
                level,
                len(here),
                sum(1 for page in here if page.parents > 1),
                top.parents,
                top.gfn if top.parents > 1 else None,
                len(chains),
                sum(1 for used in chains if used < NR_PTE_CHAIN_ENTRIES),
                sum(1 for used in chains if 2 * used < NR_PTE_CHAIN_ENTRIES),
                {str(n): count for n, count in sorted(Counter(page.parents for page in here).items())},
            )
        )
    return rows


def most_shared(pages: list[LivePage], end: Moment, spaces: Spaces) -> list[SharedPage]:
    """The live pages with the most parents, the most first."""
    shared = sorted((page for page in pages if page.parents > 1), key=lambda page: (-page.parents, page.birth))[:TOP]
    halves = _halves(pages) if shared else {}
    found = []
    for page in shared:
        half = halves.get((page.gfn, page.role), set())
        role = unpack(page.role)
        found.append(
            SharedPage(
                page.gfn,
                role.glevels,
                role.level,
                role.quadrant,
                role.metaphysical,
                page.parents,
                page.birth,
                half == {True} if len(half) == 1 else None,
                names(end.members(page.birth), spaces),
            )
        )
    return found


def names(members: list[int], spaces: Spaces) -> tuple[str, ...]:
    """The names of these address spaces, each once, in order of their first use."""
    return tuple(dict.fromkeys(spaces.all[i].name for i in members))


def _halves(pages: list[LivePage]) -> dict[tuple[int, int], set[bool]]:
    """By key of a page: whether the way to it from a root goes through the kernel's half, for each way there is."""
    halves: dict[tuple[int, int], set[bool]] = {}
    for page in sorted(pages, key=lambda page: -unpack(page.role).level):
        role = unpack(page.role)
        for index, child in page.entries.items():
            if isinstance(child, tuple):
                mine = _half_of_root(role, index)
                ways = halves.get((page.gfn, page.role), set()) if mine is None else {mine}
                halves.setdefault(child, set()).update(ways)
    return halves


def _half_of_root(role: Role, index: int) -> bool | None:
    if role.glevels == 4 and role.level == 4:
        return index >= 256
    if role.glevels == 2 and role.level == 2:
        return role.quadrant == 3
    return None
