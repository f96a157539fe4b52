"""shadowtrace report."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from analyzer import livekvm, replay
from analyzer.facts.group_counts import COUNTS, MORE, with_uncached
from analyzer.facts.grouping import KEYS, ROLE_KEYS, grouped, unknown
from analyzer.facts.savings import Costs
from analyzer.model.outcome import Outcome
from analyzer.model.parameters import Parameters
from analyzer.reports import grouped as row_report
from analyzer.reports import html as html_report
from analyzer.reports import json as json_report
from analyzer.reports import livekvm as livekvm_report
from analyzer.reports import table
from analyzer.reports.about import About
from analyzer.reports.about import about as about_trace
from analyzer.reports.text import TerminalStyle, folded, look, printable
from analyzer.trace.reading import story
from db.errors import UsageError
from db.file.outputs import check_target, new_text
from db.trace import TraceReader
from shadowtrace import __version__
from shadowtrace.completion import list_of, one_of
from shadowtrace.options import asked, chosen, core_option, model_options, trace_argument
from shadowtrace.progress import replay_line

ROW_FORMATS = ("jsonl", "csv", "markdown")

#: Values of a key that are named where --only asks for none of them.
_NAMED = 12

#: Options of a report that is no rows; a live KVM's log has nothing for these and two more.
_OF_THE_WHOLE = ("cycles_exit", "cycles_fault", "cycles_fill")


def _columns(context: click.Context, parameter: click.Parameter, given: str) -> list[str]:
    """What a shell offers for --sort: a count, or a key of the --by that stands before it."""
    keys = (context.params.get("by") or "").split(",")
    return one_of((*COUNTS, *MORE, *(key for key in KEYS if key in keys)))(context, parameter, given)


@click.command("report")
@trace_argument
@model_options
@click.option("--format", "form", type=click.Choice(["table", "json", "html", *ROW_FORMATS]), default="table", show_default=True)
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
    parameters = chosen(model, **options)
    keys = _keys(by, sort, limit, only, form)
    conditions = [_condition(text) for text in only]
    _check_output(form, keys, output)
    if keys and (idle := asked(_OF_THE_WHOLE)):
        raise UsageError(f"rows know no {idle[0]}: it is for the whole report", "leave it out, or --by and the formats of rows")
    if keys and everything and form not in ("table", "markdown"):
        raise UsageError(f"--all is for tables: in {form} every column is there already", "leave out --all")
    costs = Costs(cycles_exit, cycles_fault, cycles_fill)
    seen = look() if output is None else TerminalStyle()
    with TraceReader(trace) as opened:
        if (live := livekvm.stored(opened)) is not None:
            _refuse_of_live(form, ("by", "only", "sort", "limit", "everything", "saved", *_OF_THE_WHOLE, "core", "model", *options))
            about = about_trace(opened, live)
            _write(json_report.report(about, live) if form == "json" else folded(livekvm_report.report(about, live), seen), output)
            return
        if keys:
            run, end = _replayed(opened, model, parameters, core)
            groups = grouped(end, story(opened), keys, conditions, _column(sort, keys), limit or None)
            if not groups:
                click.echo(_nothing(unknown(end, story(opened), conditions)), err=True)
            fresh = [run]
            if saved and parameters.caching:
                without, bare = _replayed(opened, "uncached", replay.without_cache(parameters), core)
                groups = with_uncached(groups, grouped(bare, story(opened), keys, conditions), keys)
                fresh.append(without)
            text = _rows(about_trace(opened, run), run, groups, _Rows(keys, everything, sort, form, seen))
        else:
            text, fresh = _whole(opened, _Wanted(model, parameters, saved, costs, core, form, everything, seen))
    for done in fresh:
        replay.keep(trace, done)
    _write(text, output)


@dataclass(frozen=True)
class _Rows:
    """How rows are asked for."""

    keys: list[str]
    everything: bool
    sort: str | None
    form: str
    look: TerminalStyle


def _rows(about: About, run: replay.Run, groups: list[dict[str, Any]], wanted: _Rows) -> str:
    if wanted.form == "json":
        return json_report.rows(about, run, groups)
    if wanted.form == "jsonl":
        return row_report.jsonl(groups)
    if wanted.form == "csv":
        return row_report.csv(groups, wanted.keys)
    if wanted.form == "markdown":
        return row_report.markdown(groups, wanted.keys, wanted.everything, wanted.sort)
    return row_report.table(groups, wanted.keys, wanted.look, wanted.everything, wanted.sort)


@dataclass(frozen=True)
class _Wanted:
    """What a whole report is asked for."""

    model: str
    parameters: Parameters
    saved: bool | None
    costs: Costs
    core: str | None
    form: str
    everything: bool
    look: TerminalStyle


def _whole(opened: TraceReader, wanted: _Wanted) -> tuple[str, list[replay.Run]]:
    """The whole report, and the runs that were made for it."""
    if (run := replay.kept(opened, wanted.model, wanted.parameters, __version__, wanted.core)) is not None:
        # What a file says are facts may be anything: facts that cannot be shown are found anew.
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            return _shown(opened, run, wanted)
    run, _ = _replayed(opened, wanted.model, wanted.parameters, wanted.core)
    text, fresh = _shown(opened, run, wanted)
    return text, [run, *fresh]


def _shown(opened: TraceReader, run: replay.Run, wanted: _Wanted) -> tuple[str, list[replay.Run]]:
    """A run's report, with what its cache saved, and the run without a cache where one was made for that."""
    with replay_line(opened.count()) as progress:
        without, made = replay.yardstick(opened, wanted.parameters, __version__, wanted.saved, progress, wanted.core)
    run = replay.with_saved(run, without, wanted.costs)
    about = about_trace(opened, run)
    if wanted.form == "html":
        text = html_report.report(about, run)
    elif wanted.form == "json":
        text = json_report.report(about, run)
    else:
        text = table.report(about, run, wanted.look, wanted.everything)
    return text, [without] if without is not None and made else []


