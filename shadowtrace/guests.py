"""shadowtrace guests."""

from __future__ import annotations

import click

from analyzer.reports.text import columns, size
from tracer import guest


@click.command("guests")
def command() -> None:
    """List the guests that can be recorded by name.

    With each: the paging modes it shows; about how long a boot takes, recorded on an idle machine, and how many events it gives; how
    large its files are, once they have been fetched.

    \b
    Example:
      shadowtrace guests
    """
    rows = [("guest", "paging", "boot", "events", "size", "what it is")]
    for name in guest.names():
        recipe = guest.load(name)
        rows.append((name, recipe.mode, f"{recipe.seconds} s", f"{recipe.events:,}", size(recipe.bytes()), recipe.title))
    click.echo(columns(rows, left=2))
