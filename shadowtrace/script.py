"""shadowtrace script."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from analyzer.reports import script
from db.marks import first_event, last_event
from db.queries import EVERY_KIND, events
from db.trace import TraceReader
from shadowtrace.options import no_such_event, sql_option, trace_argument
from x86.event import Kind

_KINDS = [kind.name.lower() for kind in Kind]


@click.command("script")
@trace_argument
@click.option("--from", "first", default="1", metavar="EVENT|MARK", help="The first event: its number, or a mark's name.")
@click.option("--to", "last", metavar="EVENT|MARK", help="The last event; a mark's name: what comes before the mark.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(_KINDS), help="Events of this kind only; may be given again.")
@click.option("--vcpu", "vcpus", multiple=True, type=click.IntRange(0, 63), help="Events of this vCPU only; may be given again.")
@click.option("--format", "form", type=click.Choice(["text", "jsonl"]), default="text", show_default=True)
@sql_option
def command(trace: Path, first: str, last: str | None, kinds: tuple[str, ...], vcpus: tuple[int, ...], form: str, sql: bool) -> None:
    """Print events as text, one a line: number, [vCPU], kind, what it was.

    A cr3 load says whose root it is. A store to a table says the entry it wrote - P present, W writable, U user, T
    write-through, C uncached, A accessed, D dirty, S big page, G global, N no execute - the frame, and how it was seen. An access
    is r, w or x, of u, user code, or s, the kernel; fault: it ended in a guest page fault.

    \b
    Example:
      shadowtrace script boot.db --from start_kernel --kind cr3 | head
      shadowtrace script boot.db --from 1000000 --to 1000100 --format jsonl
    """
    with TraceReader(trace) as opened:
        query = events(
            first_event(opened, first),
            last_event(opened, last) if last is not None else opened.count(),
            sum(1 << Kind[name.upper()] for name in set(kinds)) or EVERY_KIND,
            _mask(vcpus),
        )
        if sql:
            click.echo(query)
            return
        found = False
        for block in script.text(opened, query) if form == "text" else script.jsonl(opened, query):
            sys.stdout.write(block)
            found = found or bool(block)
        if not found:
            no_such_event(opened)


def _mask(vcpus: tuple[int, ...]) -> int:
    """The bit mask of some vCPUs as SQLite's signed number; every one where none is named."""
    mask = sum(1 << vcpu for vcpu in set(vcpus)) or -1
    return mask - (1 << 64) if mask >> 63 == 1 else mask
