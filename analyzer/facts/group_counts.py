"""What is counted in each group of a grouped report: rows of the journal, and what became of the pages that were made in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.facts.grouped_sums import Ints, running
from analyzer.facts.journal_columns import Lives, Rows, lives
from analyzer.facts.tree import parents
from analyzer.model.cache import hash_function
from analyzer.model.journal import What
from analyzer.model.parameters import Parameters

Group = dict[str, Any]

#: What every grouped report counts.
COUNTS = {
    "lookups": "look-ups",
    "hits": "of these, hits",
    "hit_percent": "hits in % of the look-ups",
    "made": "pages made",
    "died": "pages that died",
    "emptied": "roots in use that were zapped and kept",
    "alive": "of the pages made in the group, those that live at the end",
    "faults": "faults",
    "stores": "intercepted stores to shadowed frames",
}

#: What a table shows besides with `--all`, and formats for machines always.
MORE = {
    "peak": "of the pages made in the group, most alive at once",
    "life": "median life of those that died, in events; empty where none did",
    "beside": "of the pages made in the group, those whose frame had another live page then",
    "shared": "of the pages made in the group, those that had several parents at some time",
    "parents": "the most parents that one of them had at once",
    "chain": "pages in the hash bucket at a look-up, on average, before a page is made",
}

#: What a replay without a cache counts in the same group: `--saved`.
UNCACHED = {
    "faults_uncached": "faults in a replay without a cache",
    "made_uncached": "pages made in a replay without a cache",
}


def bucket_of_page(rows: Rows, parameters: Parameters) -> Ints:
    """By birth number: the bucket of the hash table that each page is in."""
    bucket_of = hash_function(parameters)
    return np.array([bucket_of(gfn) for gfn in np.unique(rows.gfn).tolist()], np.int64)[rows.frame]


def tally(rows: Rows, parameters: Parameters, keep: NDArray[np.bool_], which: Ints, size: int) -> dict[str, list[Any]]:
    """``COUNTS`` and ``MORE`` for each of ``size`` groups; the rows ``keep`` are those of the groups ``which``."""
    what = rows.what[keep]

    def of(mask: NDArray[np.bool_]) -> Ints:
        return np.bincount(which[mask], minlength=size)

    made, found = of(what == What.ALLOC), of(what == What.HIT)
    group = np.full(len(rows.made), -1, np.int64)
    births = what == What.ALLOC
    group[rows.page[keep][births]] = which[births]
    counts: dict[str, Ints] = {
        "lookups": made + found,
        "hits": found,
        "hit_percent": np.round(100 * found / np.maximum(made + found, 1), 1),
        "made": made,
        "died": of(what == What.ZAP_FREED),
        "emptied": of(what == What.ZAP_ROOT_KEPT),
        "alive": _sum(group, rows.died < 0, size),
        "faults": of(what == What.FAULT),
        "stores": of(what == What.STORE),
    }
    alive, most = lives(rows), _most_parents(rows)
    most_of_group = np.zeros(size, np.int64)
    np.maximum.at(most_of_group, group[group >= 0], most[group >= 0])
    more: dict[str, Any] = {
        "peak": _peaks(alive, group, size).tolist(),
        "life": _lives(rows, group, size),
        "beside": _sum(group, _beside(rows, alive), size).tolist(),
        "shared": _sum(group, most > 1, size).tolist(),
        "parents": most_of_group.tolist(),
        "chain": _chains(rows, parameters, keep, which, size),
    }
    return {name: counts[name].tolist() for name in COUNTS} | {name: more[name] for name in MORE}


def with_uncached(groups: list[Group], without: Iterable[Group], keys: Sequence[str]) -> list[Group]:
    """Each group with ``UNCACHED``, from the groups of a replay without a cache by the same keys."""
    known = {tuple(group[key] for key in keys): group for group in without}
    nothing = {"faults": 0, "made": 0}
    return [
        group | {name: known.get(tuple(group[key] for key in keys), nothing)[name.removesuffix("_uncached")] for name in UNCACHED}
        for group in groups
    ]


def _sum(group: Ints, pages: NDArray[np.bool_], size: int) -> Ints:
    return np.bincount(group[pages & (group >= 0)], minlength=size)


def _peaks(alive: Lives, group: Ints, size: int) -> Ints:
    mine = group[alive.page]
    kept = mine >= 0
    peaks = np.zeros(size, np.int64)
    np.maximum.at(peaks, mine[kept], running(mine[kept], alive.delta[kept]))
    return peaks


def _lives(rows: Rows, group: Ints, size: int) -> list[float | None]:
    dead = np.flatnonzero((rows.died >= 0) & (group >= 0))
    lived = rows.event[rows.died[dead]] - rows.event[rows.made[dead]]
    order = np.lexsort((lived, group[dead]))
    ordered, ends = lived[order], np.cumsum(np.bincount(group[dead], minlength=size))
    medians: list[float | None] = []
    for first, end in zip([0, *ends.tolist()], ends.tolist(), strict=False):
        medians.append(round(float(np.median(ordered[first:end])), 1) if end > first else None)
    return medians


def _beside(rows: Rows, alive: Lives) -> NDArray[np.bool_]:
    """By birth number: whether the frame of the page had another live page when it was made."""
    births = alive.delta > 0
    beside = np.zeros(len(rows.made), bool)
    beside[alive.page[births]] = running(rows.frame[alive.page], alive.delta)[births] > 1
    return beside


def _most_parents(rows: Rows) -> Ints:
    at, _, after = parents(rows)
    most = np.zeros(len(rows.made), np.int64)
    np.maximum.at(most, rows.page[at], after)
    return most


def _chains(rows: Rows, parameters: Parameters, keep: NDArray[np.bool_], which: Ints, size: int) -> list[float]:
    if not parameters.caching:
        return [0.0] * size
    at = rows.of(What.ALLOC, What.HIT, What.ZAP_FREED)
    delta = np.where(rows.what[at] == What.ALLOC, 1, np.where(rows.what[at] == What.ZAP_FREED, -1, 0)).astype(np.int64)
    before = np.zeros(len(rows.event), np.int64)
    before[at] = running(bucket_of_page(rows, parameters)[rows.page[at]], delta) - delta
    lookup = np.isin(rows.what[keep], (What.ALLOC, What.HIT))
    total = np.bincount(which[lookup], before[keep][lookup], minlength=size)
    return [round(value, 1) for value in (total / np.maximum(np.bincount(which[lookup], minlength=size), 1)).tolist()]
