"""Look-ups, deaths, faults and stores grouped by whatever is asked: the ``--by`` of a report.

A key that a row has no answer to leaves the row out: only hits have an origin, only deaths a cause, and a fault is of no level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyzer.facts.group_counts import Group, bucket_of_page, tally
from analyzer.facts.grouped_sums import Ints, pairs
from analyzer.facts.journal_columns import Rows, rows_of
from analyzer.facts.origins import ORIGINS, hits
from analyzer.facts.overtime import phase_of, slice_length
from analyzer.facts.spaces import Spaces, spaces, unnamed
from analyzer.model.journal import AS_ROOT, CAUSES, Fault, What
from analyzer.model.outcome import Outcome
from analyzer.trace.context import Story, place
from x86.registers import Mode

_OF_A_PAGE = (What.ALLOC, What.HIT, What.ZAP_FREED, What.ZAP_ROOT_KEPT, What.STORE)

_ABSENT = -1


@dataclass(frozen=True)
class _Ground:
    """What keys are worked out from."""

    outcome: Outcome
    rows: Rows
    spaces: Spaces
    story: Story

    def by_page(self, values: Ints) -> Ints:
        """A value of each page, by birth number, for the rows that are about a page."""
        out = np.full(len(self.rows.event), _ABSENT, np.int64)
        at = self.rows.of(*_OF_A_PAGE)
        out[at] = values[self.rows.page[at]]
        return out

    def some(self, at: Ints, values: Ints) -> Ints:
        """Values of the rows ``at``, and none for the others."""
        out = np.full(len(self.rows.event), _ABSENT, np.int64)
        out[at] = values
        return out


Labels = Callable[[int], Any]


@dataclass(frozen=True)
class Key:
    """Something to group by: what it is, and for a journal the value of each row with what to call each value."""

    about: str
    values: Callable[[_Ground], tuple[Ints, Labels]]
    falling: bool = False
    """Whether its values are quantities, of which the greatest comes first; others come in their own order."""


def _plain(number: int) -> int:
    return number


def _named(names: Sequence[str]) -> Labels:
    return lambda number: names[number]


def _mode(ground: _Ground) -> tuple[Ints, Labels]:
    """The mode of the vCPU where a row is about no page."""
    levels = np.array([space.glevels for space in ground.spaces.all])
    values = ground.by_page(ground.rows.role & 15)
    return np.where(values == _ABSENT, levels[ground.spaces.of_row], values), lambda number: Mode(number).label


def _meta(ground: _Ground) -> tuple[Ints, Labels]:
    return ground.by_page(ground.rows.role >> 16 & 1), _named(("", "meta"))


def _kind(ground: _Ground) -> tuple[Ints, Labels]:
    at = ground.rows.of(What.ALLOC, What.HIT)
    return ground.some(at, ground.rows.cause[at] & AS_ROOT), _named(("table", "root"))


def _gfn(ground: _Ground) -> tuple[Ints, Labels]:
    frames = np.unique(ground.rows.gfn)
    return ground.by_page(ground.rows.frame), lambda number: f"{int(frames[number]):#x}"


def _bucket(ground: _Ground) -> tuple[Ints, Labels]:
    return ground.by_page(bucket_of_page(ground.rows, ground.outcome.parameters)), _plain


def _process(ground: _Ground) -> tuple[Ints, Labels]:
    names = list(dict.fromkeys(space.name for space in ground.spaces.all))
    number = np.array([names.index(space.name) for space in ground.spaces.all])
    return number[ground.spaces.of_row], _named(names)


def _space(ground: _Ground) -> tuple[Ints, Labels]:
    return ground.spaces.of_row, _named(labels(ground.spaces))


def labels(known: Spaces) -> list[str]:
    """Each address space told from all others: its program, the frame of its root, which program of that frame it is, the mode."""
    names = [
        f"{space.name} @{place(space.root)}.{space.generation}"
        if space.glevels and space.name != unnamed(space.root, space.generation)
        else space.name
        for space in known.all
    ]
    often = Counter(names)
    return [f"{name} ({Mode(space.glevels).label})" if often[name] > 1 else name for name, space in zip(names, known.all, strict=True)]


def _phase(ground: _Ground) -> tuple[Ints, Labels]:
    names, number = phase_of(ground.rows, ground.story)
    return number, _named(names)


def _time(ground: _Ground) -> tuple[Ints, Labels]:
    length = slice_length(ground.outcome.counters.events_total)
    return np.maximum(ground.rows.event - 1, 0) // length, lambda number: number * length + 1


def _cause(ground: _Ground) -> tuple[Ints, Labels]:
    at = ground.rows.of(What.ZAP_FREED, What.ZAP_ROOT_KEPT)
    return ground.some(at, ground.rows.cause[at]), _named(CAUSES)


def _origin(ground: _Ground) -> tuple[Ints, Labels]:
    at, kind, _ = hits(ground.rows, ground.spaces)
    return ground.some(at, kind), _named(ORIGINS)


def _age(ground: _Ground) -> tuple[Ints, Labels]:
    at, _, log = hits(ground.rows, ground.spaces)
    return ground.some(at, log), lambda number: 1 << number


def _answer(ground: _Ground) -> tuple[Ints, Labels]:
    at = ground.rows.of(What.FAULT)
    return ground.some(at, ground.rows.cause[at]), lambda number: Fault(number).name.lower()


#: Everything that can be grouped by.
KEYS = {
    "mode": Key("paging mode", _mode),
    "level": Key("level of the shadow page", lambda ground: (ground.by_page(ground.rows.level), _plain), falling=True),
    "quadrant": Key("quadrant of the shadow page", lambda ground: (ground.by_page(ground.rows.role >> 8 & 3), _plain), falling=True),
    "meta": Key("`meta` for pages of big pages and of the time without paging", _meta),
    "kind": Key("`root` or `table`: what was looked up", _kind),
    "gfn": Key("frame that the shadow page stands for", _gfn, falling=True),
    "bucket": Key("bucket of the hash table", _bucket, falling=True),
    "phase": Key("phase of the boot: from which mark on", _phase),
    "time": Key("slice of the replay, as in `over_time.buckets`, by its first event", _time),
    "process": Key("program, all its address spaces together", _process),
    "space": Key("address space: one program on one root", _space),
    "vcpu": Key("virtual CPU", lambda ground: (ground.rows.vcpu, _plain), falling=True),
    "cause": Key("why shadow pages were zapped", _cause),
    "origin": Key("who had made the page that was found", _origin),
    "age": Key("events since the found page was made, up to this power of two", _age, falling=True),
    "answer": Key("how a fault was answered", _answer),
}


#: What a report's own table of look-ups is grouped by.
ROLE_KEYS = ("mode", "level", "quadrant", "meta")


def grouped(
    outcome: Outcome,
    story: Story,
    by: Sequence[str],
    only: Sequence[tuple[str, str]] = (),
    sort: str | None = None,
    limit: int | None = None,
) -> list[Group]:
    """One row for each combination of values of the keys ``by``, in order of the values: the keys, ``COUNTS`` and ``MORE``.

    ``only`` keeps the rows of the journal whose key has a value that is called so. ``sort`` names a count, of which the greatest
    comes first, or one of ``by``; no more than ``limit`` rows are given. Every name of a key is one of ``KEYS``.
    """
    rows = rows_of(outcome.journal)
    ground = _Ground(outcome, rows, spaces(rows, story), story)
    keep = np.ones(len(rows.event), bool)
    for key, wanted in only:
        values, name = KEYS[key].values(ground)
        fitting = [number for number in np.unique(values).tolist() if number != _ABSENT and str(name(number)) == wanted]
        keep &= np.isin(values, fitting)
    columns = [KEYS[key].values(ground) for key in by]
    for values, _ in columns:
        keep &= values != _ABSENT
    code = np.zeros(int(keep.sum()), np.int64)
    for values, _ in columns:
        code = pairs(np.unique(code, return_inverse=True)[1].astype(np.int64), values[keep])
    unique, first, which = np.unique(code, return_index=True, return_inverse=True)
    counted = tally(rows, outcome.parameters, keep, which.reshape(-1).astype(np.int64), len(unique))
    places = np.flatnonzero(keep)[first].tolist()
    groups = [
        {
            **{key: name(int(values[place])) for key, (values, name) in zip(by, columns, strict=True)},
            **{count: numbers[i] for count, numbers in counted.items()},
        }
        for i, place in enumerate(places)
    ]
    if sort is not None and sort in by:
        values = columns[by.index(sort)][0][places]
        order = np.argsort(-values if KEYS[sort].falling else values, kind="stable").tolist()
        groups = [groups[i] for i in order]
    elif sort is not None:
        groups.sort(key=lambda group: -(group[sort] or 0))
    return groups[:limit]


def unknown(outcome: Outcome, story: Story, only: Sequence[tuple[str, str]]) -> tuple[str, str, list[str]] | None:
    """The first condition whose key has no value that is called so: key, wanted value, values that there are; ``None``: no such."""
    rows = rows_of(outcome.journal)
    ground = _Ground(outcome, rows, spaces(rows, story), story)
    for key, wanted in only:
        values, name = KEYS[key].values(ground)
        there = [str(name(number)) for number in np.unique(values).tolist() if number != _ABSENT]
        if wanted not in there:
            return key, wanted, there
    return None
