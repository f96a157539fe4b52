"""What a trace knows of its own story: the one room of the analysis, beside ``replay``, that reads it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from sqlalchemy import func, select

from analyzer.stays import History
from analyzer.story import Mark, Root, Story
from db.event import Kind
from db.trace import TraceReader

#: What sealed traces that are open have told: a report needs it for each of its replays.
_TOLD: WeakKeyDictionary[TraceReader, Story] = WeakKeyDictionary()


def story(trace: TraceReader) -> Story:
    """The marks and the address spaces of a trace."""
    if trace.live:
        return _read(trace)
    if trace not in _TOLD:
        _TOLD[trace] = _read(trace)
    return _TOLD[trace]


def _read(trace: TraceReader) -> Story:
    marks = sorted(trace.rows("mark"), key=lambda row: (row["seq"], row["id"]))
    bounds = [row["seq"] for row in marks] + [trace.count()]
    found = tuple(Mark(row["name"], row["seq"] + 1, _accesses(trace, row["seq"], bounds[i + 1])) for i, row in enumerate(marks))
    roots = tuple(Root(space.root, space.first, space.comm) for space in History(trace).generations)
    return Story(found, roots)


def _accesses(trace: TraceReader, after: int, last: int) -> int:
    event = trace.table("event")
    chosen = (event.c.seq > after) & (event.c.seq <= last) & (event.c.kind == int(Kind.ACCESS))
    return int(trace.query(select(func.count()).select_from(event).where(chosen)).scalar())
