"""Rows of any query as a table, CSV, JSON, JSON Lines or Markdown. All but the table are written as the rows come."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from analyzer.reports.text import printable, shortened, width

FORMATS = ("table", "csv", "json", "jsonl", "markdown")

#: The longest cell of a table.
_CELL = 100

#: The shortest that a column of words is cut to.
_LEAST = 12

Rows = Iterable[Sequence[Any]]


def render(form: str, columns: Sequence[str], rows: Rows) -> Iterator[str]:
    """The text in pieces, in one of ``FORMATS``."""
    return {"table": _table, "csv": _csv, "json": _json, "jsonl": _jsonl, "markdown": _markdown}[form](columns, rows)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.hex()
    return printable(str(value))


def _table(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    """Aligned columns, numbers to the right. Where they do not fit, the last that does is cut if it holds words; the rest are left out."""
    kept = [list(row) for row in rows]
    cells = [[_text(name) for name in columns], *([_short(_text(value)) for value in row] for row in kept)]
    numeric = [bool(kept) and all(isinstance(row[i], int | float | None) for row in kept) for i in range(len(columns))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    room = width()
    while (over := sum(widths) + 2 * (len(widths) - 1) - room) > 0:
        last = widths.pop()
        if not widths or (not numeric[len(widths)] and last - over >= _LEAST):
            widths.append(max(last - over, 1))
            break
    for row in cells:
        cut = [shortened(row[i], widths[i]) for i in range(len(widths))]
        aligned = [cut[i].rjust(widths[i]) if numeric[i] else cut[i].ljust(widths[i]) for i in range(len(widths))]
        yield "  ".join(aligned).rstrip() + "\n"
    if len(widths) < len(columns):
        more = len(columns) - len(widths)
        yield f"... {more} more column{'s' if more > 1 else ''}\n"


def _short(cell: str) -> str:
    return cell if len(cell) <= _CELL else cell[: _CELL - 3] + "..."


def _csv(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for block in _blocks(itertools.chain([columns], rows)):
        writer.writerows([_text(value) for value in row] for row in block)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _jsonl(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    for block in _blocks(rows):
        yield "".join(json.dumps(_object(columns, row)) + "\n" for row in block)


def _json(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    before = "[\n"
    for block in _blocks(rows):
        for row in block:
            yield before + json.dumps(_object(columns, row))
            before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _object(columns: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in zip(columns, row, strict=True)}


def _markdown(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in cells) + " |\n"

    yield line(columns)
    yield "|" + " --- |" * len(columns) + "\n"
    for block in _blocks(rows):
        yield "".join(map(line, block))


def _blocks(rows: Rows, size: int = 2048) -> Iterator[list[Sequence[Any]]]:
    every = iter(rows)
    while block := list(itertools.islice(every, size)):
        yield block
