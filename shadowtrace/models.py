"""shadowtrace models."""

from __future__ import annotations

import click

from analyzer.model.parameters import MODELS
from analyzer.reports.text import width


@click.command("models")
def command() -> None:
    """List the models a trace can be replayed with.

    \b
    Example:
      shadowtrace models
    """
    for model in MODELS.values():
        click.echo(model.name)
        click.echo(click.wrap_text(model.about, width=min(width(), 100), initial_indent="    ", subsequent_indent="    "))
        click.echo()
