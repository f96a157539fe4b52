"""What the cache was worth: a run against one of the same trace without a cache, in counts and in cycles of a simple model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Costs:
    """Cycles of the cost model. The defaults are round figures of the order that processors have had; yours to set."""

    exit: int = 2000
    """An exit to the hypervisor and back."""
    fault: int = 1500
    """What the hypervisor does in answer to a page fault, fills aside: the walk of the guest's tables."""
    fill: int = 150
    """Making one shadow entry."""


@dataclass(frozen=True)
class Pair:
    """A number with the cache and without."""

    cached: int
    uncached: int
    per_cr3_cached: float
    per_cr3_uncached: float
    """Both for each cr3 load."""


@dataclass(frozen=True)
class Cycles:
    """Cycles by the cost model, and the costs it was asked with."""

    exit: int
    fault: int
    fill: int
    cached: int
    uncached: int


@dataclass(frozen=True)
class Saved:
    """What the cache saved."""

    faults: Pair
    exits: Pair
    """Exits to the hypervisor: see ``exits``."""
    pages_made: Pair
    entries_filled: Pair
    cycles: Cycles


def saved(cached: dict[str, Any], uncached: dict[str, Any], costs: Costs) -> Saved:
    """Compare the facts of two runs of one trace."""
    loads = max(cached["events"]["cr3"], 1)

    def pair(ours: int, theirs: int) -> Pair:
        return Pair(ours, theirs, round(ours / loads, 3), round(theirs / loads, 3))

    both = (cached, uncached)
    return Saved(
        pair(*(facts["access"]["faults"] for facts in both)),
        pair(exits(cached, False), exits(uncached, True)),
        pair(*(facts["get_page"]["misses"] for facts in both)),
        pair(*(_fills(facts) for facts in both)),
        Cycles(costs.exit, costs.fault, costs.fill, _cycles(cached, False, costs), _cycles(uncached, True, costs)),
    )


def exits(facts: dict[str, Any], invlpg: bool) -> int:
    """Exits to the hypervisor: faults, emulated stores, cr3 loads, and ``invlpg`` where that is intercepted: without a cache.

    A store that is an access of the trace too exits once: as a store.
    """
    access, events = facts["access"], facts["events"]
    faults = access["faults"] - access["write_to_shadowed"]
    return int(faults + facts["writes"]["protected"] + events["cr3"] + (events["invlpg"] if invlpg else 0))


def _fills(facts: dict[str, Any]) -> int:
    return int(facts["fills"]["leaf"] + facts["fills"]["table"])


def _cycles(facts: dict[str, Any], invlpg: bool, costs: Costs) -> int:
    return costs.exit * exits(facts, invlpg) + costs.fault * int(facts["access"]["faults"]) + costs.fill * _fills(facts)
