"""Facts as JSON: every number, keys in a fixed order."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from analyzer.facts.findings import command
from analyzer.replay import Run
from analyzer.reports.about import About


def facts(run: Run) -> str:
    """A replay's counters in the interchange form (docs/formats.md), with what else there is after them."""
    return json.dumps({"source": f"shadowtrace {run.model}", **run.facts, "model": run.model, "parameters": run.parameters}, indent=1)


def report(about: About, run: Run) -> str:
    """Everything a report shows, and more: the trace, the run, its facts."""
    told = dict(run.facts)
    if "findings" in told:
        told["findings"] = [{**finding, "command": command(finding["command"], about.file, about.guest)} for finding in told["findings"]]
    return json.dumps({"trace": asdict(about), "run": _ran(run), "facts": told}, indent=1)


def rows(about: About, run: Run, groups: list[dict[str, Any]]) -> str:
    """The rows of a grouped report, with the trace and the run."""
    return json.dumps({"trace": asdict(about), "run": _ran(run), "rows": groups}, indent=1)


def _ran(run: Run) -> dict[str, Any]:
    return {
        "model": run.model,
        "parameters": run.parameters,
        "version": run.version,
        "core": run.core,
        "why": run.why,
        "events": run.events,
    }