def _refuse_of_live(form: str, names: Iterable[str]) -> None:
    """Raise ``UsageError`` where more is asked for than a live KVM's log can tell."""
    refused = asked(names) + ([f"--format {form}"] if form not in ("table", "json") else [])
    if refused:
        raise UsageError(
            f"a live KVM's log holds no events to replay: there is no {refused[0]} of it", "leave it out; --format json has all there is"
        )


def _nothing(condition: tuple[str, str, list[str]] | None) -> str:
    """Why there are no rows."""
    if condition is None:
        return "nothing that was replayed is in any of these groups"
    key, wanted, there = condition
    more = f" and {len(there) - _NAMED:,} more" if len(there) > _NAMED else ""
    return printable(f"no {key} is called {wanted!r}; there are: {', '.join(repr(name) for name in there[:_NAMED])}{more}")


def _check_output(form: str, keys: list[str], output: Path | None) -> None:
    if form == "html" and keys:
        raise UsageError("a page shows the whole report, not rows", "leave out --by, or choose another --format")
    if form == "html" and output is None and sys.stdout.isatty():
        raise UsageError("a page is for a browser, not for a terminal", "-o FILE writes it to a file")
    if output is not None:
        check_target(output)


def _write(text: str, output: Path | None) -> None:
    """Print a report that ends with a line's end, or put it into a file; nothing where it is empty."""
    whole = text and text.removesuffix("\n") + "\n"
    if output is None:
        click.echo(whole, nl=False)
        return
    with new_text(output) as out:
        out.write(whole)


def _keys(by: str | None, sort: str | None, limit: int | None, only: tuple[str, ...], form: str) -> list[str]:
    """What to group by; nothing for the whole report."""
    if by is None:
        if form in ROW_FORMATS:
            return list(ROLE_KEYS)
        if sort or limit is not None or only:
            raise UsageError("--sort, --limit and --only are for rows", "add --by KEY, or --format csv")
        return []
    keys = [key.strip() for key in by.split(",")]
    for key in keys:
        _known(key)
    if len(set(keys)) < len(keys):
        raise UsageError("--by names a key twice", "name each once")
    return keys


def _known(key: str) -> str:
    if key not in KEYS:
        raise UsageError(f"there is no key {key!r} to group by", f"keys: {', '.join(KEYS)}")
    return key


def _condition(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"--only {text} is no KEY=VALUE", "such as --only level=1")
    return _known(key), value


def _column(sort: str | None, keys: list[str]) -> str | None:
    """The column to sort by, which may be named as the table heads it."""
    column = "hit_percent" if sort == "hit%" else sort
    if column is not None and column not in (*COUNTS, *MORE, *keys):
        raise UsageError(f"there is no column {sort!r} to sort by", f"columns: {', '.join((*keys, *COUNTS, *MORE))}")
    return column


def _replayed(opened: TraceReader, model: str, parameters: Parameters, core: str | None) -> tuple[replay.Run, Outcome]:
    with replay_line(opened.count()) as progress:
        return replay.run(opened, model, parameters, __version__, progress, core=core)
