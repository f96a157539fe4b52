"""Comparing captures: what counts as the same, and that nothing that differs goes unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from db.check.capture_diff import Captured, Compared, captured, compare, logged
from db.errors import UsageError
from db.trace import TraceReader
from db.writer import TraceWriter
from tests.conftest import Cli
from x86.event import ACCESS_FAULT, ACCESS_WRITE, Event, Kind, Seen, pack_words

PAGING = (0x80000011, 0x20, 0x500)
EVENTS = [
    Event(Kind.REGS, extra=(0x11, 0, 0)),
    Event(Kind.CR3, addr=0x1000),
    Event(Kind.PAGE, addr=0x1000, extra=pack_words([(0, 0x2063)])),
    Event(Kind.REGS, extra=PAGING),
    Event(Kind.WRITE, flags=8, addr=0x1008, value=0x1_0000_3063),
    Event(Kind.WRITE, flags=4, addr=0x1010, value=0x4063),
    Event(Kind.CR3, addr=0x5000),
    Event(Kind.ACCESS, flags=ACCESS_WRITE | ACCESS_FAULT, addr=0x7FFF1000),
    Event(Kind.ACCESS, flags=ACCESS_WRITE, addr=0x7FFF2000),
    Event(Kind.WRITE, flags=8, addr=0x1008, value=0),
    Event(Kind.CR3, addr=0x1000),
]
LOG = """\
CR3 update: CR3=0000000000005000
     7: v=0e e=0002 i=0 cpl=0 IP=0010:ffffffff81000000 pc=ffffffff81000000 SP=0018:ffff CR2=000000007fff1000
CR3 update: CR3=0000000000001000
"""


def trace(path: Path, events: Sequence[Event], **columns: object) -> Path:
    described = {
        "source": "record",
        "guest": "made",
        "title": "made",
        "vcpus": 1,
        "ram_bytes": 1 << 24,
        "version": "test",
        "engine": "plugin",
        "touch": "first",
    }
    with TraceWriter(path) as writer:
        writer.describe(**described | columns)
        writer.append(events)
        writer.seal("until", "made")
    return path


def said(path: Path) -> Captured:
    with TraceReader(path) as opened:
        return captured(opened)


def compared(folder: Path, ours: Sequence[Event], theirs: Sequence[Event], common: bool = False) -> dict[str, Compared]:
    pair = said(trace(folder / "a.db", ours)), said(trace(folder / "b.db", theirs))
    return {found.name: found for found in compare(*pair, common)}


def different(lists: dict[str, Compared]) -> list[str]:
    return [name for name, found in lists.items() if found.difference is not None]


def test_a_capture_equals_itself(tmp_path: Path) -> None:
    lists = compared(tmp_path, EVENTS, EVENTS)
    assert different(lists) == []
    assert [(found.name, found.ours) for found in lists.values()] == [("cr3 loads", 3), ("stores to tables", 5), ("page faults", 1)]


@pytest.mark.parametrize(
    ("dropped", "name"), [(1, "cr3 loads"), (5, "stores to tables"), (6, "cr3 loads"), (7, "page faults"), (9, "stores to tables")]
)
def test_whatever_is_dropped_is_noticed(dropped: int, name: str, tmp_path: Path) -> None:
    assert different(compared(tmp_path, EVENTS, EVENTS[:dropped] + EVENTS[dropped + 1 :])) == [name]


def test_order_and_values_matter(tmp_path: Path) -> None:
    swapped = [*EVENTS[:4], EVENTS[5], EVENTS[4], *EVENTS[6:]]
    lists = compared(tmp_path, EVENTS, swapped)
    assert different(lists) == ["stores to tables"]
    difference = lists["stores to tables"].difference
    assert difference is not None
    assert (difference.at, difference.ours[0], difference.theirs[0]) == (0, (0, (0x1008, 0x3003)), (0, (0x1010, 0x4003)))


def test_a_fault_s_kind_matters(tmp_path: Path) -> None:
    other = [event._replace(flags=ACCESS_FAULT) if event.flags & ACCESS_FAULT and event.kind == Kind.ACCESS else event for event in EVENTS]
    assert different(compared(tmp_path, EVENTS, other)) == ["page faults"]


def test_what_two_ways_of_seeing_a_store_have_in_common_is_compared(tmp_path: Path) -> None:
    """Halves for a whole, accessed and dirty bits, a store of the same value, and how it was seen, are no difference."""
    halves = [
        *EVENTS[:4],
        Event(Kind.WRITE, flags=4 | Seen.NET << 4, addr=0x1008, value=0x3003),
        Event(Kind.WRITE, flags=4, addr=0x100C, value=1),
        Event(Kind.WRITE, flags=4, addr=0x100C, value=1),
        *EVENTS[5:],
    ]
    assert different(compared(tmp_path, EVENTS, halves)) == []
    with TraceReader(tmp_path / "b.db") as opened:
        told = captured(opened)
    assert (told.store_events, told.unchanging, told.seen) == (5, 1, (("exact", 4), ("net", 1)))


def test_the_shorter_one_may_be_a_beginning(tmp_path: Path) -> None:
    lists = compared(tmp_path, EVENTS, EVENTS[:-2])
    assert different(lists) == ["cr3 loads", "stores to tables"]
    assert lists["cr3 loads"].difference is not None
    assert lists["cr3 loads"].difference.at == 2
    (tmp_path / "more").mkdir()
    assert different(compared(tmp_path / "more", EVENTS, EVENTS[:-2], common=True)) == []


def test_a_capture_without_faults_does_not_claim_there_were_none(tmp_path: Path) -> None:
    quiet = said(trace(tmp_path / "quiet.db", EVENTS[:7], touch="none"))
    (faults,) = [found for found in compare(said(trace(tmp_path / "a.db", EVENTS[:7])), quiet) if found.name == "page faults"]
    assert (faults.difference, faults.left_out) == (None, "quiet.db does not say")
    by_gdb = said(trace(tmp_path / "gdb.db", EVENTS, touch="none", engine="gdb"))
    assert by_gdb.faults == [(0x7FFF1000, 1, 0, 0)]


def test_qemu_s_log_has_loads_with_paging_on_and_faults(tmp_path: Path) -> None:
    (tmp_path / "qemu.log").write_text(LOG)
    told = logged(tmp_path / "qemu.log")
    ours = said(trace(tmp_path / "a.db", EVENTS))
    lists = {found.name: found for found in compare(ours, told)}
    assert different(lists) == []
    assert (lists["cr3 loads"].ours, lists["page faults"].ours) == (2, 1)
    assert "does not say" in lists["stores to tables"].left_out
    assert different({found.name: found for found in compare(replace(ours, loads_with_paging=[(0x5000,)]), told)}) == ["cr3 loads"]


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("nothing\n")
    for name in ("empty", "missing"):
        with pytest.raises(UsageError):
            logged(tmp_path / name)


def test_the_verb_exits_with_3_where_captures_differ(tmp_path: Path, cli: Cli) -> None:
    first, second = trace(tmp_path / "a.db", EVENTS), trace(tmp_path / "b.db", EVENTS[:4] + EVENTS[5:])
    same = cli("diff", "--capture", first, first)
    assert (same.returncode, "stores to tables: equal, 5 each" in same.stdout) == (0, True)
    done = cli("diff", "--capture", first, second)
    assert done.returncode == 3
    assert "stores to tables: DIFFERENT at number 1; 5 and 1" in done.stdout
    assert "> " in done.stdout
    assert cli("diff", first, second, "--common").returncode == 2
    assert cli("diff", "--capture", first).returncode == 2
