"""Who shares what, by the parts of the key: roles, frames with several shadow pages, and what told those apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.facts.grouped_sums import Ints, count, crossings, distinct, pairs, peak, running
from analyzer.facts.journal_columns import Lives, Rows, lives, rows_of
from analyzer.model.journal import CAUSES, Journal, What
from analyzer.model.role import Role, unpack

#: The parts of the key that can tell two shadow pages of one frame apart.
PARTS = ("level", "quadrant", "glevels", "metaphysical")

#: The bits of each part in the role word.
_BITS = {"level": 0xF0, "quadrant": 0x300, "glevels": 0xF, "metaphysical": 1 << 16}


@dataclass(frozen=True)
class Lifetime:
    """How long pages lived that died, in events from birth to death."""

    median: float
    mean: float
    max: int


@dataclass(frozen=True)
class RoleFacts:
    """What happened to the pages of one role."""

    lookups: int
    hits: int
    misses: int
    live: int
    peak: int
    deaths: dict[str, int]
    """Pages freed, by cause."""
    emptied: dict[str, int]
    """Roots in use that were zapped and kept, by cause."""
    stores: int
    """Intercepted stores to frames whose newest shadow page is of this role."""
    lifetime: Lifetime | None


@dataclass(frozen=True)
class Spread:
    """Guest frames that have several shadow pages at once, told apart in one way: now, and most at once."""

    now: int
    peak: int


@dataclass(frozen=True)
class Crowds:
    """How the number of frames with several shadow pages changes, told apart in each way, at births and deaths that can change it."""

    at: Ints
    """Which births and deaths: those of frames that ever have two pages at once."""
    ways: dict[str, Ints]
    """1, -1 or 0 at each, by part of the key; ``several`` is all of these frames."""
    by_pages: dict[int, Ints]
    """The same for frames with exactly so many pages, for 2 and more."""


@dataclass(frozen=True)
class Sharing:
    """Facts about roles and frames."""

    roles: dict[int, RoleFacts]
    """By role word, in its order."""
    shadowed: int
    """Frames that have a shadow page."""
    spread: dict[str, Spread]
    pages_per_frame: dict[int, Spread]
    """Frames with exactly so many shadow pages, for 2 and more."""
    key: dict[str, int]
    """Misses where a live page of the same frame differed in nothing but this part of the key."""


def sharing(journal: Journal) -> Sharing:
    """The facts of a journal."""
    rows = rows_of(journal)
    alive = lives(rows)
    return sharing_of(rows, alive, crowds_of(rows, alive))


def sharing_of(rows: Rows, alive: Lives, crowds: Crowds) -> Sharing:
    """The facts of a journal that is taken apart already."""
    after = running(rows.frame[alive.page], alive.delta)
    return Sharing(
        _roles(rows, alive),
        int(crossings(after, alive.delta, 1).sum()),
        {way: _spread(change) for way, change in crowds.ways.items()},
        {n: _spread(change) for n, change in crowds.by_pages.items()},
        _key(rows, alive, after),
    )


def _spread(change: Ints) -> Spread:
    return Spread(int(change.sum()), peak(change))


def _roles(rows: Rows, alive: Lives) -> dict[int, RoleFacts]:
    words, role = np.unique(rows.role, return_inverse=True)
    role = role.astype(np.int64)
    size = len(words)
    misses = count(role, size)
    hits = count(role[rows.page[rows.of(What.HIT)]], size)
    deaths = _by_cause(rows, role, size, What.ZAP_FREED)
    emptied = _by_cause(rows, role, size, What.ZAP_ROOT_KEPT)
    mine = role[alive.page]
    live = running(mine, alive.delta)
    peaks = np.zeros(size, np.int64)
    np.maximum.at(peaks, mine, live)
    now = np.bincount(mine, alive.delta, size).astype(np.int64).tolist()
    stores = count(role[rows.page[rows.of(What.STORE)]], size)
    lived = [_lifetime(rows, (role == i) & (rows.died >= 0)) for i in range(size)]
    return {
        word: RoleFacts(hits[i] + misses[i], hits[i], misses[i], now[i], int(peaks[i]), deaths[i], emptied[i], stores[i], lived[i])
        for i, word in enumerate(words.tolist())
    }


def _by_cause(rows: Rows, role: Ints, size: int, what: What) -> list[dict[str, int]]:
    at = rows.of(what)
    table = np.bincount(role[rows.page[at]] * len(CAUSES) + rows.cause[at], minlength=size * len(CAUSES)).reshape(size, len(CAUSES))
    named = [sorted(zip(CAUSES, line, strict=True)) for line in table.tolist()]
    return [{cause: n for cause, n in line if n} for line in named]


def _lifetime(rows: Rows, which: NDArray[np.bool_]) -> Lifetime | None:
    events = rows.event[rows.died[which]] - rows.event[rows.made[which]]
    if not len(events):
        return None
    return Lifetime(round(float(np.median(events)), 1), round(float(events.mean()), 1), int(events.max()))


def crowds_of(rows: Rows, alive: Lives) -> Crowds:
    """Only frames that ever have two pages at once are looked at."""
    frame = rows.frame[alive.page]
    after = running(frame, alive.delta)
    crowded = np.zeros(int(rows.frame.max(initial=0)) + 1, bool)
    crowded[frame[after > 1]] = True
    at = np.flatnonzero(crowded[frame])
    frame, after, delta, role = frame[at], after[at], alive.delta[at], rows.role[alive.page[at]]
    true: dict[str, NDArray[np.bool_]] = {
        part: distinct(frame, role & _BITS[part], delta) > 1 for part in ("level", "glevels", "metaphysical")
    }
    true["quadrant"] = distinct(frame, role, delta) > distinct(frame, role & ~_BITS["quadrant"], delta)
    true["several"] = after > 1
    counts = range(2, int(after.max(initial=0)) + 1)
    return Crowds(
        at,
        {way: _changes(frame, true[way]) for way in (*PARTS, "several")},
        {n: (after == n).astype(np.int64) - (after - delta == n) for n in counts},
    )


def _changes(groups: Ints, true: NDArray[np.bool_]) -> Ints:
    """1 where a group's answer becomes true, -1 where it becomes false, else 0; it is false at first."""
    order = np.argsort(groups, kind="stable")
    value = true[order].astype(np.int64)
    before = np.concatenate(([0], value[:-1]))
    before[np.concatenate(([True], groups[order][1:] != groups[order][:-1]))[: len(before)]] = 0
    out = np.empty(len(groups), np.int64)
    out[order] = value - before[: len(value)]
    return out


