"""The digest tells recordings apart by their events, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from db.digest import digest
from db.trace import TraceReader
from db.writer import TraceWriter
from x86.event import Event, Kind, pack_words

EVENTS = [
    Event(Kind.REGS, extra=(0x80000011, None, 0)),
    Event(Kind.PAGE, addr=0x1000, extra=pack_words([(1, 2)])),
    Event(Kind.CR3, addr=0x1000, flags=1, extra=(1, 2, 3, 4)),
    Event(Kind.WRITE, flags=8, addr=0x1008, value=1 << 63),
]

OTHERS = {
    "order": [EVENTS[1], EVENTS[0], *EVENTS[2:]],
    "a register that is zero, not kept": [Event(Kind.REGS, extra=(0x80000011, 0, 0)), *EVENTS[1:]],
    "a word": [EVENTS[0], Event(Kind.PAGE, addr=0x1000, extra=pack_words([(1, 3)])), *EVENTS[2:]],
    "a pdpte": [*EVENTS[:2], Event(Kind.CR3, addr=0x1000, flags=1, extra=(1, 2, 3, 5)), EVENTS[3]],
    "a vCPU": [*EVENTS[:3], EVENTS[3]._replace(vcpu=1)],
    "how a store was seen": [*EVENTS[:3], EVENTS[3]._replace(flags=8 | 1 << 4)],
    "one less": EVENTS[:3],
}


def digest_of(path: Path, events: list[Event], title: str = "t") -> str:
    with TraceWriter(path, force=True) as writer:
        writer.describe(source="import", guest=title, title=title, vcpus=2, version="test")
        writer.append(events)
        writer.seal("import", "done")
    with TraceReader(path) as trace:
        return digest(trace)


def test_equal_events_have_an_equal_digest(tmp_path: Path) -> None:
    first = digest_of(tmp_path / "a.db", EVENTS)
    assert digest_of(tmp_path / "b.db", EVENTS, "another name") == first
    assert len(first) == 64


@pytest.mark.parametrize("case", OTHERS)
def test_whatever_differs_in_an_event_shows(case: str, tmp_path: Path) -> None:
    assert digest_of(tmp_path / "a.db", OTHERS[case]) != digest_of(tmp_path / "b.db", EVENTS)
