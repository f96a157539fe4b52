"""The trace file: what goes in comes out, and what is no trace is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.errors import TraceError, UsageError
from db.trace import TraceReader, store_run
from db.writer import TraceWriter
from x86.event import Event, Kind, pack_words, signed, unpack_words, unsigned

NUMBERS = st.integers(0, (1 << 64) - 1)


def write(path: Path, events: list[Event], seal: bool = True) -> None:
    with TraceWriter(path) as writer:
        writer.describe(source="import", guest="t", title="t", vcpus=1, version="test")
        writer.append(events)
        if seal:
            writer.seal("import", "done")


@given(NUMBERS)
def test_a_number_with_bit_63_survives(number: int) -> None:
    assert unsigned(signed(number)) == number
    assert -(1 << 63) <= signed(number) < 1 << 63


@given(st.dictionaries(st.integers(0, 511), st.integers(1, (1 << 64) - 1)))
def test_content_survives_packing(words: dict[int, int]) -> None:
    assert dict(unpack_words(pack_words(sorted(words.items())))) == words


def test_damaged_content_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number"):
        unpack_words(b"123")
    with pytest.raises(ValueError, match="past its end"):
        unpack_words(b"\x00\x02" + bytes(8))


def test_events_come_back_as_they_went_in(tmp_path: Path) -> None:
    top = (1 << 64) - 1
    events = [
        Event(Kind.REGS, extra=(0x80000011, None, 0xD01)),
        Event(Kind.CR3, addr=0x1000, flags=1, extra=(1, top, 3, 0)),
        Event(Kind.CR3, addr=0x2000),
        Event(Kind.WRITE, flags=8, addr=0x1008, value=1 << 63 | 0x67),
        Event(Kind.PAGE, addr=0x3000, extra=pack_words([(0, 1), (511, top)])),
        Event(Kind.ACCESS, flags=5, addr=0xFFFFFFFF81000000),
        Event(Kind.INVLPG, addr=0xFFFF800000000000),
    ]
    write(tmp_path / "t.db", events)
    with TraceReader(tmp_path / "t.db") as trace:
        assert list(trace.events()) == events
        assert [event.kind for event in trace.events((Kind.CR3,))] == [Kind.CR3, Kind.CR3]
        assert trace.count() == 7
        assert (trace.recording["ended"], trace.recording["events"], trace.recording["lost"]) == ("import", 7, 0)


def test_the_file_says_what_it_is_and_seals_to_one_file(tmp_path: Path) -> None:
    write(tmp_path / "t.db", [Event(Kind.WRITE, flags=8, addr=0x1008, value=1 << 63 | 0x67)])
    assert [path.name for path in tmp_path.iterdir()] == ["t.db"]
    connection = sqlite3.connect(tmp_path / "t.db")
    assert connection.execute("PRAGMA application_id").fetchone() == (0x53685472,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert connection.execute("SELECT gpa, value, seen FROM v_pt_write").fetchall() == [("0x1008", "0x8000000000000067", "exact")]
    strict = {name: flag for _, name, kind, _, _, flag in connection.execute("PRAGMA table_list") if kind == "table" and name[0] != "s"}
    assert set(strict.values()) == {1}
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO mark VALUES (1, 'text', 'x', 0)")
    connection.close()


def test_what_was_committed_is_there_though_the_trace_was_never_sealed(tmp_path: Path) -> None:
    write(tmp_path / "t.db", [Event(Kind.CR3, addr=0x1000)], seal=False)
    with TraceReader(tmp_path / "t.db") as trace:
        assert trace.recording["ended"] is None
        assert trace.count() == 1


def test_an_existing_file_is_not_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    write(path, [])
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        TraceWriter(path)
    assert path.read_bytes() == before
    TraceWriter(path, force=True).close()


def test_force_does_not_replace_what_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(UsageError, match="is not a trace"):
        TraceWriter(path, force=True)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + bytes(84), bytes(5000)])
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.db"
    path.write_bytes(content)
    with pytest.raises(TraceError):
        TraceReader(path)


def test_another_program_s_database_and_a_newer_schema_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE event (seq)")
    connection.close()
    with pytest.raises(TraceError, match="not a trace"):
        TraceReader(other)
    newer = tmp_path / "newer.db"
    write(newer, [])
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(TraceError, match="schema 99"):
        TraceReader(newer)


def test_a_truncated_trace_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    write(path, [Event(Kind.ACCESS, addr=number) for number in range(20000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TraceError), TraceReader(path) as trace:
        list(trace.events())


def test_a_run_is_kept_or_not_without_harm(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    write(path, [])
    run = {"model": "m", "parameters": "{}", "version": "v", "core": "c", "events": 0, "seconds": 0.0, "facts": "{}"}
    assert store_run(path, **run)
    assert store_run(path, **run)
    with TraceReader(path) as trace:
        assert [row["id"] for row in trace.rows("run")] == [1, 2]
    assert not store_run(tmp_path / "absent.db", **run)
