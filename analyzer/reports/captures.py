"""How two captures of one guest run compare, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from analyzer.reports.text import printable


class Difference(Protocol):
    """Where two lists part."""

    @property
    def at(self) -> int:
        """The position."""

    @property
    def ours(self) -> list[tuple[int, tuple[int, ...]]]:
        """What the first has around it."""

    @property
    def theirs(self) -> list[tuple[int, tuple[int, ...]]]:
        """What the second has around it."""


class Compared(Protocol):
    """One list of two captures."""

    @property
    def name(self) -> str:
        """What is in it."""

    @property
    def ours(self) -> int:
        """How many the first has."""

    @property
    def theirs(self) -> int:
        """How many the second has."""

    @property
    def difference(self) -> Difference | None:
        """Where they part."""

    @property
    def left_out(self) -> str:
        """Why nothing was compared."""


class Captured(Protocol):
    """What a capture says happened."""

    @property
    def name(self) -> str:
        """The file's name."""

    @property
    def store_events(self) -> int:
        """Stores recorded."""

    @property
    def unchanging(self) -> int:
        """Stores that changed nothing."""

    @property
    def seen(self) -> tuple[tuple[str, int], ...]:
        """Stores by how they were seen."""


def text(ours: Captured, theirs: Captured, lists: Sequence[Compared]) -> str:
    """A line for each list, with the places around the first difference; then how each capture saw its stores."""
    a, b = printable(ours.name), printable(theirs.name)
    lines = [f"{a} against {b}"]
    for compared in lines_of(lists):
        lines.append(f"  {compared}")
    for capture in (ours, theirs):
        if capture.store_events:
            ways = ", ".join(f"{count:,} {way}" for way, count in capture.seen)
            nothing = f"{capture.unchanging:,} changed nothing"
            lines.append(f"  {printable(capture.name)}: {capture.store_events:,} stores recorded, {ways}; {nothing}")
    return "\n".join(lines)


def lines_of(lists: Sequence[Compared]) -> list[str]:
    """The lists alone."""
    lines = []
    for compared in lists:
        if compared.left_out:
            lines.append(f"{compared.name}: not compared: {printable(compared.left_out)}")
        elif compared.difference is None:
            lines.append(f"{compared.name}: equal, {_counts(compared)}")
        else:
            lines.append(f"{compared.name}: DIFFERENT at number {compared.difference.at + 1:,}; {_counts(compared)}")
            lines += _places(compared.difference)
    return lines


def _counts(compared: Compared) -> str:
    if compared.ours == compared.theirs:
        return f"{compared.ours:,} each"
    return f"{compared.ours:,} and {compared.theirs:,}"


def _places(difference: Difference) -> list[str]:
    ours, theirs = dict(difference.ours), dict(difference.theirs)
    lines = []
    for at in sorted({*ours, *theirs}):
        mark = ">" if at == difference.at else " "
        lines.append(f"  {mark} {at + 1:>9,}  {_item(ours.get(at)):<40}  {_item(theirs.get(at))}")
    return lines


def _item(item: tuple[int, ...] | None) -> str:
    return "-" if item is None else " ".join(f"{number:#x}" for number in item)
