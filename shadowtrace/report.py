"""shadowtrace report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from analyzer import replay, reporting
from analyzer.facts.group_counts import COUNTS, MORE
from analyzer.facts.grouping import KEYS
from analyzer.facts.savings import Costs
from analyzer.reports.formats import FORMATS
from analyzer.reports.text import TerminalStyle, look
from db.errors import UsageError
from db.file.outputs import check_target
from db.trace import TraceReader
from shadowtrace.completion import list_of, one_of
from shadowtrace.options import asked, chosen, core_option, model_options, trace_argument, write_out
from shadowtrace.progress import replay_line

#: Options of rows, and of a report that is no rows; a live KVM's log has nothing for these and more.
_OF_ROWS, _OF_THE_WHOLE = ("only", "sort", "limit"), ("cycles_exit", "cycles_fault", "cycles_fill")


def _columns(context: click.Context, parameter: click.Parameter, given: str) -> list[str]:
    """What a shell offers for --sort: a count, or a key of the --by that stands before it."""
    keys = (context.params.get("by") or "").split(",")
    return one_of((*COUNTS, *MORE, *(key for key in KEYS if key in keys)))(context, parameter, given)


@click.command("report")
@trace_argument
@model_options
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="table", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this file instead of printing.")
@click.option("--all", "everything", is_flag=True, help="Do not fold rows that say the same, and leave nothing out.")
@click.option("--by", metavar="KEY,..", shell_complete=list_of(KEYS), help=f"Group instead: {', '.join(KEYS)}.")
@click.option(
    "--only",
    metavar="KEY=VALUE",
    multiple=True,
    shell_complete=one_of(f"{key}=" for key in KEYS),
    help="Count only what has this value, as --by shows it; more than one: all.",
)
@click.option(
    "--sort",
    metavar="COLUMN",
    shell_complete=_columns,
    help=f"The greatest first: {', '.join((*COUNTS, *MORE))}; or a key of --by, whose names come in their own order: phases in order of time.",
)
@click.option("--limit", type=click.IntRange(0), metavar="N", help="No more than N rows; 0: all.")
@click.option("--saved/--no-saved", default=None, help="Compare with a replay without a cache.  [default: on the fast core]")
@click.option("--cycles-exit", type=click.IntRange(0), default=Costs.exit, show_default=True, help="Cost model: an exit and back.")
@click.option("--cycles-fault", type=click.IntRange(0), default=Costs.fault, show_default=True, help="Cost model: work at a fault.")
@click.option("--cycles-fill", type=click.IntRange(0), default=Costs.fill, show_default=True, help="Cost model: an entry made.")
@core_option
def command(
    trace: Path,
    form: str,
    output: Path | None,
    everything: bool,
    by: str | None,
    only: tuple[str, ...],
    sort: str | None,
    limit: int | None,
    saved: bool | None,
    cycles_exit: int,
    cycles_fault: int,
    cycles_fill: int,
    core: str | None,
    model: str,
    **options: Any,
) -> None:
    """Print what a shadow page cache would have shared.

    What has not been replayed yet with this model and these parameters is replayed first. With --by, and in the formats of rows
    (jsonl, csv, markdown), it prints look-ups, deaths, faults and stores in groups instead: by mode, level, quadrant and meta
    unless you say otherwise. With --all these say how long pages lived, how many parents they had and how full their buckets
    were, with --saved what a replay without a cache did.

    \b
    Example:
      shadowtrace report boot.db
      shadowtrace report boot.db --model kvm-2.6.24 --format json
      shadowtrace report boot.db --by phase,process --sort faults --limit 10
      shadowtrace report boot.db --by phase,level --all --saved
      shadowtrace report boot.db --by level --only mode=long --only meta= --format csv
      shadowtrace report boot.db --format html -o boot.html
    """
    keys = reporting.keys(by, FORMATS[form].whole is None, asked(_OF_ROWS))
    wanted = reporting.Request(
        model,
        chosen(model, **options),
        core,
        form,
        everything,
        saved,
        Costs(cycles_exit, cycles_fault, cycles_fill),
        look() if output is None else TerminalStyle(),
        keys,
        [reporting.condition(text) for text in only],
        reporting.column(sort, keys),
        limit or None,
    )
    reporting.check(form, keys, everything, asked(_OF_THE_WHOLE))
    if form == "html" and output is None and sys.stdout.isatty():
        raise UsageError("a page is for a browser, not for a terminal", "-o FILE writes it to a file")
    if output is not None:
        check_target(output)
    with TraceReader(trace) as opened:
        of_events = asked(("by", *_OF_ROWS, "everything", "saved", *_OF_THE_WHOLE, "core", "model", *options))
        made = reporting.of_live(opened, wanted, of_events) or reporting.report(opened, wanted, replay_line)
    if made.remark is not None:
        click.echo(made.remark, err=True)
    for run in made.fresh:
        replay.keep(trace, run)
    write_out(made.text, output)
