"""What a shell offers for the values of options, where click does not know it by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def one_of(names: Iterable[str]) -> Complete:
    """Offer those of the names that begin as what stands there does."""
    known = list(names)
    return lambda _context, _parameter, given: [name for name in known if name.startswith(given)]


def list_of(names: Iterable[str]) -> Complete:
    """The same for the last of several with commas between them; those that stand there already are not offered again."""
    known = list(names)

    def complete(_context: click.Context, _parameter: click.Parameter, given: str) -> list[str]:
        before, comma, last = given.rpartition(",")
        return [before + comma + name for name in known if name.startswith(last) and name not in before.split(",")]

    return complete
