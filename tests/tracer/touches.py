"""One and the same boot, recorded as wanted; and what `--touch first` keeps of every access of one vCPU, as docs/accuracy.py works it out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tracer import guest
from tracer.record import record
from tracer.request import Request
from x86.event import Event, Kind

_spec = importlib.util.spec_from_file_location("accuracy", Path(__file__).parents[2] / "docs" / "accuracy.py")
assert _spec is not None
assert _spec.loader is not None
_accuracy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_accuracy)

ENTRIES = 1024


def recorded_first(events: list[Event], start: int = 0) -> list[Event]:
    """The events of a recording of first touches, from one that holds every access from event ``start`` on."""
    return list(_accuracy.first_touches(events, start, ENTRIES, at_stores=True))


def first_touches(events: list[Event]) -> list[Event]:
    """The accesses among them: first touches, faults, stores to tables."""
    return [event for event in recorded_first(events) if event.kind == Kind.ACCESS]


def boot_to_the_first_exit(trace: Path, **request: Any) -> None:
    """Record the boot of cloud-amd64 up to where its first program ends, the same run each time."""
    recipe = guest.load("cloud-amd64")
    outcome = record(Request(trace, recipe, until="__x64_sys_exit_group", deterministic=True, version="test", **request))
    assert (outcome.ended, outcome.lost) == ("until", 0)
