"""Words and numbers for a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_BARS = "▁▂▃▄▅▆▇█"

_COLOUR = re.compile(r"\x1b\[\d*m")

#: A word of a shell's command, as ``shlex.quote`` writes it.
_SHELL_WORD = re.compile(r"(?:'[^']*'|[^' ])+")

#: Characters of a text from a trace that are shown at the most.
_LONGEST = 1 << 14


@dataclass(frozen=True)
class TerminalStyle:
    """What text is written for: so many columns; bars on a terminal only, bold headings where colours are wanted too."""

    width: int = 120
    terminal: bool = False
    bold: bool = False
    folds: bool = False
    """Whether sentences end at the width too, not tables alone."""

    def heading(self, text: str) -> str:
        """A section's heading."""
        return f"\x1b[1m{text}\x1b[0m" if self.bold else text


def look() -> TerminalStyle:
    """What standard output can show. NO_COLOR and a dumb terminal forbid bold words; a pipe without COLUMNS has whole sentences."""
    terminal = sys.stdout.isatty()
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return TerminalStyle(width(), terminal, terminal and not plain, terminal or bool(os.environ.get("COLUMNS")))


def printable(text: str) -> str:
    """Text from a guest or a trace made harmless: what is not printable is shown escaped, what is longer than any name is cut."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


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
    """Columns that COLUMNS or the terminal says; 120 where neither does."""
    return shutil.get_terminal_size((120, 24)).columns


def columns(rows: Sequence[Sequence[str]], indent: str = "", left: int = 1, fit: int | None = None) -> str:
    """Rows as aligned columns: the first ``left`` and the last to the left, numbers to the right; the last are words.

    Columns that do not fit the terminal, or ``fit``, are dropped from the right; no row wraps, and no number is cut. The last
    column is cut short where twelve characters of it have room, the first where nothing else is left.
    """
    room = (width() if fit is None else fit) - len(indent)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    before = sum(widths[:-1]) + 2 * last
    if before + min(widths[last], 12) > room:
        widths.pop()
        while len(widths) > 1 and sum(widths) + 2 * (len(widths) - 1) > room:
            widths.pop()
        widths[0] = min(widths[0], max(room, 1))
    else:
        widths[last] = min(widths[last], room - before)
    lines = []
    for row in rows:
        cells = [
            shortened(row[i], widths[i]).ljust(widths[i]) if i < left or i == last else row[i].rjust(widths[i]) for i in range(len(widths))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
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


def shortened(text: str, room: int) -> str:
    """Text cut to so many characters, with a sign that it was."""
    return text if len(text) <= room else text[: max(room - 1, 0)] + "…"


def squeezed(text: str, room: int) -> str:
    """Text cut in its middle to so many characters: its end says as much as its beginning."""
    if len(text) <= room:
        return text
    end = max(room - 1, 0) // 2
    return text[: max(room - 1 - end, 0)] + "…" + text[len(text) - end :]


def wrapped(text: str, room: int, first: str, rest: str) -> list[str]:
    """A sentence in lines of up to ``room`` characters, the first after ``first``, the others after ``rest``.

    A word that no line has room for, such as a digest, is cut.
    """
    lines, line = [], first
    for whole in text.split(" "):
        word = whole
        if _shown(line) + _shown(word) > room and line.strip() and line not in (first, rest):
            lines.append(line.rstrip())
            line = rest
        while len(word) == _shown(word) > room - len(line) > 0:
            lines.append(line + word[: room - len(line)])
            word, line = word[room - len(line) :], rest
        if word or line != rest:
            line += word + " "
    return [*lines, line.rstrip()]


def folded(text: str, look: TerminalStyle) -> str:
    """Text with its sentences in lines that ``look`` has room for; each goes on two columns further in. Lines that fit stay as they are."""
    if not look.folds:
        return text
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip(" "))]
        fits = _shown(line) <= look.width
        lines += [line] if fits else wrapped(line[len(indent) :], look.width, indent, indent + "  ")
    return "\n".join(lines)


def pasted(command: str, look: TerminalStyle, indent: str) -> list[str]:
    """A command for a shell, in lines that can be pasted together where one has no room; a word of it is never cut."""
    if not look.folds or len(indent + command) <= look.width:
        return [indent + command]
    lines, line = [], indent
    for word in _SHELL_WORD.findall(command):
        if line.strip() and len(f"{line}{word} \\") > look.width:
            lines.append(line + "\\")
            line = indent + "  "
        line += word + " "
    return [*lines, line.rstrip()]


def beside(first: str, second: str, room: int) -> str:
    """Two blocks of lines side by side where both have room, else one after the other."""
    left, right = first.split("\n"), second.split("\n")
    start = max(map(_shown, left)) + 4
    if start + max(map(_shown, right)) > room:
        return f"{first}\n\n{second}"
    height = max(len(left), len(right))
    padded = [block + [""] * (height - len(block)) for block in (left, right)]
    return "\n".join(f"{a}{' ' * (start - _shown(a))}{b}".rstrip() for a, b in zip(*padded, strict=True))


def _shown(line: str) -> int:
    """Columns that a line takes on a terminal."""
    return len(_COLOUR.sub("", line))


def spark(values: Sequence[int], length: int) -> str:
    """Values over time as a line of bars, the highest of each stretch; nothing where all are zero."""
    top = max(values, default=0)
    if not top:
        return ""
    length = min(length, len(values))
    stretches = [values[i * len(values) // length : (i + 1) * len(values) // length] for i in range(length)]
    return "".join(_BARS[max(stretch) * (len(_BARS) - 1) // top] for stretch in stretches)
