"""Time: what happened in each phase of the boot, and in each of up to two hundred slices of a replay, counted in events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyzer.facts.grouped_sums import Ints, count
from analyzer.facts.journal_columns import Lives, Rows
from analyzer.facts.sharing import PARTS, Crowds
from analyzer.facts.tree import multi_parent
from analyzer.model.journal import CAUSES, What
from analyzer.trace.context import Mark, Story

#: Slices of a replay, at most.
SLICES = 200


@dataclass(frozen=True)
class Phase:
    """From one mark to the next."""

    name: str
    """The mark's; ``start`` before the first."""
    first: int
    last: int
    """Its events; the last is before the first where none is in it."""
    cr3: int
    """Times a vCPU took roots."""
    accesses: int
    faults: int
    lookups: int
    hits: int
    made: int
    zaps: dict[str, int]
    """By cause, those that left a root in use empty included."""
    stores: int
    """Stores to shadowed frames, emulated."""
    live_end: int
    """Shadow pages in use when it ends."""


@dataclass(frozen=True)
class Slice:
    """Some events in a row; what is alive and shared is how things stand after them."""

    first: int
    cr3: int
    faults: int
    lookups: int
    hits: int
    made: int
    zapped: int
    stores: int
    live: dict[str, int]
    """Shadow pages in use, by level."""
    multi_parent: int
    """Of these, pages with several parents."""
    several_pages: int
    """Frames with several shadow pages."""
    told_apart_by: dict[str, int]
    """Of these, frames whose pages differ in this part of the key; one may count in several."""
    by_pages: dict[str, int]
    """Of these, frames with exactly so many pages."""


@dataclass(frozen=True)
class OverTime:
    """A replay in slices of ``bucket_events`` events each."""

    bucket_events: int
    buckets: tuple[Slice, ...]


def _counts(rows: Rows, starts: Ints) -> dict[What, list[int]]:
    """Rows of each kind in each of the stretches that begin at these events."""
    stretch = np.maximum(np.searchsorted(starts, rows.event, side="right") - 1, 0)
    return {what: count(stretch[rows.what == what], len(starts)) for what in What}


def phases(rows: Rows, alive: Lives, story: Story, events: int, accesses: int) -> tuple[Phase, ...]:
    """The phases that the trace's marks make of ``events`` events with ``accesses`` accesses."""
    marks = _marks(story, events, accesses)
    starts = np.array([mark.first for mark in marks], np.int64)
    counted = _counts(rows, starts)
    ends = [*(mark.first - 1 for mark in marks[1:]), events]
    zapped = rows.of(What.ZAP_FREED, What.ZAP_ROOT_KEPT)
    stretch = np.maximum(np.searchsorted(starts, rows.event[zapped], side="right") - 1, 0)
    causes = np.bincount(stretch * len(CAUSES) + rows.cause[zapped], minlength=len(marks) * len(CAUSES)).reshape(-1, len(CAUSES)).tolist()
    total = np.concatenate(([0], np.cumsum(alive.delta)))
    live = total[np.searchsorted(rows.event[alive.row], ends, side="right")].tolist()
    return tuple(
        Phase(
            mark.name,
            mark.first,
            ends[i],
            counted[What.ROOTS_LOADED][i],
            mark.accesses,
            counted[What.FAULT][i],
            counted[What.HIT][i] + counted[What.ALLOC][i],
            counted[What.HIT][i],
            counted[What.ALLOC][i],
            {cause: n for cause, n in zip(CAUSES, causes[i], strict=True) if n},
            counted[What.STORE][i],
            live[i],
        )
        for i, mark in enumerate(marks)
    )


def _marks(story: Story, events: int, accesses: int) -> list[Mark]:
    """The marks up to ``events``, with one where the trace begins."""
    marks = [mark for mark in story.marks if mark.first <= events + 1]
    if not marks or marks[0].first > 1:
        marks.insert(0, Mark("start", 1, accesses - sum(mark.accesses for mark in marks)))
    return marks


def phase_of(rows: Rows, story: Story) -> tuple[list[str], Ints]:
    """The names of the phases, and which one each row of the journal is in."""
    marks = _marks(story, int(rows.event.max(initial=0)), 0)
    starts = np.array([mark.first for mark in marks], np.int64)
    return [mark.name for mark in marks], np.maximum(np.searchsorted(starts, rows.event, side="right") - 1, 0)


def slice_length(events: int) -> int:
    """Events in each slice of a replay of so many."""
    return max(-(-events // SLICES), 1)


def over_time(rows: Rows, alive: Lives, crowds: Crowds, events: int) -> OverTime:
    """A replay of ``events`` events in slices of one length; the first holds the machine's creation too."""
    length = slice_length(events)
    starts = np.arange(1, max(events, 1) + 1, length)
    ends = starts + length - 1
    counted = _counts(rows, starts)
    level = rows.level[alive.page]
    born = rows.event[alive.row]
    live = {}
    for number in sorted(set(level.tolist())):
        mine = level == number
        total = np.concatenate(([0], np.cumsum(alive.delta[mine])))
        live[str(number)] = total[np.searchsorted(born[mine], ends, side="right")].tolist()
    linked, parents = multi_parent(rows)
    several_parents = _after(rows.event[linked], parents, ends)
    changed = born[crowds.at]
    several = _after(changed, np.cumsum(crowds.ways["several"]), ends)
    apart = {part: _after(changed, np.cumsum(crowds.ways[part]), ends) for part in PARTS}
    by_pages = {str(n): _after(changed, np.cumsum(change), ends) for n, change in crowds.by_pages.items()}
    return OverTime(
        length,
        tuple(
            Slice(
                first,
                counted[What.ROOTS_LOADED][i],
                counted[What.FAULT][i],
                counted[What.HIT][i] + counted[What.ALLOC][i],
                counted[What.HIT][i],
                counted[What.ALLOC][i],
                counted[What.ZAP_FREED][i] + counted[What.ZAP_ROOT_KEPT][i],
                counted[What.STORE][i],
                {number: pages[i] for number, pages in live.items()},
                several_parents[i],
                several[i],
                {part: frames[i] for part, frames in apart.items()},
                {n: frames[i] for n, frames in by_pages.items()},
            )
            for i, first in enumerate(starts.tolist())
        ),
    )


def _after(events: Ints, values: Ints, ends: Ints) -> list[int]:
    """The value after the last of ``events`` up to each end, 0 before the first."""
    return np.concatenate(([0], values))[np.searchsorted(events, ends, side="right")].tolist()  # type: ignore[no-any-return]
