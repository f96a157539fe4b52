"""Rows of a grouped report for a terminal, a paper, a spreadsheet or a program."""

from __future__ import annotations

import csv as csv_format
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from analyzer.facts.group_counts import COUNTS, MORE, UNCACHED
from analyzer.reports.text import TerminalStyle, columns, number, printable, share

Rows = Sequence[dict[str, Any]]


def table(rows: Rows, keys: Sequence[str], look: TerminalStyle, everything: bool = False, sort: str | None = None) -> str:
    """Aligned columns: the keys and every count that is not zero throughout; of ``MORE`` only what is sorted by, or everything."""
    counts = _to_read(rows, everything, sort)
    lines = [(*keys, *(_heading(count) for count in counts), "")]
    lines += [(*(_cell(row[key]) for key in keys), *(_count(row, count) for count in counts), "") for row in rows]
    text = columns(lines, left=len(keys), fit=look.width)
    left_out = len(lines[0]) - 1 - len(re.split("  +", text.partition("\n")[0]))
    return text + (f"\n... {left_out} more column{'s' if left_out > 1 else ''} in csv" if left_out else "")


def markdown(rows: Rows, keys: Sequence[str], everything: bool = False, sort: str | None = None) -> str:
    """The same as a table in Markdown."""
    counts = _to_read(rows, everything, sort)
    lines = [[*keys, *(_heading(count) for count in counts)], [*("---" for _ in keys), *("---:" for _ in counts)]]
    lines += [[*(_escaped(_cell(row[key])) for key in keys), *(_count(row, count) for count in counts)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv(rows: Rows, keys: Sequence[str]) -> str:
    """Comma-separated values with a line of names; counts are plain numbers."""
    out = io.StringIO()
    writer = csv_format.writer(out, lineterminator="\n")
    counts = _counts(rows)
    writer.writerow([*keys, *counts])
    writer.writerows([*(_cell(row[key]) for key in keys), *(row[count] for count in counts)] for row in rows)
    return out.getvalue().removesuffix("\n")


def jsonl(rows: Rows) -> str:
    """One object a line."""
    return "\n".join(json.dumps(row) for row in rows)


def _counts(rows: Rows) -> list[str]:
    """What the rows count, in order."""
    return [*COUNTS, *(count for count in UNCACHED if rows and count in rows[0]), *MORE]


def _to_read(rows: Rows, everything: bool, sort: str | None) -> list[str]:
    shown = (count for count in _counts(rows) if everything or count not in MORE or count == sort)
    return [count for count in shown if any(row[count] for row in rows)]


def _heading(count: str) -> str:
    return {"hit_percent": "hit%"}.get(count, count.replace("_", " "))


def _cell(value: Any) -> str:
    return printable(str(value))


def _count(row: dict[str, Any], count: str) -> str:
    if count == "hit_percent":
        return share(row["hits"], row["lookups"])
    return number(row[count] or 0)


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\|`*_<>[]" else c for c in text)
