"""The shell of ``shadowtrace sql``: lines in, with history and completion; a statement runs at its semicolon."""

from __future__ import annotations

import contextlib
import readline
import sqlite3
from collections.abc import Callable
from pathlib import Path

import click

from db.errors import ShadowtraceError

_HELP = """\
A statement ends with a semicolon. .list shows the views and tables, .quit or Ctrl-D leaves, Ctrl-C stops a query."""

_WORDS = ("SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "LIMIT", "JOIN", "count(*)", ".list", ".help", ".quit")


def shell(trace: Path, run: Callable[[str], None], catalogue: Callable[[], list[tuple[str, str, str]]]) -> None:
    """Read statements from the terminal until its end and hand each to ``run``; errors are shown, and it goes on."""
    listed = catalogue()
    _complete([*_WORDS, *(name for name, _, _ in listed), *{column for _, _, columns in listed for column in columns.split(", ")}])
    click.echo(f"{trace}, read only. {_HELP}")
    statement = ""
    while True:
        try:
            line = input("   ...> " if statement else "trace> ")
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            statement = ""
            continue
        if not statement and line.strip() in (".quit", ".exit"):
            return
        if not statement and line.strip().startswith("."):
            click.echo(
                "\n".join(f"{name}: {about}\n    {columns}" for name, about, columns in listed) if line.strip() == ".list" else _HELP
            )
            continue
        statement = f"{statement}\n{line}".strip()
        if statement and sqlite3.complete_statement(statement):
            _run(run, statement)
            statement = ""


def _run(run: Callable[[str], None], statement: str) -> None:
    try:
        run(statement)
    except ShadowtraceError as error:
        click.echo(f"{error}\n  hint: {error.hint}", err=True)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)


def _complete(words: list[str]) -> None:
    ordered = sorted(words, key=str.lower)

    def complete(start: str, number: int) -> str | None:
        fitting = [word for word in ordered if word.lower().startswith(start.lower())]
        return fitting[number] if number < len(fitting) else None

    with contextlib.suppress(Exception):
        readline.set_completer_delims(" \t\n,()=<>")
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
