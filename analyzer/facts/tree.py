"""Who stands under whom: the tree of shadow pages at a moment, and of which address spaces each page is part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyzer.facts.grouped_sums import Ints, crossings, running
from analyzer.facts.journal_columns import Rows
from analyzer.facts.spaces import Spaces
from analyzer.model.journal import AS_ROOT, What

#: Address spaces in the matrix, at most.
MATRIX = 24


@dataclass(frozen=True)
class Moment:
    """The live shadow pages after a row of the journal, and the address spaces whose roots lead to each."""

    event: int
    levels: dict[int, int]
    """Level of each live page, by birth number."""
    spaces: dict[int, int]
    """By birth number, a bit for each address space: bit i is the i-th of ``Spaces.all``."""

    def members(self, page: int) -> list[int]:
        """The address spaces that a live page is part of."""
        bits = self.spaces.get(page, 0)
        return [i for i in range(bits.bit_length()) if bits >> i & 1]


def moment(rows: Rows, spaces: Spaces, last: int) -> Moment:
    """The moment after row number ``last``."""
    end = last + 1
    alive = np.flatnonzero((rows.made < end) & ((rows.died < 0) | (rows.died >= end)))
    levels = dict(zip(alive.tolist(), rows.level[alive].tolist(), strict=True))
    found = dict.fromkeys(levels, 0)
    for space, root in _roots(rows, spaces, end):
        if root in found:
            found[root] |= 1 << space
    for parent, child in sorted(_edges(rows, end), key=lambda edge: -levels[edge[0]]):
        found[child] |= found[parent]
    return Moment(int(rows.event[last]) if end else 0, levels, found)


def _edges(rows: Rows, end: int) -> list[tuple[int, int]]:
    """(parent, child) for each pair of pages with an entry between them."""
    at = np.flatnonzero((rows.what[:end] == What.LINKED) | (rows.what[:end] == What.UNLINKED))
    pair = rows.other[at] << 32 | rows.page[at]
    unique, which = np.unique(pair, return_inverse=True)
    net = np.bincount(which.reshape(-1), np.where(rows.what[at] == What.LINKED, 1, -1), len(unique))
    return [(edge >> 32, edge & 0xFFFF_FFFF) for edge in unique[net > 0].tolist()]


def _roots(rows: Rows, spaces: Spaces, end: int) -> list[tuple[int, int]]:
    """(address space, root page): the pages that an address space's newest load of roots looked up.

    Of the generations of one root only the newest counts: the root is its now.
    """
    at = np.flatnonzero(((rows.what[:end] == What.ALLOC) | (rows.what[:end] == What.HIT)) & (rows.cause[:end] == AS_ROOT))
    space = spaces.of_row[at]
    newest = np.full(len(spaces.all), -1, np.int64)
    np.maximum.at(newest, space, rows.event[at])
    current: dict[tuple[int, int], int] = {}
    for i in np.unique(space).tolist():
        known = spaces.all[i]
        key = (known.glevels, known.root)
        if key not in current or known.generation > spaces.all[current[key]].generation:
            current[key] = i
    kept = np.zeros(len(spaces.all), bool)
    kept[list(current.values())] = True
    at = at[kept[space] & (rows.event[at] == newest[space])]
    return sorted(set(zip(spaces.of_row[at].tolist(), rows.page[at].tolist(), strict=True)))


def most_shared_row(rows: Rows) -> int:
    """The first row after which most pages had several parents at once; the last row where none ever had."""
    at, several = multi_parent(rows)
    if not several.any():
        return len(rows.event) - 1
    return int(at[int(np.argmax(several))])


def multi_parent(rows: Rows) -> tuple[Ints, Ints]:
    """The rows that link or unlink a page, and how many pages have several parents after each."""
    at, delta, after = parents(rows)
    return at, np.cumsum(crossings(after, delta, 2))


def parents(rows: Rows) -> tuple[Ints, Ints, Ints]:
    """The rows that link or unlink a page, 1 or -1 for each, and how many parents that page has after it."""
    at = rows.of(What.LINKED, What.UNLINKED)
    delta = np.where(rows.what[at] == What.LINKED, 1, -1).astype(np.int64)
    return at, delta, running(rows.page[at], delta)


def shared(at: Moment) -> dict[str, Any]:
    """Live pages by level and by the number of address spaces they are part of; which spaces share how many."""
    by_level = []
    for level in sorted(set(at.levels.values()), reverse=True):
        members = [at.spaces[page].bit_count() for page, mine in at.levels.items() if mine == level]
        by_level.append(
            {
                "level": level,
                "pages": len(members),
                "in_none": sum(1 for n in members if not n),
                "in_one_root": sum(1 for n in members if n == 1),
                "in_several": sum(1 for n in members if n > 1),
                "most_roots": max(members),
                "histogram": {str(spaces): pages for spaces, pages in sorted(Counter(members).items())},
            }
        )
    return {"event": at.event, "by_level": by_level, "matrix": _matrix(at)}


def _matrix(at: Moment) -> dict[str, Any]:
    pages = Counter(at.spaces.values())
    bits = 0
    for mask in pages:
        bits |= mask
    present = [i for i in range(bits.bit_length()) if bits >> i & 1]
    with_others = {i: sum(n * (mask.bit_count() - 1) for mask, n in pages.items() if mask >> i & 1) for i in present}
    chosen = sorted(sorted(present, key=lambda i: (-with_others[i], i))[:MATRIX])
    both = [[sum(n for mask, n in pages.items() if mask >> i & 1 and mask >> j & 1) for j in chosen] for i in chosen]
    return {"spaces": chosen, "shared": both}
