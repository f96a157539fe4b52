"""shadowtrace annotate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from analyzer import replay
from analyzer.reports import annotated as report
from analyzer.trace.writers import annotate, table
from db.errors import UsageError
from db.queries import writers
from db.trace import TraceReader
from shadowtrace import __version__
from shadowtrace.options import chosen, model_options, refuse_model_options, show, sql_option, trace_argument
from shadowtrace.progress import replay_line

_COSTS = ("emulated", "floods", "zaps")


@click.command("annotate")
@trace_argument
@click.option("--by", type=click.Choice(["function", "instruction"]), default="function", show_default=True, help="What a row stands for.")
@click.option("--sort", type=click.Choice(["stores", *_COSTS]), default="stores", show_default=True, help="What comes first.")
@click.option("--limit", default=30, show_default=True, type=click.IntRange(0), help="Rows of the table at the most; 0: all.")
@click.option("--no-replay", "plain", is_flag=True, help="Count stores only; what they cost a cache takes a replay.")
@click.option("--format", "form", type=click.Choice(["table", "json", "jsonl", "csv", "markdown"]), default="table", show_default=True)
@model_options
@sql_option
def command(trace: Path, by: str, sort: str, limit: int, plain: bool, form: str, sql: bool, model: str, **options: Any) -> None:
    """Say which guest code writes page tables, and what that costs a shadow page cache.

    For each function of the guest's kernel, or each instruction: its stores to page tables, to how many tables; how many were
    to tables that the model shadowed, so that it had to emulate them; how many of these the flood detection answered with a
    zap; how many shadow pages the stores zapped.

    \b
    Example:
      shadowtrace annotate boot.db
      shadowtrace annotate boot.db --by instruction --sort zaps --model kvm-2.6.24
    """
    if sql:
        refuse_model_options(("model", *options), "leave them out: --sql prints a query over what was recorded")
        if sort in _COSTS:
            raise UsageError(f"{sort} takes a replay to count, and no query replays", "leave out --sql, or --sort stores")
        click.echo(writers(by == "instruction", limit or -1))
        return
    if plain and sort in _COSTS:
        raise UsageError(f"{sort} takes a replay to count", "leave out --no-replay, or --sort stores")
    if plain:
        refuse_model_options(("model", *options), "leave them out, or --no-replay")
    parameters = chosen(model, **options)
    with TraceReader(trace) as opened:
        journal = None
        if not plain:
            with replay_line(opened.count()) as progress:
                journal = replay.run(opened, model, parameters, __version__, progress)[1].journal
        rows = list(table(annotate(opened, journal), by, sort))
    named = None if plain else model
    if form == "table":
        show(report.text(rows, limit or None, named))
    else:
        sys.stdout.writelines(report.as_rows(form, rows, named))
