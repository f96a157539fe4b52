"""shadowtrace stat."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.reports import inventory as report
from analyzer.trace.inventory import QUERIES, inventory
from db.trace import TraceReader
from shadowtrace.options import show, sql_option, trace_argument


@click.command("stat")
@trace_argument
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--all", "everything", is_flag=True, help="Every address space, not only those that stayed longest.")
@sql_option
def command(trace: Path, form: str, everything: bool, sql: bool) -> None:
    """Say what is in a trace: events by kind, phase and vCPU, address spaces, losses, checks.

    \b
    Example:
      shadowtrace stat boot.db
      shadowtrace stat boot.db --format json
    """
    if sql:
        click.echo("\n\n".join(map(str, QUERIES)))
        return
    with TraceReader(trace) as opened:
        found = inventory(opened)
    if form == "json":
        click.echo(report.as_json(found))
    else:
        show(report.text(found, None if everything else 20))
