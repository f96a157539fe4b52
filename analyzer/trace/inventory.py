"""What is in a trace: counts by kind, vCPU and phase, address spaces, what was lost, what was checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from analyzer.trace.residency import History, Space
from db.marks import phases
from db.queries import BY_PHASE, CONTENTS, END_TABLES, ROOTS, Query
from db.trace import TraceReader
from x86.event import kind_name

#: The queries behind an inventory's tables.
QUERIES: tuple[Query, ...] = (BY_PHASE, CONTENTS, END_TABLES, ROOTS)


@dataclass(frozen=True)
class PhaseCount:
    """A phase of the trace and its events by kind."""

    name: str
    first: int
    last: int
    kinds: dict[str, int]


@dataclass(frozen=True)
class Inventory:
    """Everything ``stat`` shows."""

    recording: dict[str, Any]
    """The row of ``recording``: every column that is there."""
    live: bool
    """Whether the trace was still being recorded."""
    bytes: int
    """Size of the file."""
    events: int
    kinds: dict[str, int]
    vcpus: dict[int, dict[str, int]]
    """Events by kind, of each vCPU."""
    phases: list[PhaseCount]
    spaces: list[Space]
    frames: int
    """Distinct frames whose content was recorded."""
    contents: int
    """Page contents recorded; one frame may have several."""
    content_bytes: int
    end_tables: dict[int, int]
    """Tables that the guest had at the end, by level."""
    losses: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    marks: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    """The kept runs, without their facts."""


def inventory(trace: TraceReader) -> Inventory:
    """Look through a trace."""
    total: Counter[str] = Counter()
    by_vcpu: dict[int, Counter[str]] = {}
    by_phase: dict[int, Counter[str]] = {}
    for mark, kind, vcpu, count, _, _ in BY_PHASE.rows(trace):
        name = kind_name(kind)
        for counter in (total, by_vcpu.setdefault(vcpu, Counter()), by_phase.setdefault(mark, Counter())):
            counter[name] += count
    frames, contents, content_bytes = next(iter(CONTENTS.rows(trace)))
    return Inventory(
        recording=trace.recording,
        live=trace.live,
        bytes=trace.path.stat().st_size,
        events=sum(total.values()),
        kinds=dict(total),
        vcpus={vcpu: dict(by_vcpu[vcpu]) for vcpu in sorted(by_vcpu)},
        phases=[PhaseCount(phase.name, phase.first, phase.last, dict(by_phase.get(phase.mark, {}))) for phase in phases(trace)],
        spaces=History(trace).spaces,
        frames=frames,
        contents=contents,
        content_bytes=content_bytes,
        end_tables=dict(END_TABLES.rows(trace)),
        losses=trace.rows("loss"),
        checks=trace.rows("memory_check"),
        marks=trace.rows("mark"),
        runs=[{name: value for name, value in row.items() if name != "facts"} for row in trace.rows("run")],
    )
