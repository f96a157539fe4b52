"""What a recording says when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from analyzer.reports.text import printable


class Check(Protocol):
    """A comparison of the recorded tables with the guest's memory."""

    tables: int
    entries: int
    missing: int
    different: int
    leaves: int | None
    leaves_different: int | None
    details: list[str]


def check_line(entries: int, missing: int, different: int, leaves: int | None, leaves_different: int | None) -> str:
    """The verdict of a comparison in one line."""
    if not entries:
        return "tables checked against guest memory: the guest had paging off"
    text = f"tables checked against guest memory: {entries:,} entries, {missing:,} missing, {different:,} differ"
    if leaves is not None:
        text += f"; {leaves:,} translations against QEMU's walk, {leaves_different:,} differ"
    return text


def loss_line(loss: dict[str, Any]) -> str:
    """What a row of ``loss`` says: events of a vCPU, or, where it counts none, something else that the recording could not keep."""
    events = f"{loss['count']:,} events of vCPU {loss['vcpu']} " if loss["count"] else ""
    return f"LOST {events}after event {loss['seq']:,}: {printable(loss['cause'])}"


def unnamed_line(why: str) -> str:
    """Why no address space has a program's name."""
    return printable(f"no program has a name: {why}")


def text(
    path: str, ended: str, detail: str, events: int, lost: int, check: Check | None, guest: str = "", not_shown: Sequence[str] = ()
) -> str:
    """A few lines: where it is, how it ended, what it holds, whether it is right, and what of a known guest is not in it."""
    lines = [f"{path}: {events:,} events, {lost:,} lost; {ended}: {printable(detail)}"]
    if check is not None:
        lines.append(check_line(check.entries, check.missing, check.different, check.leaves, check.leaves_different))
        lines += [f"  {printable(line)}" for line in check.details]
    lines += [f"{guest} did not show what it must: {printable(sentence)}" for sentence in not_shown]
    return "\n".join(lines)
