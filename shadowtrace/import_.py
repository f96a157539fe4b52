"""shadowtrace import."""

from __future__ import annotations

from pathlib import Path

import click

from db.importing import import_jsonl
from shadowtrace import __version__
from shadowtrace.options import force_option, output_option


@click.command("import")
@click.argument("events", type=click.Path(path_type=Path))
@output_option
@force_option
def command(events: Path, output: Path, force: bool) -> None:
    """Make a trace file from events in JSON Lines (.jsonl, .jsonl.gz).

    \b
    Example:
      shadowtrace import events.jsonl -o events.db
    """
    count = import_jsonl(events, output, force, __version__)
    click.echo(f"{output}: {count:,} events")
