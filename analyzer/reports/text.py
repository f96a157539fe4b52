"""Words and numbers for a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Protocol


def printable(text: str) -> str:
    """Text from a guest or a trace made harmless: what is not printable is shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: int) -> str:
    """A count with thousands separated; zero is a dot."""
    return f"{value:,}" if value else "·"


def size(count: int | None) -> str:
    """Bytes in the largest unit that leaves a number of 1 or more; a dot where it is not known."""
    if count is None:
        return "·"
    if count < 1 << 10:
        return f"{count} B"
    return f"{count / (1 << 10):.0f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def share(part: int, whole: int) -> str:
    """A percentage with one digit; below a tenth it is `<0.1`, none is a dot."""
    if not whole or not part:
        return "·"
    percent = 100 * part / whole
    if part < whole and percent > 99.9:
        return ">99.9"
    return "<0.1" if percent < 0.1 else f"{percent:.1f}"


def width() -> int:
    """Columns of the terminal; 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def columns(rows: Sequence[Sequence[str]], indent: str = "", left: int = 1) -> str:
    """Rows as aligned columns: the first ``left`` and the last to the left, numbers to the right.

    Columns that do not fit the terminal are dropped from the right; no row wraps.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    while len(widths) > 2 and len(indent) + sum(widths[:-1]) + 2 * (len(widths) - 1) + 8 > width():
        widths.pop()
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [row[i].ljust(widths[i]) if i < left or i == last else row[i].rjust(widths[i]) for i in range(len(widths))]
        lines.append((indent + "  ".join(cells)).rstrip()[: width()])
    return "\n".join(lines)


class Named(Protocol):
    """An address space as far as its name goes."""

    pid: int | None
    comm: str | None


def space_name(space: Named) -> str:
    """An address space's name and process id, made harmless; a dash where the recording learnt none."""
    if space.comm is None:
        return "-"
    return printable(space.comm) + (f"[{space.pid}]" if space.pid is not None else "")
