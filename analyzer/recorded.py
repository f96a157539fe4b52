"""What a trace knows of its own story: the one room of the analysis, beside ``replay``, that reads it."""

from __future__ import annotations

from sqlalchemy import func, select

from analyzer.story import Mark, Name, Story
from db.event import Kind
from db.trace import TraceReader


def story(trace: TraceReader) -> Story:
    """The marks and the names of programs of a trace."""
    marks = sorted(trace.rows("mark"), key=lambda row: (row["seq"], row["id"]))
    bounds = [row["seq"] for row in marks] + [trace.count()]
    found = tuple(Mark(row["name"], row["seq"] + 1, _accesses(trace, row["seq"], bounds[i + 1])) for i, row in enumerate(marks))
    names = tuple(Name(row["root_gfn"], row["seq"] + 1, row["comm"]) for row in trace.rows("address_space"))
    return Story(found, names)


def _accesses(trace: TraceReader, after: int, last: int) -> int:
    event = trace.table("event")
    chosen = (event.c.seq > after) & (event.c.seq <= last) & (event.c.kind == int(Kind.ACCESS))
    return int(trace.query(select(func.count()).select_from(event).where(chosen)).scalar())
