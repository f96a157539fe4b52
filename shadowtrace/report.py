"""shadowtrace report."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from analyzer import livekvm, replay
from analyzer.reports import json as json_report
from analyzer.reports import livekvm as livekvm_report
from analyzer.reports import table
from db.trace import TraceReader
from shadowtrace import __version__
from shadowtrace.options import chosen, core_option, model_options, trace_argument
from shadowtrace.progress import replay_line


@click.command("report")
@trace_argument
@model_options
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--all", "everything", is_flag=True, help="Do not fold rows that say the same.")
@core_option
def command(trace: Path, form: str, everything: bool, core: str | None, model: str, **options: Any) -> None:
    """Print what a shadow page cache would have shared.

    What has not been replayed yet with this model and these parameters is replayed first.

    \b
    Example:
      shadowtrace report boot.db
      shadowtrace report boot.db --model kvm-2.6.24 --format json
    """
    parameters = chosen(model, **options)
    with TraceReader(trace) as opened:
        live = livekvm.stored(opened)
        if live is not None:
            about = table.about(opened, live)
            click.echo(json_report.report(about, live) if form == "json" else livekvm_report.report(about, live))
            return
        run = replay.kept(opened, model, parameters, __version__, core)
        if run is not None:
            # What a file says are facts may be anything: facts that cannot be shown are found anew.
            with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
                shown = {each: _shown(opened, run, each, everything) for each in ("table", form)}
                click.echo(shown[form])
                return
        with replay_line(opened.count()) as progress:
            run, _ = replay.run(opened, model, parameters, __version__, progress, core=core)
        text = _shown(opened, run, form, everything)
    replay.keep(trace, run)
    click.echo(text)


def _shown(trace: TraceReader, run: replay.Run, form: str, everything: bool) -> str:
    about = table.about(trace, run)
    return json_report.report(about, run) if form == "json" else table.report(about, run, everything)
