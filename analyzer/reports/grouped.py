"""Rows of a grouped report for a terminal, a paper, a spreadsheet or a program."""

from __future__ import annotations

import csv as csv_format
import io
import json
from collections.abc import Sequence
from typing import Any

from analyzer.grouping import COUNTS
from analyzer.reports.text import Look, columns, number, printable, share

Rows = Sequence[dict[str, Any]]


def table(rows: Rows, keys: Sequence[str], look: Look) -> str:
    """Aligned columns: the keys and every count that is not zero throughout."""
    counts = [count for count in COUNTS if any(row[count] for row in rows)]
    lines = [(*keys, *(_heading(count) for count in counts), "")]
    lines += [(*(_cell(row[key]) for key in keys), *(_count(row, count) for count in counts), "") for row in rows]
    return columns(lines, left=len(keys), fit=look.width)


def markdown(rows: Rows, keys: Sequence[str]) -> str:
    """A table in Markdown."""
    counts = [count for count in COUNTS if any(row[count] for row in rows)]
    lines = [[*keys, *(_heading(count) for count in counts)], [*("---" for _ in keys), *("---:" for _ in counts)]]
    lines += [[*(_escaped(_cell(row[key])) for key in keys), *(_count(row, count) for count in counts)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv(rows: Rows, keys: Sequence[str]) -> str:
    """Comma-separated values with a line of names; counts are plain numbers."""
    out = io.StringIO()
    writer = csv_format.writer(out, lineterminator="\n")
    writer.writerow([*keys, *COUNTS])
    writer.writerows([*(_cell(row[key]) for key in keys), *(row[count] for count in COUNTS)] for row in rows)
    return out.getvalue().removesuffix("\n")


def jsonl(rows: Rows) -> str:
    """One object a line."""
    return "\n".join(json.dumps(row) for row in rows)


def _heading(count: str) -> str:
    return {"hit_percent": "hit%"}.get(count, count)


def _cell(value: Any) -> str:
    return printable(str(value))


def _count(row: dict[str, Any], count: str) -> str:
    if count == "hit_percent":
        return share(row["hits"], row["lookups"])
    return number(row[count])


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\|`*_<>[]" else c for c in text)
