"""shadowtrace export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from analyzer.export import write
from db.errors import UsageError
from db.exchange.jsonl import write_jsonl
from db.file.outputs import check_target, new_text
from db.trace import TraceReader
from shadowtrace import __version__
from shadowtrace.options import chosen, model_options, refuse_model_options, trace_argument
from shadowtrace.progress import replay_line


@click.command("export")
@trace_argument
@click.option("--format", "form", type=click.Choice(["jsonl", "csv", "parquet", "perfetto"]), default="jsonl", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to; text is gzip'ped if it ends in .gz, and goes to standard output by default.",
)
@click.option("--replay", "replayed", is_flag=True, help="With perfetto: live shadow pages and zaps of a replay too, by the model options.")
@model_options
def command(trace: Path, form: str, output: Path | None, replayed: bool, model: str, **options: Any) -> None:
    """Write a trace's events for other programs.

    jsonl is what `shadowtrace import` reads. csv and parquet have the columns of docs/api.md, and nothing is left out.
    perfetto opens in the Perfetto UI; its time is the number of the event, 1 event shown as 1 microsecond.

    \b
    Example:
      shadowtrace export boot.db | head
      shadowtrace export boot.db --format parquet -o boot.parquet
      shadowtrace export boot.db --format perfetto --replay -o boot.pftrace
    """
    if form in ("parquet", "perfetto") and output is None:
        raise UsageError(f"{form} is no text: say where to", f"shadowtrace export {trace} --format {form} -o FILE")
    if replayed and form != "perfetto":
        raise UsageError("--replay draws tracks for Perfetto", "--format perfetto")
    if not replayed:
        refuse_model_options(("model", *options), "leave them out, or add --format perfetto --replay")
    if output is not None:
        check_target(output)
    with TraceReader(trace) as opened:
        if form == "parquet" and output is not None:
            write.to_parquet(opened, output)
        elif form == "perfetto" and output is not None:
            with replay_line(opened.count()) as progress:
                tracks = write.replay_tracks(opened, model, chosen(model, **options), __version__, progress) if replayed else ()
            write.to_perfetto(opened, output, tracks)
        elif output is None:
            _text(opened, form, sys.stdout)
        else:
            with new_text(output) as out:
                _text(opened, form, out)


def _text(trace: TraceReader, form: str, out: Any) -> None:
    if form == "jsonl":
        write_jsonl(trace.events(), out)
    else:
        out.writelines(write.csv(trace))
