"""Address spaces: which root was loaded when, what it was called, for how many events it stayed.

A page directory's frame is used again by another process, so an address space is a root and its generation. A root that is
loaded after the guest's kernel freed it is the next generation, and so is one whose content was recorded anew while it was not
loaded. PAE's PDPTEs are no table that is recorded: there it is the next generation that comes with other PDPTEs
than the last load of it found, those that were absent then aside. A name holds for the generation in which the recording
learnt it; a second name begins one of its own, as an exec does that gets the root it had, with the load during which it was
learnt. Loads of a root that is loaded already are one stay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from analyzer.trace.context import place
from db.queries import ROOTS
from db.trace import TraceReader
from x86.event import Kind
from x86.paging import PAGE_SHIFT, PRESENT


@dataclass
class Space:
    """One address space, and how much it was used."""

    root: int
    """Physical address of the top table; of PAE's PDPTEs, several of which may lie in one page."""
    generation: int
    """From 0, for each root."""
    first: int
    """The event with which it begins."""
    pid: int | None = None
    comm: str | None = None
    """The program's name, data from the guest; ``None`` where none was learnt."""
    loads: int = 0
    resident: int = 0
    """Events while it was loaded, on any vCPU."""

    @property
    def where(self) -> str:
        """Its root and generation, in words."""
        return f"{place(self.root)}.{self.generation}"


@dataclass(frozen=True)
class Stay:
    """A root stays loaded on a vCPU from event ``first`` until before event ``end``."""

    space: Space
    vcpu: int
    first: int
    end: int


@dataclass
class _Loaded:
    """What a vCPU has loaded, since which event, and how many times in a row."""

    space: Space
    since: int
    loads: int = 1


class History:
    """Every address space of a trace, and every stay of each, in the order in which they end."""

    def __init__(self, trace: TraceReader, rows: Iterable[tuple[Any, ...]] | None = None) -> None:
        """``rows`` are those of ``ROOTS``, where they have been read already."""
        self.stays: list[Stay] = []
        self._generations: dict[int, list[Space]] = {}
        self._firsts: dict[int, list[int]] = {}
        self._loaded: dict[int, _Loaded] = {}
        self._read(trace, ROOTS.rows(trace) if rows is None else rows)

    @property
    def spaces(self) -> list[Space]:
        """Every address space that was loaded, in order of appearance."""
        return sorted((space for space in self.generations if space.loads), key=lambda space: (space.first, space.root))

    @property
    def generations(self) -> Iterator[Space]:
        """Those that were named and never loaded besides; each root's in order."""
        return chain.from_iterable(self._generations.values())

    def at(self, seq: int, root: int) -> Space | None:
        """The address space that this root was at an event; ``None`` for a root that was never loaded until then."""
        at = bisect_right(self._firsts.get(root, ()), seq)
        return self._generations[root][at - 1] if at else None

    def _read(self, trace: TraceReader, rows: Iterable[tuple[Any, ...]]) -> None:
        names = sorted(trace.rows("address_space"), key=lambda row: (row["seq"], row["id"]), reverse=True)
        fresh: dict[int, int | None] = {}
        pointers: dict[int, tuple[int, ...]] = {}
        for seq, kind, vcpu, root, *four in rows:
            while names and names[-1]["seq"] < seq:
                self._name(fresh, **names.pop())
            if kind == Kind.PAGE:
                if self._may_begin(root):
                    fresh[root] = seq
                continue
            if four[0] is not None:
                if self._may_begin(root) and any(
                    old & PRESENT and old != new for old, new in zip(pointers.get(root, four), four, strict=True)
                ):
                    fresh[root] = seq
                pointers[root] = tuple(four)
            loaded = self._loaded.get(vcpu)
            if loaded and loaded.space.root == root:
                loaded.loads += 1
                continue
            if loaded:
                self._leave(loaded, vcpu, seq)
            begins = root in fresh or root not in self._generations
            space = self._begin(root, fresh.pop(root, None) or seq) if begins else self._generations[root][-1]
            self._loaded[vcpu] = _Loaded(space, seq)
        while names:
            self._name(fresh, **names.pop())
        for vcpu, loaded in self._loaded.items():
            self._leave(loaded, vcpu, trace.count() + 1)

    def _is_loaded(self, root: int) -> bool:
        return any(loaded.space.root == root for loaded in self._loaded.values())

    def _may_begin(self, root: int) -> bool:
        """Whether new content makes a root that of another address space: not of one that is loaded, or that was named and has yet to be."""
        generations = self._generations.get(root)
        return not self._is_loaded(root) and (generations is None or generations[-1].loads > 0)

    def _begin(self, root: int, first: int) -> Space:
        generations = self._generations.setdefault(root, [])
        generations.append(Space(root, len(generations), first))
        self._firsts.setdefault(root, []).append(first)
        return generations[-1]

    def _name(
        self, fresh: dict[int, int | None], seq: int, root_gfn: int, root: int | None, pid: int | None, comm: str | None, **_: object
    ) -> None:
        """Take a row of ``address_space``. ``fresh`` has the roots that are those of another address space when next loaded or named, and
        since which event, if that is known.
        """
        # Traces of schema 1 have the frame alone.
        root = root_gfn << PAGE_SHIFT if root is None else root
        if comm is None:
            if root in self._generations:
                fresh[root] = None
            return
        # A name may be learnt before the load is recorded, which the next store or block brings.
        begins = root in fresh or root not in self._generations
        space = self._begin(root, fresh.pop(root, None) or seq + 1) if begins else self._generations[root][-1]
        if space.comm is not None:
            within = [loaded for loaded in self._loaded.values() if loaded.space is space]
            space = self._begin(root, min((loaded.since for loaded in within), default=seq + 1))
            for loaded in within:
                loaded.space = space
        space.pid, space.comm = pid, comm

    def _leave(self, loaded: _Loaded, vcpu: int, end: int) -> None:
        loaded.space.loads += loaded.loads
        loaded.space.resident += end - loaded.since
        self.stays.append(Stay(loaded.space, vcpu, loaded.since, end))
