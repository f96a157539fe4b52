"""shadowtrace pack."""

from __future__ import annotations

from pathlib import Path

import click

from db.exchange import packing
from shadowtrace.options import force_option, output_option, trace_argument


@click.command("pack")
@trace_argument
@output_option
@force_option
def command(trace: Path, output: Path, force: bool) -> None:
    """Pack a trace for keeping: its events by column, under zstandard.

    Unpacked, it is the same trace to the last event. zstd and tar open it, too.

    \b
    Example:
      shadowtrace pack boot.db -o boot.pack
      shadowtrace unpack boot.pack -o again.db
    """
    packed = packing.pack(trace, output, force)
    click.echo(f"{output}: {packed.events:,} events in {packed.bytes:,} bytes")
