"""A trace, and a replay of it, as tracks over time: slices, instants and counters for a trace viewer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from analyzer.model.journal import CAUSES, Journal, What
from analyzer.model.role import unpack
from analyzer.trace.context import place
from analyzer.trace.residency import History, Space
from db.marks import phases
from db.queries import LOADS, by_bucket
from db.trace import TraceReader
from x86.event import Kind, kind_name

Details = Mapping[str, int | str]


@dataclass(frozen=True)
class Slice:
    """Something that lasts from event ``first`` until before event ``end``."""

    track: tuple[str, ...]
    """The track's name after those of the groups it lies in; names are data, not yet harmless."""
    first: int
    end: int
    name: str
    details: Details = field(default_factory=dict)


@dataclass(frozen=True)
class Instant:
    """Something that happened at one event."""

    track: tuple[str, ...]
    seq: int
    name: str
    details: Details = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A counter's value from one event on."""

    track: tuple[str, ...]
    seq: int
    value: float


Item = Slice | Instant | Sample

#: Samples of each counter over a whole trace.
_SAMPLES = 1000


def recorded(trace: TraceReader) -> Iterator[Item]:
    """What was recorded: phases, which address space each vCPU had loaded and when each was, events in stretches."""
    guest = trace.recording["guest"]
    for phase in phases(trace):
        yield Slice((guest, "phases"), phase.first, phase.last + 1, phase.name)
    history = History(trace)
    spaces = sorted(history.stays, key=lambda stay: (stay.first, stay.vcpu))
    for stay in spaces:
        root = {"root": stay.space.root, "generation": stay.space.generation}
        yield Slice((guest, f"vCPU {stay.vcpu}"), stay.first, stay.end, _title(stay.space), root)
    for stay in spaces:
        yield Slice((guest, "address spaces", _title(stay.space), f"on vCPU {stay.vcpu}"), stay.first, stay.end, "loaded")
    for seq, vcpu, root in LOADS.rows(trace):
        space = history.at(seq, root)
        yield Instant((guest, f"cr3 loads of vCPU {vcpu}"), seq, _title(space) if space is not None else place(root))
    yield from _counts(trace, guest)


def _title(space: Space) -> str:
    return space.where if space.comm is None else f"{space.comm}[{space.pid}] {space.where}"


def _counts(trace: TraceReader, guest: str) -> Iterator[Item]:
    """Events of each kind, and guest page faults, in each thousandth of the trace."""
    width = max(1, -(-trace.count() // _SAMPLES))
    counts: dict[str, dict[int, int]] = {}
    for bucket, kind, count, faults in by_bucket(width).rows(trace):
        counts.setdefault(kind_name(kind), {})[bucket] = count
        if kind == Kind.ACCESS:
            counts.setdefault("guest page fault", {})[bucket] = faults
    buckets = -(-trace.count() // width)
    for name, of in counts.items():
        for bucket in range(buckets):
            yield Sample((guest, f"events per {width:,}", name), bucket * width + 1, of.get(bucket, 0))


def replayed(model: str, journal: Journal) -> Iterator[Item]:
    """What a replay did: live shadow pages by level, and every zap by its cause."""
    rows = journal.rows
    level = np.array([unpack(int(role)).level for role in journal.births["role"]], np.int64)
    made, died = rows["what"] == What.ALLOC, rows["what"] == What.ZAP_FREED
    change = made.astype(np.int64) - died
    for of in sorted(set(level.tolist()), reverse=True):
        here = np.flatnonzero(change)
        here = here[level[rows["page"][here]] == of]
        live = np.cumsum(change[here])
        seqs = rows["event"][here]
        # One sample an event: what it left.
        for i in np.append(np.flatnonzero(np.diff(seqs)), len(seqs) - 1):
            yield Sample((model, "live shadow pages", f"level {of}"), int(seqs[i]), int(live[i]))
    for at in np.flatnonzero(died | (rows["what"] == What.ZAP_ROOT_KEPT)):
        row = rows[at]
        birth = journal.births[row["page"]]
        role = unpack(int(birth["role"]))
        details: Details = {"gfn": int(birth["gfn"]), "level": role.level, "glevels": role.glevels, "what": What(row["what"]).name.lower()}
        yield Instant((model, "zaps"), int(row["event"]), CAUSES[row["cause"]].replace("_", " "), details)
