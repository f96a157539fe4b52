"""shadowtrace import."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer import livekvm
from analyzer.model.parameters import parameters
from analyzer.reports import livekvm as livekvm_report
from db.errors import UsageError
from db.exchange import kvmmmu
from db.exchange.importing import import_jsonl
from db.trace import TraceReader
from shadowtrace import __version__
from shadowtrace.options import force_option, output_option, show

_MODEL = "kvm-2.6.20"


@click.command("import")
@click.argument("events", type=click.Path(path_type=Path))
@output_option
@force_option
@click.option("--format", "form", type=click.Choice(["auto", "jsonl", "kvmmmu"]), default="auto", show_default=True, help="What is read.")
@click.option("--kernel", metavar="VERSION", help="With a log of kvmmmu tracepoints: the host's kernel, for the name of the run.")
@click.option("--against", type=click.Path(path_type=Path), metavar="TRACE", help="Such a log: hold it against a replay of this trace.")
def command(events: Path, output: Path, force: bool, form: str, kernel: str | None, against: Path | None) -> None:
    """Make a trace file of what another program wrote.

    EVENTS is a file of events in JSON Lines (.jsonl, .jsonl.gz), or a log of Linux's kvmmmu tracepoints, as text or as a trace.dat,
    which takes trace-cmd to read: what a real KVM did, which becomes a run without events.

    \b
    Example:
      shadowtrace import events.jsonl -o events.db
      shadowtrace import kvm.trace.gz -o kvm.db --kernel 6.1
    """
    if form == "kvmmmu" or (form == "auto" and kvmmmu.is_log(events)):
        _import_log(events, output, force, kernel, against)
        return
    if kernel or against:
        raise UsageError(f"{events} is no log of kvmmmu tracepoints: --kernel and --against are for these", "leave them out")
    click.echo(f"{output}: {import_jsonl(events, output, force, __version__):,} events")


def _import_log(events: Path, output: Path, force: bool, kernel: str | None, against: Path | None) -> None:
    counted = livekvm.import_log(events, output, force, kernel, __version__)
    click.echo(f"{output}: {counted.events:,} tracepoints of a live KVM; shadowtrace report {output} shows them")
    if against is not None:
        with TraceReader(against) as trace:
            found = livekvm.compare(trace, parameters(_MODEL), counted)
        show(livekvm_report.comparison(found, _MODEL, livekvm.model_name(kernel)))
