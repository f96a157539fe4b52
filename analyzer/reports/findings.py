"""The end of the report for a terminal: what the cache saved, and what is worth a look."""

from __future__ import annotations

from collections.abc import Iterable

from analyzer.facts.findings import command
from analyzer.replay import Run
from analyzer.reports.about import About
from analyzer.reports.text import TerminalStyle, columns, folded, number, pasted, printable, wrapped

_NAMES = {"faults": "faults", "exits": "exits", "pages_made": "pages made", "entries_filled": "entries filled"}


def sections(about: About, run: Run, look: TerminalStyle) -> Iterable[str]:
    """Each part with its heading, where there is something to say."""
    if "saved" in run.facts:
        heading = look.heading("What it saved") + "   (uncached: every cr3 load starts from nothing)"
        yield folded(heading, look) + "\n" + _saved(run, look)
    findings = run.facts["findings"]
    if findings:
        lines = [line for finding in findings for line in _finding(finding, about, look)]
        yield look.heading("Worth a look") + "\n" + "\n".join(lines)


def _saved(run: Run, look: TerminalStyle) -> str:
    saved = run.facts["saved"]
    rows = []
    for key, name in _NAMES.items():
        pair = saved[key]
        rows.append((name, number(pair["cached"]), "instead of", number(pair["uncached"]), _times(pair), _per_cr3(pair)))
    cycles = saved["cycles"]
    costs = f"by {cycles['exit']:,} an exit, {cycles['fault']:,} a fault, {cycles['fill']:,} an entry"
    rows.append(("cycles", number(cycles["cached"]), "instead of", number(cycles["uncached"]), _times(cycles), costs))
    return columns(rows, "  ", fit=look.width)


def _times(pair: dict[str, float]) -> str:
    return f"×{pair['uncached'] / pair['cached']:.1f}" if pair["cached"] else ""


def _per_cr3(pair: dict[str, float]) -> str:
    return f"{pair['per_cr3_cached']:,.1f} instead of {pair['per_cr3_uncached']:,.1f} for each cr3 load"


def _finding(finding: dict[str, str], about: About, look: TerminalStyle) -> Iterable[str]:
    yield from wrapped(finding["sentence"], look.width, "  · ", "    ")
    yield from pasted(printable(command(finding["command"], about.file, about.guest)), look, "    ")
