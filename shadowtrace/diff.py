"""shadowtrace diff."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from analyzer.diff_inputs import Side, from_json, from_trace, is_trace
from analyzer.facts.comparison import compare
from analyzer.limits import broken, limit
from analyzer.reports import captures as captures_report
from analyzer.reports import comparison as report
from analyzer.reports.text import look
from db.check import capture_diff
from db.errors import EXIT_LIMIT, UsageError
from db.trace import TraceReader
from shadowtrace import __version__
from shadowtrace.options import asked, chosen, paired_model_options, show
from shadowtrace.progress import replay_line


@click.command("diff")
@click.argument("left", type=click.Path(path_type=Path))
@click.argument("right", required=False, type=click.Path(path_type=Path))
@paired_model_options
@click.option("--format", "form", type=click.Choice(["table", "json", "csv", "markdown"]), default="table", show_default=True)
@click.option("--limit", "most", default=40, show_default=True, type=click.IntRange(0), help="Rows of the table at the most; 0: all.")
@click.option("--all", "everything", is_flag=True, help="Facts that are equal too.")
@click.option(
    "--fail-on",
    "limits",
    multiple=True,
    metavar="NAME OP [+-]N[%]",
    help="Exit code 3 where this holds, such as 'misses>+5%'; may be given again.",
)
@click.option("--capture", is_flag=True, help="Compare what was captured instead: cr3 loads, stores to tables, page faults, in order.")
@click.option(
    "--log", metavar="QEMU_LOG", type=click.Path(path_type=Path), help="With --capture: hold each against QEMU's log (-d mmu,int)."
)
@click.option("--common", is_flag=True, help="With --capture: up to the end of the shorter one only.")
def command(
    left: Path,
    right: Path | None,
    form: str,
    most: int,
    everything: bool,
    limits: tuple[str, ...],
    capture: bool,
    log: Path | None,
    common: bool,
    **options: tuple[Any, ...],
) -> int:
    """Compare two runs, fact by fact, what matters most first; with --capture two captures, event by event.

    LEFT and RIGHT are traces, or what `replay --format json` wrote; - reads that from standard input. A model option given
    once is for both, given twice for left and right; with LEFT alone, the same trace is replayed both ways.

    --fail-on: NAME is a fact or the end of its name; OP is <, >, <=, >=, == or !=. With a sign the change from left to right is
    meant, without one right's value; with % the number is a share of left's value.

    \b
    Example:
      shadowtrace diff boot.db --model kvm-2.6.20 --model kvm-2.6.24
      shadowtrace diff boot.db --pages 256 --pages 64 --fail-on 'misses>+500%' --format markdown
      shadowtrace diff --capture plugin.db gdb.db
      shadowtrace diff --capture boot.db --log qemu.log
    """
    if capture:
        if limits or asked(options):
            raise UsageError("--fail-on, models and their parameters are for runs", "leave them out, or --capture")
        return _captures([left] if right is None else [left, right], log, common)
    if log is not None or common:
        raise UsageError("--log and --common are for captures", "add --capture")
    wanted = [limit(text) for text in limits]
    pairs = {name: _pair(name, values) for name, values in options.items()}
    if right is None and not any(ours != theirs for ours, theirs in pairs.values()):
        raise UsageError("say what to compare it with", "another trace, or an option for each side: --model kvm-2.6.20 --model kvm-2.6.24")
    if str(left) == str(right) == "-":
        raise UsageError("standard input has one run only", "write the other to a file")
    ours = _side(left, {name: pair[0] for name, pair in pairs.items()})
    theirs = _side(right or left, {name: pair[1] for name, pair in pairs.items()})
    found = compare(ours.facts, theirs.facts)
    missed = broken(wanted, found)
    shown = found if everything else [one for one in found if one.left != one.right]
    if form == "table":
        show(report.text(ours, theirs, shown, most or None, look()))
    elif form == "json":
        click.echo(report.as_json(ours, theirs, shown, missed))
    else:
        sys.stdout.writelines(report.as_rows(form, shown))
    for one, difference in missed:
        click.echo(report.missed(one, difference), err=True)
    return EXIT_LIMIT if missed else 0


def _pair(name: str, values: tuple[Any, ...]) -> tuple[Any, Any]:
    """The values of an option for left and right."""
    if len(values) > 2:
        raise UsageError(f"--{name.replace('_', '-')} is given {len(values)} times", "once for both sides, or twice: for left, for right")
    return (values[0], values[-1]) if values else (None, None)


def _side(path: Path, options: dict[str, Any]) -> Side:
    if str(path) == "-" or (path.is_file() and not is_trace(path)):
        return from_json(path)
    return from_trace(path, options["model"], chosen(**options), __version__, replay_line)


def _captures(files: list[Path], log: Path | None, common: bool) -> int:
    """Exit code 3 where captures differ."""
    if len(files) == 1 and log is None:
        raise UsageError("two traces are compared, or one or two with QEMU's log", "shadowtrace diff --capture A.db B.db [--log QEMU_LOG]")
    sides = []
    for file in files:
        with TraceReader(file) as trace:
            sides.append(capture_diff.captured(trace))
    pairs = [(sides[0], sides[1])] if len(sides) == 2 else []
    if log is not None:
        told = capture_diff.logged(log)
        pairs += [(side, told) for side in sides]
    different = False
    for ours, theirs in pairs:
        lists = capture_diff.compare(ours, theirs, common)
        show(captures_report.text(ours, theirs, lists))
        different |= any(compared.difference is not None for compared in lists)
    return EXIT_LIMIT if different else 0
