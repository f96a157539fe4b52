"""shadowtrace diff."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.reports import captures as report
from db.captures import captured, compare, logged
from db.errors import EXIT_LIMIT, UsageError
from db.trace import TraceReader


@click.command("diff")
@click.argument("files", nargs=-1, metavar="A [B]", type=click.Path(path_type=Path))
@click.option("--capture", is_flag=True, help="Compare what was captured: cr3 loads, stores to tables, page faults, each in order.")
@click.option(
    "--log", metavar="QEMU_LOG", type=click.Path(path_type=Path), help="With --capture: hold each against QEMU's log (-d mmu,int)."
)
@click.option("--common", is_flag=True, help="With --capture: up to the end of the shorter one only.")
def command(files: tuple[Path, ...], capture: bool, log: Path | None, common: bool) -> int:
    """Compare two traces of the same guest run; exit code 3 where they differ.

    \b
    Example:
      shadowtrace diff --capture plugin.db gdb.db
      shadowtrace diff --capture boot.db --log qemu.log
    """
    if not capture:
        raise UsageError("say what to compare", "shadowtrace diff --capture A.db B.db")
    return _captures(files, log, common)


def _captures(files: tuple[Path, ...], log: Path | None, common: bool) -> int:
    if len(files) not in ((1, 2) if log is not None else (2,)):
        raise UsageError("two traces are compared, or one or two with QEMU's log", "shadowtrace diff --capture A.db B.db [--log QEMU_LOG]")
    sides = []
    for file in files:
        with TraceReader(file) as trace:
            sides.append(captured(trace))
    pairs = [(sides[0], sides[1])] if len(sides) == 2 else []
    if log is not None:
        told = logged(log)
        pairs += [(side, told) for side in sides]
    different = False
    for ours, theirs in pairs:
        lists = compare(ours, theirs, common)
        click.echo(report.text(ours, theirs, lists))
        different |= any(compared.difference is not None for compared in lists)
    return EXIT_LIMIT if different else 0
