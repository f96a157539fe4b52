"""Facts of sharing kept row by row, the slow way: what the columns of ``analyzer.facts.collect.collect.sharing`` and its neighbours must come to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from analyzer.facts.sharing import PARTS
from analyzer.model.journal import CAUSES, Journal, What
from analyzer.model.role import Role, unpack


@dataclass
class Slow:
    """One pass over a journal that keeps everything as it goes."""

    lookups: Counter[int] = field(default_factory=Counter)
    hits: Counter[int] = field(default_factory=Counter)
    live: Counter[int] = field(default_factory=Counter)
    peak: Counter[int] = field(default_factory=Counter)
    deaths: Counter[tuple[int, str]] = field(default_factory=Counter)
    lives: dict[int, list[int]] = field(default_factory=dict)
    key: Counter[str] = field(default_factory=Counter)
    spread: Counter[str] = field(default_factory=Counter)
    spread_peak: Counter[str] = field(default_factory=Counter)
    per_frame_peak: Counter[int] = field(default_factory=Counter)
    several_parents_peak: int = 0
    frames: dict[int, list[Role]] = field(default_factory=dict)
    over_time: dict[int, tuple[Counter[str], Counter[int]]] = field(default_factory=dict)
    """After an event with births or deaths: frames with several pages by way, frames by number of pages."""

    def ways(self, roles: list[Role]) -> set[str]:
        """In which ways a frame's pages differ."""
        if len(roles) < 2:
            return set()
        ways = {"several"} | {part for part in ("level", "glevels", "metaphysical") if len({getattr(role, part) for role in roles}) > 1}
        if len({role._replace(quadrant=0) for role in roles}) < len(set(roles)):
            ways.add("quadrant")
        return ways

    def frames_changed(self, event: int) -> None:
        """After a birth or death at an event: how many frames there are of each kind."""
        self.spread = Counter(way for roles in self.frames.values() for way in self.ways(roles))
        per_frame = Counter(len(roles) for roles in self.frames.values())
        self.over_time[event] = (self.spread, per_frame)
        for way, n in self.spread.items():
            self.spread_peak[way] = max(self.spread_peak[way], n)
        for pages, n in per_frame.items():
            self.per_frame_peak[pages] = max(self.per_frame_peak[pages], n)


def slow(journal: Journal) -> Slow:
    """Read a journal row by row."""
    kept = Slow()
    born: dict[int, int] = {}
    parents: Counter[int] = Counter()
    for row in journal.rows.tolist():
        event, what, _, cause, _, page, _ = row
        if what in (What.ALLOC, What.HIT, What.ZAP_FREED):
            gfn, role = journal.births[page].tolist()
            mine = kept.frames.setdefault(gfn, [])
        if what in (What.ALLOC, What.HIT):
            kept.lookups[role] += 1
            kept.hits[role] += what == What.HIT
        if what == What.ALLOC:
            for part in PARTS:
                kept.key[part] += any(
                    [other for other in PARTS if getattr(there, other) != getattr(unpack(role), other)] == [part] for there in mine
                )
            born[page] = event
            mine.append(unpack(role))
            kept.live[role] += 1
            kept.peak[role] = max(kept.peak[role], kept.live[role])
            kept.frames_changed(event)
        elif what == What.ZAP_FREED:
            mine.remove(unpack(role))
            kept.live[role] -= 1
            kept.deaths[role, CAUSES[cause]] += 1
            kept.lives.setdefault(role, []).append(event - born[page])
            kept.frames_changed(event)
        elif what in (What.LINKED, What.UNLINKED):
            parents[page] += 1 if what == What.LINKED else -1
            kept.several_parents_peak = max(kept.several_parents_peak, sum(1 for n in parents.values() if n > 1))
    return kept
