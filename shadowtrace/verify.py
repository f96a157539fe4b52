"""shadowtrace verify."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.reports.text import printable
from db.check.verify import CHECKS, explain, verify
from db.errors import EXIT_OURS, UsageError
from db.trace import TraceReader
from shadowtrace.completion import one_of
from shadowtrace.options import show


@click.command("verify")
@click.argument("trace", required=False, type=click.Path(path_type=Path))
@click.option("--explain", "name", metavar="CHECK", shell_complete=one_of(CHECKS), help="Say what a check means instead.")
def command(trace: Path | None, name: str | None) -> int:
    """Check a trace's invariants: a line each; exit code 1 where one does not hold.

    \b
    Example:
      shadowtrace verify boot.db
      shadowtrace verify --explain end-state
    """
    if name is not None:
        check = explain(name)
        show(f"{check.name}: {check.claim}.\n  {check.why}")
        return 0
    if trace is None:
        raise UsageError("say which trace to verify", "shadowtrace verify FILE.db")
    with TraceReader(trace, check=False) as opened:
        findings = verify(opened)
    for finding in findings:
        status = "FAILED" if finding.failures else "n/a   " if finding.not_applicable else "ok    "
        show(f"{status}  {finding.check.name}: {finding.not_applicable or finding.check.claim}")
        for case in finding.cases:
            show(f"          {printable(case)}")
        if finding.failures > len(finding.cases):
            click.echo(f"          ... {finding.failures:,} in all")
    return EXIT_OURS if any(finding.failures for finding in findings) else 0
