"""Two runs side by side: for a terminal, as JSON, CSV and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from analyzer.diff_inputs import Side
from analyzer.facts.comparison import Difference, Number
from analyzer.limits import Limit
from analyzer.reports import rows
from analyzer.reports.text import TerminalStyle, columns, printable, squeezed

#: No fact's name is cut to fewer characters to make room for its numbers.
_NAME = 36


def text(left: Side, right: Side, differences: Sequence[Difference], most: int | None, look: TerminalStyle) -> str:
    """A row for each of the first ``most`` differences; ``None`` for all. Where it is narrow, names are cut before numbers."""
    shown = differences[:most]
    numbers = [("left", "right", "change", "%")]
    numbers += [(_count(one.left), _count(one.right), _change(one.absolute), _percent(one.relative)) for one in shown]
    room = look.width - sum(2 + max(map(len, column)) for column in zip(*numbers, strict=True)) - 2
    names = ["fact", *(squeezed(printable(one.name), max(room, _NAME)) for one in shown)]
    table = [(name, *row, "") for name, row in zip(names, numbers, strict=True)]
    lines = [f"left   {_about(left, right)}", f"right  {_about(right, left)}", ""]
    lines.append(columns(table, fit=look.width) if shown else "no fact differs")
    if len(shown) < len(differences):
        alone = sum(1 for one in differences[len(shown) :] if one.absolute is None)
        known = f", {alone:,} of them facts of one side alone" if alone else ""
        lines.append(f"{len(differences) - len(shown):,} more{known}; --limit 0 shows them, --all those that are equal too")
    return "\n".join(lines)


def as_json(left: Side, right: Side, differences: Sequence[Difference], broken: Sequence[tuple[Limit, Difference]]) -> str:
    """Both sides, every difference, and the limits that were missed, as one JSON object."""
    sides = {
        name: {"source": side.source, "model": side.model, "parameters": side.parameters}
        for name, side in (("left", left), ("right", right))
    }
    found = [{**asdict(one), "absolute": one.absolute, "relative": one.relative} for one in differences]
    return json.dumps({**sides, "differences": found, "missed": [{"limit": one.text, "fact": of.name} for one, of in broken]}, indent=1)


def as_rows(form: str, differences: Sequence[Difference]) -> Iterator[str]:
    """CSV or Markdown in pieces: name, left, right, absolute, relative; blanks for what is missing."""
    found = [(one.name, one.left, one.right, one.absolute, None if one.relative is None else round(one.relative, 6)) for one in differences]
    return rows.render(form, ("fact", "left", "right", "absolute", "relative"), found)


def missed(one: Limit, difference: Difference) -> str:
    """One line for a limit that was missed."""
    change = f" ({_change(difference.absolute)}, {_percent(difference.relative) or '-'}%)" if difference.left is not None else ""
    return printable(f"limit missed: {one.text}: {difference.name} {_count(difference.left) or '-'} -> {_count(difference.right)}{change}")


def _about(side: Side, other: Side) -> str:
    """Where a side comes from, its model, and the parameters in which the two differ."""
    names = [name for name in side.parameters if side.parameters[name] != other.parameters.get(name)]
    return " · ".join(printable(part) for part in (side.source, side.model, *(f"{name} {side.parameters[name]}" for name in names)) if part)


def _count(value: Number | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _change(value: Number | None) -> str:
    if value is None:
        return ""
    return f"{value:+,}" if isinstance(value, int) else f"{value:+,.6g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+,.1f}"