def _key(rows: Rows, alive: Lives, after: Ints) -> dict[str, int]:
    """A birth counts for a part where its frame has more pages that agree in all other parts than pages that agree in all."""
    frame, role = rows.frame[alive.page], rows.role[alive.page]
    birth = (alive.delta > 0) & (after > 1)
    crowded = np.zeros(int(rows.frame.max(initial=0)) + 1, bool)
    crowded[frame[birth]] = True
    at = np.flatnonzero(crowded[frame])
    frame, role, delta, birth = frame[at], role[at], alive.delta[at], birth[at]
    same = running(pairs(frame, role), delta)
    return {part: int(np.count_nonzero(birth & (running(pairs(frame, role & ~_BITS[part]), delta) > same))) for part in PARTS}


def told_apart_by(roles: list[Role]) -> list[str]:
    """In which parts of the key a frame's pages differ; quadrant counts where two are equal but for it."""
    ways = {part for part in ("level", "glevels", "metaphysical") if len({getattr(role, part) for role in roles}) > 1}
    if len({role._replace(quadrant=0) for role in roles}) < len(set(roles)):
        ways.add("quadrant")
    return [part for part in PARTS if part in ways]


def roles_of(words: list[int]) -> list[dict[str, int]]:
    """Role words taken apart, in their order."""
    return [unpack(word)._asdict() for word in sorted(words)]
