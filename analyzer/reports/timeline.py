"""Address spaces over time, drawn in characters."""

from __future__ import annotations

import json
from collections.abc import Iterator

from analyzer.reports.text import printable, share, space_name
from analyzer.trace.timeline import Row, Timeline

#: Columns that the names take; the rest of the terminal is for buckets.
LABEL = 34

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"
_COLOURS = (36, 33, 32, 35, 34, 31)


def text(line: Timeline, colour: bool = False, plain: bool = False) -> str:
    """A row for each address space under a ruler of marks; ``plain`` draws in ASCII."""
    glyphs = _ASCII if plain else _BARS
    rows = [_row(row, glyphs, _COLOURS[number % len(_COLOURS)] if colour else None) for number, row in enumerate(line.rows)]
    parts = [*_marks(line, "|" if plain else "│"), *rows, _axis(line)]
    if line.others:
        parts.append(f"{line.others:,} more that were loaded for less: --limit 0")
    return "\n".join(part.rstrip() for part in parts)


def _row(row: Row, glyphs: str, colour: int | None) -> str:
    name = space_name(row.space)
    root = row.space.where
    percent = share(round(1e6 * sum(row.shares)), round(1e6 * len(row.shares)))
    room = LABEL - len(root) - 9
    label = f"{name[:room]:{room}} {root} {percent:>5}% "
    bar = "".join(glyphs[_height(part, len(glyphs) - 1)] for part in row.shares)
    return label + (f"\x1b[{colour}m{bar}\x1b[0m" if colour else bar)


def _height(part: float, most: int) -> int:
    return min(most, max(1, round(part * most))) if part > 0 else 0


def _marks(line: Timeline, tick: str) -> Iterator[str]:
    """The names of marks over their ticks, on as many lines as it takes for none to cover another."""
    buckets = -(-(line.last - line.first + 1) // line.width)
    left = sorted((bucket, printable(name)) for bucket, name in line.marks)
    while left:
        text, later = "", []
        for bucket, name in left:
            start = max(0, min(bucket, buckets - len(name) - 1))
            if len(text) > start:
                later.append((bucket, name))
            else:
                text = f"{text:{start}}{name} "
        yield " " * LABEL + text[:buckets]
        left = later
    if line.marks:
        at = {bucket for bucket, _ in line.marks}
        yield f"{'address space':{LABEL - 12}}{'root':>4}{'share':>7} " + "".join(
            tick if bucket in at else " " for bucket in range(buckets)
        )


def _axis(line: Timeline) -> str:
    buckets = -(-(line.last - line.first + 1) // line.width)
    text = ""
    for bucket in range(0, buckets, 20):
        text = f"{text:{bucket}}^{line.first + bucket * line.width:,}"
    events = f"{line.width:,} events" if line.width > 1 else "one event"
    return f"{f'a column is {events}':{LABEL}}" + text[:buckets]


def as_json(line: Timeline) -> str:
    """The timeline as one JSON object."""
    rows = [
        {
            "root": row.space.root,
            "generation": row.space.generation,
            "pid": row.space.pid,
            "comm": row.space.comm,
            "first": row.space.first,
            "loads": row.space.loads,
            "shares": [round(part, 6) for part in row.shares],
        }
        for row in line.rows
    ]
    marks = [{"bucket": bucket, "name": name} for bucket, name in line.marks]
    return json.dumps(
        {"first": line.first, "last": line.last, "width": line.width, "marks": marks, "rows": rows, "others": line.others}, indent=1
    )
