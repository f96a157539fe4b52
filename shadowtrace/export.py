"""shadowtrace export."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from db.files import new_text
from db.interchange import write_jsonl
from db.trace import TraceReader
from shadowtrace.options import trace_argument


@click.command("export")
@trace_argument
@click.option("--format", "form", type=click.Choice(["jsonl"]), default="jsonl", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to, in gzip if it ends in .gz; standard output by default.")
def command(trace: Path, form: str, output: Path | None) -> None:
    """Write a trace's events as JSON Lines.

    \b
    Example:
      shadowtrace export boot.db | head
    """
    with TraceReader(trace) as opened:
        if output is None:
            write_jsonl(opened.events(), sys.stdout)
            return
        with new_text(output) as out:
            write_jsonl(opened.events(), out)
