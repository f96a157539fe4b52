"""shadowtrace ls."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.reports import listing as report
from db.listing import listing
from shadowtrace.options import show


@click.command("ls")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(paths: tuple[Path, ...], form: str) -> None:
    """List traces: those in the folders named, here by default (.db, .sqlite, .trace), and the files named.

    \b
    Example:
      shadowtrace ls
      shadowtrace ls traces/ boot.db --format json
    """
    found = list(listing(paths or (Path(),)))
    if form == "json":
        click.echo(report.as_json(found))
    elif found:
        show(report.text(found))
    else:
        click.echo("no traces here", err=True)
