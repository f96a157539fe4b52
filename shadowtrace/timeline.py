"""shadowtrace timeline."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.reports import timeline as report
from analyzer.reports.text import width
from analyzer.trace.timeline import timeline
from db.marks import first_event, last_event
from db.queries import ROOTS
from db.trace import TraceReader
from shadowtrace.options import draws_ascii, no_such_event, sql_option, trace_argument, wants_colour


@click.command("timeline")
@trace_argument
@click.option("--from", "first", default="1", metavar="EVENT|MARK", help="The first event: its number, or a mark's name.")
@click.option("--to", "last", metavar="EVENT|MARK", help="The last event; a mark's name: what comes before the mark.")
@click.option("--limit", default=30, show_default=True, type=click.IntRange(0), help="Address spaces at the most; 0: all.")
@click.option("--width", "columns", type=click.IntRange(50, 10000), help="Columns to draw in; the terminal's by default.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@sql_option
def command(trace: Path, first: str, last: str | None, limit: int, columns: int | None, form: str, sql: bool) -> None:
    """Draw the address spaces over time: the higher the bar, the longer their root was loaded.

    Time is the number of the event. A page directory's frame is used again by the next process: 0x2a36.3 is the fourth
    address space at that root, .0 the first. A name is learnt when a program is executed: a fork's child has none before.

    \b
    Example:
      shadowtrace timeline boot.db
      shadowtrace timeline boot.db --from "first user process" --limit 0
    """
    if sql:
        click.echo(ROOTS)
        return
    with TraceReader(trace) as opened:
        begin, end = first_event(opened, first), last_event(opened, last) if last is not None else None
        line = timeline(opened, max(10, (columns or width()) - report.LABEL), limit or None, begin, end)
        if line.last < line.first:
            no_such_event(opened)
    if line.last >= line.first or form == "json":
        click.echo(report.as_json(line) if form == "json" else report.text(line, wants_colour(), draws_ascii()))
