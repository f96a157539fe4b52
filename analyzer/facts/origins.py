"""Where hits come from: who had made the page that a look-up found, and how long before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyzer.facts.grouped_sums import Ints
from analyzer.facts.journal_columns import Rows
from analyzer.facts.spaces import Spaces
from analyzer.model.journal import AS_ROOT, What

#: What can be said of a found page, the first that holds: its maker walked in another mode, was another vCPU, was in
#: another address space, was in the same.
ORIGINS = ("other_mode", "other_vcpu", "other_root", "same_root")


@dataclass(frozen=True)
class Age:
    """Hits on pages that were made up to so many events before, and more than half as many."""

    up_to: int
    hits: int


@dataclass(frozen=True)
class Origin:
    """Hits by who had made the page, and by its age."""

    same_root: int
    other_root: int
    other_vcpu: int
    other_mode: int
    age: tuple[Age, ...]


def origins(rows: Rows, spaces: Spaces) -> dict[str, Origin]:
    """Hits of roots and of tables under them apart."""
    found, kind, log = hits(rows, spaces)
    root = rows.cause[found] == AS_ROOT
    return {"roots": _origin(kind[root], log[root]), "tables": _origin(kind[~root], log[~root])}


def hits(rows: Rows, spaces: Spaces) -> tuple[Ints, Ints, Ints]:
    """The rows of hits; for each which of ``ORIGINS``, and the power of two of events that the page's age is up to."""
    found = rows.of(What.HIT)
    made = rows.made[rows.page[found]]
    mode = np.array([space.glevels for space in spaces.all])
    now, then = spaces.of_row[found], spaces.of_row[made]
    kind = np.select(
        [mode[now] != mode[then], rows.vcpu[found] != rows.vcpu[made], now != then],
        [0, 1, 2],
        3,
    )
    age = np.maximum(rows.event[found] - rows.event[made], 1)
    return found, kind.astype(np.int64), np.ceil(np.log2(age)).astype(np.int64)


def _origin(kind: Ints, log: Ints) -> Origin:
    mode, vcpu, other, same = np.bincount(kind, minlength=len(ORIGINS)).tolist()
    ages = enumerate(np.bincount(log).tolist())
    return Origin(same, other, vcpu, mode, tuple(Age(1 << power, n) for power, n in ages if n))
