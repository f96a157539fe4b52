"""Which address space a root frame is, and since when: on traces worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from analyzer.trace.reading import Passed, story
from analyzer.trace.residency import History
from db.columns import batches
from db.trace import TraceReader
from db.writer import TraceWriter
from tests.conftest import Boot
from x86.event import CR3_HAS_PDPTES, Event, Kind
from x86.paging import PAGE_BYTES


def load(gfn: int, vcpu: int = 0) -> Event:
    return Event(Kind.CR3, vcpu=vcpu, addr=gfn << 12)


def content(gfn: int) -> Event:
    return Event(Kind.PAGE, addr=gfn << 12, extra=b"")


def written(path: Path, events: list[Event], *names: tuple[int, int, str | None], marks: Sequence[int] = ()) -> Path:
    """A trace of these events; each name is the event after which it was learnt, the root (its frame, or its address) and the program, or
    ``None`` where the address space ended."""
    with TraceWriter(path) as writer:
        writer.describe(source="record", guest="g", title="t", vcpus=2, ram_bytes=1 << 24, version="test", touch="none", linger=64)
        writer.append(events)
        for number, (seq, gfn, comm) in enumerate(names, 1):
            root = gfn if gfn >= PAGE_BYTES else gfn * PAGE_BYTES
            writer.add("address_space", id=number, seq=seq, root_gfn=root // PAGE_BYTES, root=root, pid=number, comm=comm)
        for number, seq in enumerate(marks, 1):
            writer.add("mark", id=number, seq=seq, name=f"m{number}", vcpu=0)
        writer.seal("poweroff", "the guest powered off")
    return path


def passed(trace: TraceReader) -> Passed:
    gathered = Passed(trace)
    for columns in batches(trace):
        gathered.take(columns)
    return gathered


def spaces(path: Path) -> list[tuple[int, int, int, str | None, int, int]]:
    with TraceReader(path) as trace:
        assert History(trace).spaces == History(trace, passed(trace).roots).spaces
        return [(s.root >> 12, s.generation, s.first, s.comm, s.loads, s.resident) for s in History(trace).spaces]


@pytest.mark.parametrize("marks", [[], [0], [2, 2, 5], [1, 3, 4, 6, 7]])
def test_a_story_gathered_from_columns_is_the_one_that_the_file_tells(marks: list[int], tmp_path: Path) -> None:
    access, pointers = Event(Kind.ACCESS, addr=0x1000), (1, 0x2001, 0, 0)
    events = [access, content(1), load(1), access, Event(Kind.CR3, flags=CR3_HAS_PDPTES, addr=0x1020, extra=pointers), access, access]
    path = written(tmp_path / "t.db", events, (4, 1, "sh"), marks=marks)
    with TraceReader(path) as once, TraceReader(path) as again:
        told = story(once, passed(once))
        assert told == story(again)
        assert len(told.roots) == 2


@pytest.mark.boot
def test_a_boot_s_story_gathered_from_columns_is_the_one_that_the_file_tells(boot: Boot) -> None:
    with TraceReader(boot.trace) as once, TraceReader(boot.trace) as again:
        told = story(once, passed(once))
        assert told == story(again)
        assert len(told.roots) > 100
        assert sum(mark.accesses for mark in told.marks) > 100_000


def test_a_frame_recorded_anew_while_it_is_not_loaded_is_another_space(tmp_path: Path) -> None:
    """Content of frame 1 at event 3, while it is loaded, is none; at event 5, while 2 is, it begins one, from that event on."""
    path = written(tmp_path / "t.db", [content(1), load(1), content(1), load(2), content(1), load(1)])
    assert spaces(path) == [(1, 0, 1, None, 1, 2), (2, 0, 4, None, 1, 2), (1, 1, 5, None, 1, 1)]


def test_a_root_that_the_kernel_freed_is_another_space_when_it_is_loaded_again(tmp_path: Path) -> None:
    """The frame was written to as a table all the while, so that no content shows that it is another one."""
    path = written(tmp_path / "t.db", [load(1), load(2), load(1), load(2), load(1)], (1, 1, "sh"), (3, 1, None), (4, 2, None))
    assert spaces(path) == [(1, 0, 1, "sh", 2, 2), (2, 0, 2, None, 2, 2), (1, 1, 5, None, 1, 1)]


def test_a_name_learnt_at_a_fork_is_that_of_the_next_load(tmp_path: Path) -> None:
    """The frame was another's before, and its content is recorded anew when it is loaded; an exec's name follows in one of its own."""
    events = [load(1), load(2), content(1), load(1), load(2)]
    path = written(tmp_path / "t.db", events, (1, 1, "sh"), (2, 1, None), (2, 1, "child"), (5, 3, None))
    assert spaces(path) == [(1, 0, 1, "sh", 1, 1), (2, 0, 2, None, 2, 3), (1, 1, 3, "child", 1, 1)]


def test_the_first_name_is_the_whole_generation_s(tmp_path: Path) -> None:
    path = written(tmp_path / "t.db", [load(1), load(2), load(1), load(2)], (3, 1, "sh"))
    assert spaces(path) == [(1, 0, 1, "sh", 2, 2), (2, 0, 2, None, 2, 2)]


def test_a_second_name_holds_from_the_load_it_was_learnt_in(tmp_path: Path) -> None:
    """ls is learnt after event 5, when frame 1 has been loaded since event 3, twice in a row."""
    path = written(tmp_path / "t.db", [load(1), load(2), load(1), load(1), load(1), load(2)], (1, 1, "sh"), (5, 1, "ls"))
    assert spaces(path) == [(1, 0, 1, "sh", 1, 1), (2, 0, 2, None, 2, 2), (1, 1, 3, "ls", 3, 3)]
    with TraceReader(path) as trace:
        history = History(trace)
        assert [(stay.space.comm, stay.first, stay.end) for stay in history.stays] == [
            ("sh", 1, 2),
            (None, 2, 3),
            ("ls", 3, 6),
            (None, 6, 7),
        ]
        assert [space and space.comm for space in (history.at(seq, 0x1000) for seq in (0, 2, 3))] == [None, "sh", "ls"]


def test_a_second_name_of_a_frame_that_nothing_has_loaded_begins_after_it(tmp_path: Path) -> None:
    path = written(tmp_path / "t.db", [load(1), load(2), load(2), load(1)], (1, 1, "sh"), (3, 1, "ls"))
    assert spaces(path) == [(1, 0, 1, "sh", 1, 1), (2, 0, 2, None, 2, 2), (1, 1, 4, "ls", 1, 1)]


def test_a_name_that_comes_just_before_its_load_is_of_the_space_that_begins(tmp_path: Path) -> None:
    path = written(tmp_path / "t.db", [content(1), load(1), load(2), content(1), load(1)], (1, 1, "sh"), (4, 1, "ls"))
    assert spaces(path) == [(1, 0, 1, "sh", 1, 1), (2, 0, 3, None, 1, 2), (1, 1, 4, "ls", 1, 1)]


def test_reports_know_the_same_spaces(tmp_path: Path) -> None:
    """A name for what is never loaded has a generation too, so that numbers agree."""
    path = written(tmp_path / "t.db", [content(1), load(1), load(2), content(1), load(1)], (2, 1, "init"), (3, 3, "lost"), (5, 1, "sh"))
    with TraceReader(path) as trace:
        assert [(root.address >> 12, root.first, root.name) for root in story(trace).roots] == [
            (1, 1, "init"),
            (1, 4, "sh"),
            (2, 3, None),
            (3, 4, "lost"),
        ]


def pae(root: int, *pointers: int) -> Event:
    return Event(Kind.CR3, addr=root, flags=CR3_HAS_PDPTES, extra=(*pointers, *(0,) * (4 - len(pointers))))


def test_pae_pointers_in_one_frame_are_roots_of_their_own(tmp_path: Path) -> None:
    """Loads by turns of 0x1000 and of 0x1020, with bits in cr3 that are no address: two spaces, each with its name."""
    events = [pae(0x1000, 0x2001), pae(0x1020, 0x3001), pae(0x1008, 0x2001), pae(0x1038, 0x3001)]
    path = written(tmp_path / "t.db", events, (1, 0x1000, "init"), (2, 0x1020, "sh"))
    with TraceReader(path) as trace:
        history = History(trace)
        assert [(s.root, s.generation, s.comm, s.loads) for s in history.spaces] == [(0x1000, 0, "init", 2), (0x1020, 0, "sh", 2)]
        assert history.at(4, 0x1020) is history.spaces[1]


def test_pae_pointers_that_are_others_when_loaded_again_begin_another_space(tmp_path: Path) -> None:
    """At event 3 a pointer is there that was absent: the same space. At 5 one is another, but it is loaded: the same. At 7 it is not."""
    one, more, other, next_one = (0x2001,), (0x2001, 0x4001), (0x5001, 0x4001), (0x6001, 0x4001)
    events = [pae(0x1000, *one), pae(0x1020, 0x3001), pae(0x1000, *more), pae(0x1000, *more), pae(0x1000, *other)]
    path = written(tmp_path / "t.db", [*events, pae(0x1020, 0x3001), pae(0x1000, *next_one)], (1, 0x1000, "sh"))
    with TraceReader(path) as trace:
        found = [(s.root, s.generation, s.first, s.comm, s.loads) for s in History(trace).spaces]
    assert found == [(0x1000, 0, 1, "sh", 4), (0x1020, 0, 2, None, 2), (0x1000, 1, 7, None, 1)]
