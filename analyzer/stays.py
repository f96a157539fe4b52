"""Address spaces: which root was loaded when, what it was called, for how many events it stayed.

A page directory's frame is used again by another process, so an address space is a root frame and its generation. A frame
that is loaded after its content was recorded anew while it was not loaded is the next generation: it had ceased to be a root
in between. A name holds for the generation in which the recording learnt it; a second name begins one of its own, as an exec
does that gets the frame it had.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from db.event import Kind
from db.queries import ROOTS
from db.trace import TraceReader


@dataclass
class Space:
    """One address space, and how much it was used."""

    root_gfn: int
    generation: int
    """From 0, for each root frame."""
    first: int
    """The event with which it begins."""
    pid: int | None = None
    comm: str | None = None
    """The program's name, data from the guest; ``None`` where none was learnt, as for a fork's child before it executes."""
    loads: int = 0
    resident: int = 0
    """Events while it was loaded, on any vCPU."""


@dataclass(frozen=True)
class Stay:
    """A root stays loaded on a vCPU from event ``first`` until before event ``end``."""

    space: Space
    vcpu: int
    first: int
    end: int


class History:
    """Every address space of a trace, and every stay of each, in the order in which they end."""

    def __init__(self, trace: TraceReader) -> None:
        self.stays: list[Stay] = []
        self._generations: dict[int, list[Space]] = {}
        self._firsts: dict[int, list[int]] = {}
        self._loaded: dict[int, tuple[Space, int]] = {}
        self._read(trace)

    @property
    def spaces(self) -> list[Space]:
        """Every address space that was loaded, in order of appearance."""
        found = (space for generations in self._generations.values() for space in generations if space.loads or space.resident)
        return sorted(found, key=lambda space: (space.first, space.root_gfn))

    def at(self, seq: int, root_gfn: int) -> Space | None:
        """The address space that this root was at an event; ``None`` for a frame that was never loaded until then."""
        at = bisect_right(self._firsts.get(root_gfn, ()), seq)
        return self._generations[root_gfn][at - 1] if at else None

    def _read(self, trace: TraceReader) -> None:
        names = sorted(trace.rows("address_space"), key=lambda row: (row["seq"], row["id"]), reverse=True)
        fresh: dict[int, int] = {}
        for seq, kind, vcpu, gfn in ROOTS.rows(trace):
            while names and names[-1]["seq"] < seq:
                self._name(**names.pop())
            if kind == Kind.PAGE:
                if all(space.root_gfn != gfn for space, _ in self._loaded.values()):
                    fresh[gfn] = seq
                continue
            if vcpu in self._loaded:
                self._leave(vcpu, seq)
            begin = fresh.pop(gfn, None)
            space = self._begin(gfn, begin or seq) if begin or gfn not in self._generations else self._generations[gfn][-1]
            space.loads += 1
            self._loaded[vcpu] = (space, seq)
        while names:
            self._name(**names.pop())
        for vcpu in self._loaded:
            self._leave(vcpu, trace.count() + 1)

    def _begin(self, gfn: int, first: int) -> Space:
        generations = self._generations.setdefault(gfn, [])
        generations.append(Space(gfn, len(generations), first))
        self._firsts.setdefault(gfn, []).append(first)
        return generations[-1]

    def _name(self, seq: int, root_gfn: int, pid: int | None, comm: str, **_: object) -> None:
        generations = self._generations.get(root_gfn)
        space = generations[-1] if generations else self._begin(root_gfn, seq + 1)
        if space.comm is not None:
            space = self._begin(root_gfn, seq + 1)
            for vcpu, (old, _since) in list(self._loaded.items()):
                if old.root_gfn == root_gfn:
                    self._leave(vcpu, seq + 1)
                    self._loaded[vcpu] = (space, seq + 1)
        space.pid, space.comm = pid, comm

    def _leave(self, vcpu: int, end: int) -> None:
        space, since = self._loaded[vcpu]
        space.resident += end - since
        if end > since:
            self.stays.append(Stay(space, vcpu, since, end))
