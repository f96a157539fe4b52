"""shadowtrace guests."""

from __future__ import annotations

import click

from analyzer.reports.text import columns
from tracer import guest


@click.command("guests")
def command() -> None:
    """List the guests that can be recorded by name.

    \b
    Example:
      shadowtrace guests
    """
    rows = [("guest", "paging", "boot", "what it is")]
    for name in guest.names():
        recipe = guest.load(name)
        rows.append((name, recipe.mode, f"{recipe.seconds} s", recipe.title))
    click.echo(columns(rows))
