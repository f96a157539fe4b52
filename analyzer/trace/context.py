"""What a trace knows beyond the model: when the phases of the boot began, and whose root a top table was when."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """A named moment, which begins a phase."""

    name: str
    first: int
    """Number of the first event after it."""
    accesses: int
    """Accesses from it to the next mark, or to the end."""


@dataclass(frozen=True)
class Root:
    """From when on a top table is that of another address space than before."""

    address: int
    """Physical address of the top table: a page's, or that of PAE's PDPTEs, several of which may lie in one page."""
    first: int
    """Number of the first event in it."""
    name: str | None = None
    """The program's, as the guest has it: never to be shown raw. ``None`` where none was learnt."""


@dataclass(frozen=True)
class Story:
    """All of it, marks and the roots at each address in order of events; nothing where nothing is known."""

    marks: tuple[Mark, ...] = ()
    roots: tuple[Root, ...] = ()


def place(root: int) -> str:
    """Where a root lies, in words: its frame, and behind a plus sign what it is into the frame."""
    within = root & 0xFFF
    return f"{root >> 12:#x}" + (f"+{within:#x}" if within else "")
