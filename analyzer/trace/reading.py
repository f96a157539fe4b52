"""What a trace knows of its own story: the one room of the analysis, beside ``replay``, that reads it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from analyzer.trace.context import Mark, Root, Story
from analyzer.trace.residency import History
from db.columns import Columns, root_rows
from db.trace import TraceReader
from x86.event import Kind

#: What sealed traces that are open have told: a report needs it for each of its replays.
_TOLD: WeakKeyDictionary[TraceReader, Story] = WeakKeyDictionary()


class Passed:
    """What a story takes from the events, gathered as all of them pass by in columns: the file need not be searched for it."""

    def __init__(self, trace: TraceReader) -> None:
        self.marks = _marks(trace)
        self.accesses = np.zeros(len(self.marks) + 1, np.int64)
        """Before the first mark, between each two, and behind the last."""
        self.roots: list[tuple[Any, ...]] = []

    def take(self, columns: Columns) -> None:
        """The next batch."""
        seqs = columns.seq[columns.kind == Kind.ACCESS]
        at = np.searchsorted(seqs, [row["seq"] for row in self.marks], side="right")
        self.accesses += np.diff(at, prepend=0, append=len(seqs))
        self.roots += root_rows(columns)


def story(trace: TraceReader, passed: Passed | None = None) -> Story:
    """The marks and the address spaces of a trace, of which all events may have passed by already."""
    if trace.live:
        return _read(trace, passed)
    if trace not in _TOLD:
        _TOLD[trace] = _read(trace, passed)
    return _TOLD[trace]


def _read(trace: TraceReader, passed: Passed | None) -> Story:
    if passed is None:
        marks = _marks(trace)
        bounds = [row["seq"] for row in marks] + [trace.count()]
        accesses = [_accesses(trace, row["seq"], bounds[i + 1]) for i, row in enumerate(marks)]
        history = History(trace)
    else:
        marks, accesses = passed.marks, passed.accesses[1:].tolist()
        history = History(trace, passed.roots)
    found = tuple(Mark(row["name"], row["seq"] + 1, count) for row, count in zip(marks, accesses, strict=True))
    return Story(found, tuple(Root(space.root, space.first, space.comm) for space in history.generations))


def _marks(trace: TraceReader) -> list[dict[str, Any]]:
    return sorted(trace.rows("mark"), key=lambda row: (row["seq"], row["id"]))


def _accesses(trace: TraceReader, after: int, last: int) -> int:
    sql = "SELECT count(*) FROM event WHERE seq > :after AND seq <= :last AND kind = :kind"
    return trace.number(sql, {"after": after, "last": last, "kind": Kind.ACCESS})
