"""Address spaces over time: in which share of each stretch of events a root was loaded."""

from __future__ import annotations

from dataclasses import dataclass

from analyzer.trace.residency import History, Space
from db.trace import TraceReader


@dataclass(frozen=True)
class Row:
    """An address space and the share of each bucket, 0 to 1 over all vCPUs, in which its root was loaded."""

    space: Space
    shares: list[float]


@dataclass(frozen=True)
class Timeline:
    """Events ``first`` to ``last`` in buckets of ``width`` events."""

    first: int
    last: int
    width: int
    rows: list[Row]
    """In order of appearance."""
    others: int
    """Address spaces left out because they were loaded for less."""
    marks: list[tuple[int, str]]
    """The bucket in which each mark lies, and its name; those outside are left out."""


def timeline(trace: TraceReader, buckets: int, most: int | None = None, first: int = 1, last: int | None = None) -> Timeline:
    """Events ``first`` to ``last`` in at most ``buckets`` buckets; the ``most`` address spaces that were loaded longest in them."""
    last = min(last or trace.count(), trace.count())
    first = max(1, first)
    width = max(1, -(-(last - first + 1) // buckets))
    count = max(0, -(-(last - first + 1) // width))
    vcpus = max(1, trace.recording["vcpus"])
    used: dict[int, tuple[Space, list[float]]] = {}
    for stay in History(trace).stays:
        begin, end = max(stay.first, first), min(stay.end, last + 1)
        if begin >= end:
            continue
        _, shares = used.setdefault(id(stay.space), (stay.space, [0.0] * count))
        for bucket in range((begin - first) // width, (end - 1 - first) // width + 1):
            start = first + bucket * width
            inside = min(end, start + width) - max(begin, start)
            shares[bucket] += inside / (min(start + width, last + 1) - start) / vcpus
    kept = sorted(used.values(), key=lambda row: (-sum(row[1]), row[0].first))[:most]
    kept.sort(key=lambda row: (row[0].first, row[0].root))
    marks = [((row["seq"] + 1 - first) // width, row["name"]) for row in trace.rows("mark") if first <= row["seq"] + 1 <= last]
    return Timeline(first, last, width, [Row(*row) for row in kept], len(used) - len(kept), marks)
