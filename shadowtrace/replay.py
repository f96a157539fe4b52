"""shadowtrace replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from analyzer import replay
from analyzer.facts.collect import state
from analyzer.reports import json as json_report
from analyzer.reports import table
from analyzer.reports.about import about as about_trace
from analyzer.reports.text import look
from db.file.outputs import check_target, new_text
from db.trace import TraceReader
from shadowtrace import __version__
from shadowtrace.options import chosen, core_option, model_options, trace_argument
from shadowtrace.progress import replay_line


@click.command("replay")
@trace_argument
@model_options
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--state", "state_file", type=click.Path(path_type=Path), help="Write every live shadow page to this file, JSON Lines.")
@click.option("--audit", type=click.IntRange(1), metavar="N", help="Check the cache against itself every N events (reference core).")
@core_option
def command(trace: Path, form: str, state_file: Path | None, audit: int | None, core: str | None, model: str, **options: Any) -> None:
    """Run a trace through a shadow MMU and keep the facts in it.

    \b
    Example:
      shadowtrace replay boot.db --pages 64
      shadowtrace replay boot.db --model uncached --format json
    """
    parameters = chosen(model, **options)
    if state_file is not None:
        check_target(state_file)
    if trace.is_file():
        replay.prepare(parameters, core, bool(audit))
    with TraceReader(trace) as opened:
        with replay_line(opened.count()) as progress:
            run, end = replay.run(opened, model, parameters, __version__, progress, audit, core)
        about = about_trace(opened, run)
    replay.keep(trace, run)
    if state_file is not None:
        with new_text(state_file) as out:
            out.writelines(json.dumps(page, separators=(",", ":")) + "\n" for page in state(end))
    click.echo(json_report.facts(run) if form == "json" else table.report(about, run, look()))
