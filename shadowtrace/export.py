"""shadowtrace export."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import click

from db.interchange import write_jsonl
from db.trace import TraceReader
from shadowtrace.options import trace_argument


@click.command("export")
@trace_argument
@click.option("--format", "form", type=click.Choice(["jsonl"]), default="jsonl", show_default=True)
@click.option("-o", "--output", type=click.File("w", lazy=False), default="-", help="Where to; standard output by default.")
def command(trace: Path, form: str, output: TextIO) -> None:
    """Write a trace's events as JSON Lines.

    \b
    Example:
      shadowtrace export boot.db | head
    """
    with TraceReader(trace) as opened:
        write_jsonl(opened.events(), output)
