"""What a guest must show when it is recorded, and what of it a recording does not have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from db.trace import TraceReader
from x86.event import ACCESS_FAULT, Kind
from x86.registers import CR0_PG, paging_mode

_QUADRANT_SHIFT = 30

_FAULTS = f"SELECT count(*) FROM event WHERE kind = {Kind.ACCESS:d} AND flags & {ACCESS_FAULT:d} <> 0"
_PAGING_ON = f"SELECT min(seq) FROM mode_registers WHERE cr0 & {CR0_PG:d} <> 0"
_QUADRANTS = f"SELECT count(DISTINCT addr >> {_QUADRANT_SHIFT}) FROM event WHERE kind = {Kind.ACCESS:d} AND seq > ({_PAGING_ON})"


@dataclass(frozen=True)
class Expectation:
    """The ``[expect]`` table of a guest's recipe: numbers are the least there must be."""

    ended: str
    """How the recording ends."""
    modes: tuple[str, ...]
    """Paging modes that are turned on, by their labels."""
    console: tuple[str, ...] = ()
    """Lines, or parts of lines, that the guest prints."""
    names: tuple[str, ...] = ()
    """Programs that have address spaces."""
    cr3: int = 0
    stores: int = 0
    faults: int = 0
    """Guest page faults."""
    invlpg: int = 0
    quadrants: int = 0
    """Quarters of the 4 GiB of virtual addresses that are touched with paging on."""

    @classmethod
    def of(cls, table: dict[str, Any]) -> Self:
        """An expectation from TOML; ``TypeError`` where a key is not known."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
        return cls(**values)


def not_shown(expect: Expectation, trace: TraceReader) -> list[str]:
    """A sentence for everything that a trace lacks, in a fixed order; empty where the guest did what it must."""
    return [*_texts(expect, trace), *_numbers(expect, trace)]


def _texts(expect: Expectation, trace: TraceReader) -> Iterator[str]:
    ended = trace.recording["ended"]
    if ended is not None and ended != expect.ended:
        yield f"it ends with {expect.ended!r}, not with {ended!r}"
    seen = {paging_mode(*(value or 0 for value in event.extra or ())).label for event in trace.events((Kind.REGS,))}
    for mode in expect.modes:
        if mode not in seen:
            yield f"it turns on {mode} paging"
    lines = [row["line"] for row in trace.rows("console")]
    for text in expect.console:
        if not any(text in line for line in lines):
            yield f"it prints {text!r}"
    names = {row["comm"] for row in trace.rows("address_space")}
    for name in expect.names:
        if name not in names:
            yield f"it runs {name!r} in an address space of that name"


def _numbers(expect: Expectation, trace: TraceReader) -> Iterator[str]:
    if trace.recording["engine"] != "plugin":
        # gdb sees changes, not each store, and not every INVLPG.
        return
    counts = dict(trace.stream("SELECT kind, count(*) FROM event GROUP BY kind"))
    wanted = [
        ("cr3 loads", expect.cr3, counts.get(Kind.CR3, 0)),
        ("stores to tables", expect.stores, counts.get(Kind.WRITE, 0)),
        ("INVLPGs", expect.invlpg, counts.get(Kind.INVLPG, 0)),
    ]
    if trace.recording["touch"] != "none":
        wanted += [("guest page faults", expect.faults, trace.number(_FAULTS)), ("quadrants", expect.quadrants, trace.number(_QUADRANTS))]
    for what, least, count in wanted:
        if count < least:
            yield f"it gives {least:,} {what} or more, not {count:,}"
