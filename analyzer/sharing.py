"""Who shares what: facts drawn from the journal of a replay, from every look-up, birth and death of a shadow page in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from analyzer.journal import CAUSES, Journal, What
from analyzer.role import Role, unpack

#: The parts of the key that can tell two shadow pages of one frame apart.
PARTS = ("level", "quadrant", "glevels", "metaphysical")


@dataclass(slots=True)
class RoleFacts:
    """What happened to the pages of one role."""

    lookups: int = 0
    hits: int = 0
    misses: int = 0
    live: int = 0
    peak: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    """Pages freed, by cause."""
    emptied: Counter[str] = field(default_factory=Counter)
    """Roots in use that were zapped and kept, by cause."""


@dataclass(slots=True)
class Spread:
    """Guest frames that have several shadow pages at once, told apart in one way: now, and most at once."""

    now: int = 0
    peak: int = 0

    def add(self, change: int) -> None:
        """Count ``change`` frames more."""
        self.now += change
        self.peak = max(self.peak, self.now)


class Sharing:
    """Facts about roles and frames."""

    def __init__(self) -> None:
        self.roles: dict[int, RoleFacts] = {}
        #: How often a page of each (gfn, role) was made.
        self.births: Counter[tuple[int, int]] = Counter()
        #: Roles of the live pages of each frame that has any.
        self.frames: dict[int, list[Role]] = {}
        self.spread = {name: Spread() for name in (*PARTS, "several")}
        #: Frames with exactly this many live pages, at the most.
        self.pages_per_frame_peak: Counter[int] = Counter()
        self._pages_per_frame: Counter[int] = Counter()
        #: Misses where a live page of the same frame differed in nothing but this part of the key.
        self.key = dict.fromkeys(PARTS, 0)

    def _role(self, role: int) -> RoleFacts:
        facts = self.roles.get(role)
        if facts is None:
            facts = self.roles[role] = RoleFacts()
        return facts

    def hit(self, role: int) -> None:
        """A look-up of ``role`` found its page."""
        facts = self._role(role)
        facts.lookups += 1
        facts.hits += 1

    def miss(self, gfn: int, role: int) -> None:
        """A look-up of (``gfn``, ``role``) found nothing: count each part of the key that alone told a live page apart."""
        facts = self._role(role)
        facts.lookups += 1
        facts.misses += 1
        wanted = unpack(role)
        alone = set()
        for other in self.frames.get(gfn, ()):
            differing = [part for part in PARTS if getattr(other, part) != getattr(wanted, part)]
            if len(differing) == 1:
                alone.add(differing[0])
        for part in alone:
            self.key[part] += 1

    def made(self, gfn: int, role: int) -> None:
        """A page of this key was made."""
        self.births[gfn, role] += 1
        facts = self._role(role)
        facts.live += 1
        facts.peak = max(facts.peak, facts.live)
        before = self.frames.get(gfn, [])
        self._change(gfn, before, [*before, unpack(role)])

    def died(self, gfn: int, role: int, cause: str) -> None:
        """A page of this key went to the free list."""
        facts = self._role(role)
        facts.live -= 1
        facts.deaths[cause] += 1
        before = self.frames[gfn]
        after = list(before)
        after.remove(unpack(role))
        self._change(gfn, before, after)

    def emptied(self, role: int, cause: str) -> None:
        """A root in use of this role was zapped and kept."""
        self._role(role).emptied[cause] += 1

    def _change(self, gfn: int, before: list[Role], after: list[Role]) -> None:
        if after:
            self.frames[gfn] = after
        else:
            del self.frames[gfn]
        gone, come = told_apart_by(before), told_apart_by(after)
        for name in gone - come:
            self.spread[name].add(-1)
        for name in come - gone:
            self.spread[name].add(1)
        self._pages_per_frame[len(before)] -= 1
        self._pages_per_frame[len(after)] += 1
        self.pages_per_frame_peak[len(after)] = max(self.pages_per_frame_peak[len(after)], self._pages_per_frame[len(after)])

    def pages_per_frame(self) -> dict[int, tuple[int, int]]:
        """How many frames have so many shadow pages: {pages: (now, most at once)}, for 2 and more."""
        return {n: (self._pages_per_frame[n], peak) for n, peak in sorted(self.pages_per_frame_peak.items()) if n > 1}


def sharing(journal: Journal) -> Sharing:
    """The facts of a journal."""
    found = Sharing()
    keys = list(zip(journal.births["gfn"].tolist(), journal.births["role"].tolist(), strict=True))
    rows = journal.rows[np.isin(journal.rows["what"], (What.MADE, What.FOUND, What.DIED, What.EMPTIED))]
    for what, cause, page in zip(rows["what"].tolist(), rows["cause"].tolist(), rows["page"].tolist(), strict=True):
        gfn, role = keys[page]
        if what == What.FOUND:
            found.hit(role)
        elif what == What.MADE:
            found.miss(gfn, role)
            found.made(gfn, role)
        elif what == What.DIED:
            found.died(gfn, role, CAUSES[cause])
        else:
            found.emptied(role, CAUSES[cause])
    return found


def told_apart_by(roles: list[Role]) -> set[str]:
    """In which ways a frame's live pages differ: ``several`` if there are two at all, and the parts of the key.

    Quadrant counts where two pages are equal but for it; the other parts wherever two pages differ in them.
    """
    if len(roles) < 2:
        return set()
    ways = {part for part in ("level", "glevels", "metaphysical") if len({getattr(role, part) for role in roles}) > 1}
    if len({role._replace(quadrant=0) for role in roles}) < len(set(roles)):
        ways.add("quadrant")
    return ways | {"several"}
