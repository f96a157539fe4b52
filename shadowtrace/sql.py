"""shadowtrace sql."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click

from analyzer.reports import rows as report
from db.errors import UsageError
from db.sql import Session
from shadowtrace.options import trace_argument
from shadowtrace.sqlshell import shell

#: Rows that a table shows where nothing is said: more is for pipes.
_SHOWN = 1000


@click.command("sql")
@trace_argument
@click.argument("query", required=False)
@click.option("--list", "listing", is_flag=True, help="List the views and tables instead.")
@click.option("--format", "form", type=click.Choice(report.FORMATS), default="table", show_default=True)
@click.option("--limit", type=click.IntRange(0), help=f"Rows at the most; 0: all. A table and Markdown stop at {_SHOWN} by default.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Give up on a query after so long: exit code 3."
)
def command(trace: Path, query: str | None, listing: bool, form: str, limit: int | None, timeout: float | None) -> None:
    """Ask a trace in SQL; without a QUERY, in a shell. Nothing can be changed; Ctrl-C stops a query.

    QUERY - reads it from standard input. docs/schema.md explains the tables.

    \b
    Example:
      shadowtrace sql boot.db "SELECT size, count(*) FROM v_pt_write GROUP BY size"
      shadowtrace sql boot.db --list
    """
    if listing and query is not None:
        raise UsageError("--list asks nothing: the query would not be run", "leave out one of the two")
    with Session(trace, timeout) as session:
        if listing:
            sys.stdout.writelines(report.render(form, ("name", "what it holds", "columns"), session.catalogue()))
        elif query is not None:
            run(session, sys.stdin.read() if query == "-" else query, form, limit)
        elif sys.stdin.isatty():
            shell(trace, lambda line: run(session, line, form, limit), session.catalogue)
        else:
            raise UsageError("say what to ask, or - to read it from standard input", f'shadowtrace sql {trace} "SELECT ..."')


def run(session: Session, query: str, form: str, limit: int | None) -> None:
    """Ask and print, as far as the limit."""
    columns, rows = session.ask(query)
    most = limit if limit is not None else _SHOWN if form in ("table", "markdown") else 0
    if not columns:
        return
    sys.stdout.writelines(report.render(form, columns, itertools.islice(rows, most) if most else rows))
    if most and next(rows, None) is not None:
        sys.stdout.flush()
        click.echo(f"cut at {most:,} rows; --limit 0 prints all", err=True)
