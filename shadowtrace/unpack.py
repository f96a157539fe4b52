"""shadowtrace unpack."""

from __future__ import annotations

from pathlib import Path

import click

from db.exchange import packing
from shadowtrace.options import force_option, output_option


@click.command("unpack")
@click.argument("pack", type=click.Path(path_type=Path))
@output_option
@force_option
def command(pack: Path, output: Path, force: bool) -> None:
    """Make a packed trace a trace file again, and check that it is the same.

    \b
    Example:
      shadowtrace unpack boot.pack -o again.db
    """
    click.echo(f"{output}: {packing.unpack(pack, output, force):,} events")
