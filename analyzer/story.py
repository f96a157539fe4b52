"""What a trace knows beyond the model: when the phases of the boot began, and whose root a frame was when."""

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
    """From when on a frame is the top table of another address space than before."""

    gfn: int
    first: int
    """Number of the first event in it."""
    name: str | None = None
    """The program's, as the guest has it: never to be shown raw. ``None`` where none was learnt."""


@dataclass(frozen=True)
class Story:
    """All of it, marks and the roots of each frame in order of events; nothing where nothing is known."""

    marks: tuple[Mark, ...] = ()
    roots: tuple[Root, ...] = ()
