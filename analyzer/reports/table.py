"""The report for a terminal: what it is, how it was judged, the answer; then where, when, why, what it was worth, what is next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analyzer.facts.collect import Facts
from analyzer.replay import Run
from analyzer.reports import findings, sections
from analyzer.reports.about import About, opening
from analyzer.reports.text import TerminalStyle, columns, folded, number, printable, share, shortened, spark
from x86.registers import Mode

#: Programs that are shown unless all are asked for.
_PROGRAMS = 6


def report(about: About, run: Run, look: TerminalStyle, everything: bool = False) -> str:
    """The whole report as text. ``everything`` unfolds rows that say the same, and shows what is left out otherwise."""
    facts = run.facts
    parts = [
        "\n".join(opening(about, run)),
        _answer(facts, look),
        look.heading("Where the cache found its pages") + "\n" + _roles(facts, look, everything),
        look.heading("When") + "\n" + "\n".join(_phases(facts, look)),
        look.heading("Who") + "\n" + "\n".join(_programs(facts, look, everything)),
        *sections.sections(facts, look, everything),
    ]
    return "\n\n".join([*(folded(part, look) for part in parts), *findings.sections(about, run, look)])


def _answer(facts: Facts, look: TerminalStyle) -> str:
    lookups, hits = facts["get_page"]["lookups"], facts["get_page"]["hits"]
    zaps = facts["zaps"]
    causes = [cause for cause in sections.CAUSES if zaps[cause]]
    parts = [
        f"{facts['events']['cr3']:,} cr3 loads  ->  {lookups:,} lookups, {share(hits, lookups)}% hit",
        f"{facts['access']['faults']:,} faults of {facts['access']['mapped'] + facts['access']['faults']:,} accesses",
        f"{facts['writes']['protected']:,} stores to tables emulated",
        f"{zaps['total']:,} pages zapped" + (f", all {sections.ALL_OF[causes[0]]}" if len(causes) == 1 else ""),
    ]
    lines = [parts[0]]
    for part in parts[1:]:
        if look.folds and len(lines[-1]) + 4 + len(part) > look.width:
            lines.append("  " + part)
        else:
            lines[-1] += "    " + part
    return "\n".join(lines)


def _roles(facts: Facts, look: TerminalStyle, everything: bool) -> str:
    more = ("orphans", "lived") if everything else ()
    rows: list[tuple[str, ...]] = [
        ("mode", "level", "quadrant", "meta", "lookups", "hits", "hit%", "made", "alive", "peak", *more, "died of")
    ]
    for group in _folded(facts["roles"], everything):
        role = group[0]
        times = f"{len(group)} x " if len(group) > 1 else ""
        row: tuple[str, ...] = (
            Mode(role["glevels"]).label,
            str(role["level"]),
            _span([r["quadrant"] for r in group]) if role["glevels"] in (0, 2) else "",
            "meta" if role["metaphysical"] else "",
            times + number(role["lookups"]),
            times + number(role["hits"]),
            share(role["hits"], role["lookups"]),
            times + number(role["made"]),
            number(role["live"]),
            number(role["peak"]),
        )
        if everything:
            lived = role["lifetime"]
            row = (*row, number(role["orphans"]), f"{lived['median']:,.0f}" if lived else "")
        rows.append((*row, _causes(role)))
    text = columns(rows, "  ", fit=look.width)
    return text + "\n  lived: median events from birth to death" if everything else text


def _folded(roles: list[Facts], everything: bool) -> list[list[Facts]]:
    """Roles that differ in their quadrant alone and say the same, together; all apart for ``everything``."""
    groups: dict[Any, list[Facts]] = {}
    for role in roles:
        said = tuple(role[name] for name in ("glevels", "level", "metaphysical", "lookups", "hits", "made", "live", "peak"))
        key = (said, role["quadrant"]) if everything else (said, repr(role["deaths"]))
        groups.setdefault(key, []).append(role)
    return sorted(groups.values(), key=lambda g: (-g[0]["glevels"], -g[0]["level"], g[0]["metaphysical"], g[0]["quadrant"]))


def _span(quadrants: list[int]) -> str:
    if len(quadrants) > 2 and quadrants[-1] - quadrants[0] == len(quadrants) - 1:
        return f"{quadrants[0]}..{quadrants[-1]}"
    return ", ".join(map(str, quadrants))


def _causes(role: Facts) -> str:
    parts = [f"{sections.CAUSES[cause]} {count:,}" for cause, count in role["deaths"].items()]
    emptied = sum(role["emptied"].values())
    return ", ".join([*parts, f"{emptied:,} roots emptied"] if emptied else parts)


def _phases(facts: Facts, look: TerminalStyle) -> Iterable[str]:
    rows = [("from", "events", "roots", "faults", "of accesses", "lookups", "hit%", "made", "zapped", "alive then", "")]
    for phase in facts["phases"]:
        rows.append(
            (
                shortened(printable(phase["name"]), 24),
                number(phase["last"] - phase["first"] + 1),
                number(phase["cr3"]),
                number(phase["faults"]),
                number(phase["accesses"]),
                number(phase["lookups"]),
                share(phase["hits"], phase["lookups"]),
                number(phase["made"]),
                number(sum(phase["zaps"].values())),
                number(phase["live_end"]),
                "",
            )
        )
    yield columns(rows, "  ", fit=look.width)
    if look.terminal:
        yield from _lines_over_time(facts, look)


def _lines_over_time(facts: Facts, look: TerminalStyle) -> Iterable[str]:
    buckets = facts["over_time"]["buckets"]
    lines = {name: [bucket[name] for bucket in buckets] for name in ("cr3", "faults", "zapped")}
    lines["alive"] = [sum(bucket["live"].values()) for bucket in buckets]
    for name, values in lines.items():
        bars = spark(values, look.width - 40)
        if bars:
            yield f"  {name:<7} {bars}  up to {max(values):,}"
    yield f"  each of {len(buckets)} slices: {facts['over_time']['bucket_events']:,} events"


def _programs(facts: Facts, look: TerminalStyle, everything: bool) -> Iterable[str]:
    programs = facts["processes"]
    shown = programs if everything else programs[:_PROGRAMS]
    rows = [("program", "spaces", "roots", "lookups", "hit%", "made", "faults", "")]
    for program in shown:
        rows.append(
            (
                shortened(printable(program["name"]), 24),
                number(program["spaces"]),
                number(program["loads"]),
                number(program["lookups"]),
                share(program["hits"], program["lookups"]),
                number(program["made"]),
                number(program["faults"]),
                "",
            )
        )
    yield columns(rows, "  ", fit=look.width)
    if len(shown) < len(programs):
        yield f"  and {len(programs) - len(shown):,} more: --all"
