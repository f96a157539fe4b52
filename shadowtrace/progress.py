"""A line on the terminal that says how far a recording or replay is; nothing where there is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.status import Status as Spinner

from analyzer.reports.text import printable
from shadowtrace.interrupts import raise_again

if TYPE_CHECKING:
    from tracer.request import Status

_LAST_LINE = 48


def recording_text(status: Status) -> str:
    """One line on where a recording stands."""
    _, _, loads, writes, _, accesses, *_ = status.by_kind
    rate = status.events / status.seconds if status.seconds > 0.5 else 0
    line = printable(status.last_line)[-_LAST_LINE:]
    return (
        f"{status.seconds:5.1f} s  {status.events:,} events ({rate / 1000:,.0f} k/s)  cr3 {loads:,}  stores {writes:,}"
        f"  touches {accesses:,}  tables {status.tables:,}  {line}"
    )


@contextlib.contextmanager
def recording_line(first: str) -> Iterator[Callable[[Status], None]]:
    """A function that shows a recording's status; when it has one, the recording runs, and ``first`` is said."""
    said = False
    with _line("starting QEMU") as show:

        def status_line(status: Status) -> None:
            nonlocal said
            if not said:
                Console(stderr=True, highlight=False, soft_wrap=True).print(escape(first))
                said = True
            show(recording_text(status))

        yield status_line


@contextlib.contextmanager
def replay_line(total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows how many of ``total`` events have been replayed."""
    with _line("replaying") as show:
        yield lambda done: show(f"replaying {done:,} of {total:,} events")


@contextlib.contextmanager
def sweep_line(total: int, kept: Path) -> Iterator[Callable[[int], None]]:
    """A function that shows how many of ``total`` runs are done and where they are kept."""
    with _line(f"0 of {total:,} runs done") as show:
        yield lambda done: show(f"{done:,} of {total:,} runs done, kept in {kept}")


@contextlib.contextmanager
def _line(first: str) -> Iterator[Callable[[str], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: raise_again()
        raise_again()
        return
    with Spinner(escape(first), console=console, refresh_per_second=8) as spinner:

        def show(text: str) -> None:
            raise_again()
            spinner.update(escape(text))

        yield show
        raise_again()
