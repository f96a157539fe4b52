"""shadowtrace upgrade."""

from __future__ import annotations

from pathlib import Path

import click

from db.file.upgrade import upgrade
from db.schema import SCHEMA_VERSION
from shadowtrace import __version__
from shadowtrace.options import force_option, output_option, trace_argument


@click.command("upgrade")
@trace_argument
@output_option
@force_option
def command(trace: Path, output: Path, force: bool) -> None:
    """Write a trace of an older schema into a new file of today's.

    Reading an older trace needs no upgrade: every verb reads it through a copy of its own. An upgraded file spares that, and keeps
    the facts of new replays.

    \b
    Example:
      shadowtrace upgrade old.db -o new.db
    """
    before = upgrade(trace, output, force, __version__)
    click.echo(f"{output}: schema {SCHEMA_VERSION}, was {before}")
