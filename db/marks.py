"""Moments of a trace by name: marks, and the phases between them."""

from __future__ import annotations

from dataclasses import dataclass

from db.errors import UsageError
from db.trace import TraceReader

#: No event has a greater number, and one more is one that SQLite can hold.
_LAST = (1 << 62) - 1


@dataclass(frozen=True)
class Phase:
    """What lies between two marks: events ``first`` to ``last``, named after the mark it begins with."""

    mark: int
    """The mark's id; 0 for what comes before every mark."""
    name: str
    first: int
    last: int


def phases(trace: TraceReader) -> list[Phase]:
    """The phases of a trace that hold events, in order. A trace without marks is one phase."""
    marks = [(0, "before every mark" if trace.rows("mark") else "the whole trace", 0)]
    marks += [(row["id"], row["name"], row["seq"]) for row in sorted(trace.rows("mark"), key=lambda row: (row["seq"], row["id"]))]
    ends = [seq for _, _, seq in marks[1:]] + [trace.count()]
    return [Phase(mark, name, seq + 1, end) for (mark, name, seq), end in zip(marks, ends, strict=True) if end > seq]


def first_event(trace: TraceReader, moment: str) -> int:
    """The first event from ``moment`` on: a number of an event, or the name of a mark. ``UsageError`` where it is neither."""
    return _number(moment) if _is_number(moment) else _mark(trace, moment) + 1


def last_event(trace: TraceReader, moment: str) -> int:
    """The last event up to ``moment``: that number itself, or the event before the mark of that name."""
    return _number(moment) if _is_number(moment) else _mark(trace, moment)


def _is_number(moment: str) -> bool:
    return moment.replace(",", "").replace("_", "").isdecimal()


def _number(moment: str) -> int:
    return min(int(moment.replace(",", "").replace("_", "")), _LAST)


def _mark(trace: TraceReader, name: str) -> int:
    marks = trace.rows("mark")
    for row in marks:
        if row["name"] == name:
            return min(int(row["seq"]), _LAST)
    names = ", ".join(repr(row["name"]) for row in marks) or "this trace has none"
    raise UsageError(f"there is no mark called {name!r}", f"an event's number, or a mark: {names}")
