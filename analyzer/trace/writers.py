"""Which guest code writes page tables, and what each of its stores costs a shadow page cache: by function and by instruction."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from analyzer.model.journal import CAUSES, FLOODED, Journal, What
from db.queries import STORES
from db.trace import TraceReader
from x86.event import MASK64

#: Zaps that a store brings about; the others (evictions, user stores) have other reasons.
_BY_STORES = [CAUSES.index(cause) for cause in ("misaligned", "flood", "misaligned_and_flood")]


@dataclass
class Tally:
    """What a piece of code did."""

    stores: int = 0
    emulated: int = 0
    """Stores to frames that the model shadowed: each is an exit to the hypervisor."""
    floods: int = 0
    """Of these, stores that the flood detection answered with a zap."""
    zaps: int = 0
    """Shadow pages zapped by these stores, for flooding or because they were misaligned."""
    frames: set[int] = field(default_factory=set)
    """Frames stored to."""

    def add(self, frame: int, emulated: bool, flooded: bool, zaps: int) -> None:
        """Count one store."""
        self.stores += 1
        self.emulated += emulated
        self.floods += flooded
        self.zaps += zaps
        self.frames.add(frame)


@dataclass
class Function:
    """A function of the guest's kernel, and its instructions that stored to tables."""

    name: str | None
    """Its name, data from the kernel's image; ``None`` for code that lies in no function that is known."""
    address: int | None
    """Where it begins in the guest; ``None`` for stores that no instruction was seen to make."""
    tally: Tally = field(default_factory=Tally)
    instructions: dict[int, Tally] = field(default_factory=dict)
    """By virtual address in the guest."""


def annotate(trace: TraceReader, journal: Journal | None) -> list[Function]:
    """Every function that stored to a page table, the busiest first. Without a journal only stores and frames are counted."""
    emulated, floods, zaps = _costs(journal)
    functions: dict[int | None, Function] = {}
    find = _Finder(trace)
    for seq, addr, pc in STORES.rows(trace):
        known = find(pc)
        function = functions.setdefault(known.address, known)
        # A file may number its events as it likes; the first of a journal is the machine's creation, which stores nothing.
        at = seq if 0 < seq < len(emulated) else 0
        cost = (addr >> 12, bool(emulated[at]), bool(floods[at]), int(zaps[at]))
        function.tally.add(*cost)
        if pc is not None:
            function.instructions.setdefault(pc & MASK64, Tally()).add(*cost)
    return sorted(functions.values(), key=lambda function: -function.tally.stores)


def _costs(journal: Journal | None) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For each event by number: emulated stores, those that flooded, and pages zapped by stores."""
    if journal is None:
        none = np.zeros(1, np.int64)
        return none, none, none
    rows = journal.rows
    events = int(rows["event"].max(initial=0))
    store = rows["what"] == What.STORE
    died = ((rows["what"] == What.ZAP_FREED) | (rows["what"] == What.ZAP_ROOT_KEPT)) & np.isin(rows["cause"], _BY_STORES)

    def count(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(rows["event"][chosen], minlength=events + 1)

    return count(store), count(store & (rows["cause"] == FLOODED)), count(died)


class _Finder:
    """The function that an instruction lies in; one value for each function, made when it is asked for first."""

    def __init__(self, trace: TraceReader) -> None:
        self._symbols = sorted((row["address"] & MASK64, row["size"], row["name"]) for row in trace.rows("symbol"))
        self._starts = [start for start, _, _ in self._symbols]

    def __call__(self, pc: int | None) -> Function:
        """The function of an instruction's address as the file holds it; code without a name stands for itself."""
        if pc is None:
            return Function(None, None)
        pc &= MASK64
        at = bisect_right(self._starts, pc) - 1
        if at >= 0:
            start, size, name = self._symbols[at]
            if pc < start + size:
                return Function(name, start)
        return Function(None, pc)


def table(functions: list[Function], by: str, sort: str) -> Iterator[tuple[str, int | None, Tally]]:
    """Rows by ``function`` or ``instruction``, the most of ``sort`` first: name (``+offset``), address, tally. Names are data."""
    rows: list[tuple[str, int | None, Tally]] = []
    for function in functions:
        if by == "function":
            rows.append((_name(function, function.address), function.address, function.tally))
        else:
            rows += [(_name(function, pc), pc, tally) for pc, tally in function.instructions.items()]
            if function.address is None:
                rows.append((_name(function, None), None, function.tally))
    yield from sorted(rows, key=lambda row: (-getattr(row[2], sort), -row[2].stores, row[0]))


def _name(function: Function, pc: int | None) -> str:
    if pc is None:
        return "(no instruction seen)"
    if function.name is None or function.address is None:
        return f"{pc:#x}"
    return function.name + (f"+{pc - function.address:#x}" if pc != function.address else "")
