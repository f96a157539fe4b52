"""shadowtrace doctor."""

from __future__ import annotations

import click

from db.errors import EXIT_OURS
from shadowtrace.options import show
from tracer.doctor import findings


@click.command("doctor")
def command() -> int:
    """Look whether this machine has what recording needs.

    \b
    Example:
      shadowtrace doctor
    """
    found = findings()
    for finding in found:
        show(f"{'ok     ' if finding.good else 'missing'}  {finding.what}: {finding.detail}")
        if not finding.good:
            show(f"         fix: {finding.fix}")
    return 0 if all(finding.good for finding in found) else EXIT_OURS
