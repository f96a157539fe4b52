"""What a trace knows beyond the model: when the phases of the boot began, and which program a root belongs to."""

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
class Name:
    """What a program that was executed is called."""

    gfn: int
    """Frame of its top table."""
    first: int
    """Number of the first event after the naming."""
    name: str
    """As the guest has it: never to be shown raw."""


@dataclass(frozen=True)
class Story:
    """All of it, in order of events; nothing where nothing is known."""

    marks: tuple[Mark, ...] = ()
    names: tuple[Name, ...] = ()
