"""Facts as JSON: every number, keys in a fixed order."""

from __future__ import annotations

import json
from dataclasses import asdict

from analyzer.replay import Run
from analyzer.reports.table import About


def facts(run: Run) -> str:
    """A replay's counters in the interchange form (docs/formats.md), with what else there is after them."""
    return json.dumps({"source": f"shadowtrace {run.model}", **run.facts, "model": run.model, "parameters": run.parameters}, indent=1)


def report(about: About, run: Run) -> str:
    """Everything a report shows, and more: the trace, the run, its facts."""
    ran = {"model": run.model, "parameters": run.parameters, "version": run.version, "core": run.core, "why": run.why, "events": run.events}
    return json.dumps({"trace": asdict(about), "run": ran, "facts": run.facts}, indent=1)
