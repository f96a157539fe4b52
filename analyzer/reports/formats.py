"""Every format of a report, by its name: what renders a whole report in it, and what renders rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyzer.replay import Run
from analyzer.reports import grouped, html, json, livekvm, table
from analyzer.reports.about import About
from analyzer.reports.text import TerminalStyle, folded


@dataclass(frozen=True)
class Whole:
    """A whole report: the trace, the run, whether nothing is folded or left out, and what a terminal shows."""

    about: About
    run: Run
    everything: bool
    look: TerminalStyle


@dataclass(frozen=True)
class Rows(Whole):
    """Rows: the groups, the keys that they are grouped by, and the column by which they are sorted, if there is one."""

    groups: list[dict[str, Any]]
    keys: list[str]
    sort: str | None


@dataclass(frozen=True)
class Format:
    """A format: functions that render what it can show; ``None`` for what it cannot."""

    whole: Callable[[Whole], str] | None = None
    rows: Callable[[Rows], str] | None = None
    live: Callable[[Whole], str] | None = None
    """A live KVM's log, which has a run and no events."""


FORMATS = {
    "table": Format(
        lambda report: table.report(report.about, report.run, report.look, report.everything),
        lambda report: grouped.table(report.groups, report.keys, report.look, report.everything, report.sort),
        lambda report: folded(livekvm.report(report.about, report.run), report.look),
    ),
    "json": Format(
        lambda report: json.report(report.about, report.run),
        lambda report: json.rows(report.about, report.run, report.groups),
        lambda report: json.report(report.about, report.run),
    ),
    "html": Format(lambda report: html.report(report.about, report.run)),
    "jsonl": Format(rows=lambda report: grouped.jsonl(report.groups)),
    "csv": Format(rows=lambda report: grouped.csv(report.groups, report.keys)),
    "markdown": Format(rows=lambda report: grouped.markdown(report.groups, report.keys, report.everything, report.sort)),
}

#: Formats that have a column for everything, whatever is left out of a table.
COMPLETE = frozenset({"json", "jsonl", "csv"})
