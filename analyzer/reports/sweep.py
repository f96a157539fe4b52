"""A sweep's results: a table with a chart for a terminal, JSON, CSV."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable
from typing import Any

from analyzer.reports.text import TerminalStyle, columns, number, printable
from x86.registers import Mode

#: Width of a full bar where there is room, and of what stands around it.
_BAR = 40
_AROUND = 30
_EIGHTHS = " ▏▎▍▌▋▊▉█"

#: Parameters with a column of their own; others are named where they differ among the results.
_SHOWN = ("pages", "buckets", "flood")


def table(results: list[dict[str, Any]], look: TerminalStyle) -> str:
    """A row for each result, then the chart."""
    levels = _levels(results)
    varying = [name for name in (results[0]["parameters"] if results else ()) if name not in _SHOWN and _varies(results, name)]
    rows = [("trace", "model", *_SHOWN, *varying, "lookups", "miss%", *(_level_name(level) for level in levels), "faults", "zapped")]
    for result in results:
        chosen = result["parameters"]
        misses = miss_ratios(result)
        rows.append(
            (
                printable(result["trace"]),
                result["model"],
                *(str(chosen[name]) for name in (*_SHOWN, *varying)),
                number(result["facts"]["get_page"]["lookups"]),
                _percent(misses.get(None)),
                *(_percent(misses.get(level)) for level in levels),
                number(result["facts"]["access"]["faults"]),
                number(result["facts"]["zaps"]["total"]),
            )
        )
    bar = max(0, min(_BAR, look.width - _AROUND))
    return columns(rows, fit=look.width) + "\n" + "".join(f"\n{line}" for line in _chart(results, levels, bar))


def as_json(results: list[dict[str, Any]]) -> str:
    """Every result as the sweep's file has it."""
    return json.dumps(results, indent=1)


def as_csv(results: list[dict[str, Any]]) -> str:
    """A line for each result: what was chosen, every counter."""
    out = io.StringIO()
    flat = [_flat(result) for result in results]
    # Roles are those that a trace has: another may have others.
    names = dict.fromkeys(itertools.chain.from_iterable(flat)) or ["trace"]
    writer = csv.DictWriter(out, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue().rstrip("\n")


def miss_ratios(result: dict[str, Any]) -> dict[tuple[int, int] | None, float]:
    """Misses for each look-up: by (level, metaphysical), and of all under ``None``."""
    asked: dict[tuple[int, int] | None, list[int]] = {}
    for role in result["facts"]["get_page"]["by_role"]:
        for key in (None, (role["level"], role["metaphysical"])):
            sums = asked.setdefault(key, [0, 0])
            sums[0] += role["lookups"]
            sums[1] += role["misses"]
    return {key: misses / lookups for key, (lookups, misses) in asked.items() if lookups}


def _levels(results: list[dict[str, Any]]) -> list[tuple[int, int]]:
    found = {(role["level"], role["metaphysical"]) for result in results for role in result["facts"]["get_page"]["by_role"]}
    return sorted(found, key=lambda level: (-level[0], level[1]))


def _level_name(level: tuple[int, int]) -> str:
    return f"L{level[0]}" + (" meta" if level[1] else "")


def _varies(results: list[dict[str, Any]], name: str) -> bool:
    return len({result["parameters"][name] for result in results}) > 1


def _percent(ratio: float | None) -> str:
    return "·" if ratio is None else f"{100 * ratio:.1f}"


def _chart(results: list[dict[str, Any]], levels: list[tuple[int, int]], bar: int) -> Iterable[str]:
    """Misses of all look-ups at each number of pages, level by level, for every series that has more than one."""
    series: dict[str, list[dict[str, Any]]] = {}
    tied = bool(results) and all(result["parameters"]["buckets"] == result["parameters"]["pages"] for result in results)
    left_out = {"pages", "buckets"} if tied else {"pages"}
    varying = [name for name in (results[0]["parameters"] if results else ()) if name not in left_out and _varies(results, name)]
    for result in results:
        chosen = " ".join(f"{name} {result['parameters'][name]}" for name in varying)
        series.setdefault(" · ".join(filter(None, (printable(result["trace"]), result["model"], chosen))), []).append(result)
    for name, points in series.items():
        if len({point["parameters"]["pages"] for point in points}) < 2:
            continue
        yield f"Misses by shadow pages: {name}"
        for level in (*levels, None):
            shown = [(point["parameters"]["pages"], ratio) for point in points if (ratio := miss_ratios(point).get(level)) is not None]
            for i, (pages, ratio) in enumerate(shown):
                label = "" if i else "all" if level is None else _level_name(level)
                yield f"  {label:12}{pages:>8,} {_bar(ratio, bar)} {100 * ratio:.1f}%"
        yield ""


def _bar(ratio: float, full: int) -> str:
    eighths = round(ratio * full * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    flat = {name: result[name] for name in ("trace", "events", "model", "version", "core")}
    flat |= {f"parameter.{name}": value for name, value in result["parameters"].items()}
    for section, counters in result["facts"].items():
        flat |= {f"{section}.{name}": value for name, value in counters.items() if not isinstance(value, list)}
    for role in result["facts"]["get_page"]["by_role"]:
        key = f"{Mode(role['glevels']).label} level {role['level']} quadrant {role['quadrant']}{' meta' if role['metaphysical'] else ''}"
        flat |= {f"{key} {name}": role[name] for name in ("lookups", "misses")}
    return flat
