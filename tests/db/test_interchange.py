"""The interchange format, in and out."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.errors import UsageError
from db.exchange.importing import import_jsonl
from db.exchange.jsonl import parse, read_jsonl, write_jsonl
from db.trace import TraceReader
from x86.event import ACCESS_FAULT, ACCESS_WRITE, Event, Kind, pack_words

U64 = st.integers(0, (1 << 64) - 1)
GPA = st.integers(0, (1 << 51) - 1)
EVENTS = st.one_of(
    st.builds(
        lambda a, b, c, v: Event(Kind.REGS, v, extra=(a, b, c)), st.none() | U64, st.none() | U64, st.none() | U64, st.integers(0, 63)
    ),
    st.builds(lambda a: Event(Kind.CR3, addr=a), U64),
    st.builds(lambda a, p: Event(Kind.CR3, addr=a, extra=p), U64, st.tuples(U64, U64, U64, U64)),
    st.builds(lambda g, s, v: Event(Kind.WRITE, flags=s, addr=g, value=v), GPA, st.integers(1, 8), U64),
    st.builds(
        lambda g, w: Event(Kind.PAGE, addr=g & ~4095, extra=pack_words(sorted(w.items()))),
        GPA,
        st.dictionaries(st.integers(0, 511), st.integers(1, (1 << 64) - 1), max_size=5),
    ),
    st.builds(lambda a, f: Event(Kind.ACCESS, flags=f, addr=a), U64, st.integers(0, 7)),
    st.builds(lambda a: Event(Kind.INVLPG, addr=a), U64),
)


@given(st.lists(EVENTS, max_size=8))
def test_what_is_written_reads_back_the_same(events: list[Event]) -> None:
    out = io.StringIO()
    write_jsonl(events, out)
    assert list(parse(io.StringIO(out.getvalue()), "t")) == events


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"ev":"cr3","value":"0x1000","colour":1}', "no key 'colour'"),
        ('{"ev":"jump"}', "no event 'jump'"),
        ('{"ev":"cr3"}', "'value' is missing"),
        ('{"ev":"write","gpa":0,"size":9,"value":0}', "size is not between"),
        ('{"ev":"write","gpa":0,"size":0,"value":0}', "size is 1 to 8"),
        ('{"ev":"cr3","value":-1}', "value is not between"),
        ('{"ev":"cr3","value":"0x1ffffffffffffffff"}', "value is not between"),
        ('{"ev":"cr3","value":1.5}', "value is no number"),
        ('{"ev":"cr3","value":0,"pdptes":[1,2]}', "pdptes are four"),
        ('{"ev":"page","gpa":0,"words":{"512":1}}', "word index is not between"),
        ('{"ev":"page","gpa":0,"words":[1]}', "another type"),
        ('{"ev":"page","gpa":0,"size":2,"words":{}}', "size of 4 or 8"),
        ('{"ev":"page","gpa":0,"size":true,"words":{}}', "size of 4 or 8"),
        ('{"ev":"page","gpa":0,"size":4,"words":{"0":"0x100000000"}}', "word is not between"),
        ('{"ev":"page","gpa":0,"size":4,"words":{"1024":1}}', "word index is not between"),
        ('{"ev":"access","va":0,"fault":2}', "fault is not between"),
        ('{"ev":"invlpg","va":0,"vcpu":64}', "vcpu is not between"),
        ("[1]", "one JSON object"),
        ("{", "no JSON from character"),
        ("[" * 5000, ""),
    ],
)
def test_a_wrong_line_is_named(line: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        list(parse(io.StringIO('{"ev":"invlpg","va":0}\n' + line + "\n"), "file"))
    assert "file, line 2" in str(error.value)
    assert reason in str(error.value)


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_no_text_makes_it_do_anything_but_refuse(text: str) -> None:
    with contextlib.suppress(UsageError):
        list(parse(io.StringIO(text), "t"))


def test_gzipped_files_are_read_and_broken_ones_refused(tmp_path: Path) -> None:
    good = tmp_path / "e.jsonl.gz"
    good.write_bytes(gzip.compress(b'{"ev":"invlpg","va":"0x1000"}\n'))
    assert list(read_jsonl(good)) == [Event(Kind.INVLPG, addr=0x1000)]
    bad = tmp_path / "b.jsonl.gz"
    bad.write_bytes(good.read_bytes()[:-12])
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_jsonl(bad))


def test_a_bad_line_leaves_the_old_trace_as_it_was(tmp_path: Path) -> None:
    events = tmp_path / "e.jsonl"
    events.write_text('{"ev":"invlpg","va":1}\n')
    target = tmp_path / "t.db"
    assert import_jsonl(events, target, False, "test") == 1
    before = target.read_bytes()
    events.write_text('{"ev":"invlpg","va":1}\nnonsense\n')
    with pytest.raises(UsageError):
        import_jsonl(events, target, True, "test")
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.jsonl", "t.db"]


def test_every_reference_case_comes_out_of_a_trace_as_it_went_in(shared: Path, tmp_path: Path) -> None:
    for case in ("12_modes", "17_fuzz_all"):
        source = shared / "cases" / f"{case}.jsonl"
        import_jsonl(source, tmp_path / f"{case}.db", False, "test")
        with TraceReader(tmp_path / f"{case}.db") as trace:
            out = io.StringIO()
            write_jsonl(trace.events(), out)
        once = [json.loads(line) for line in out.getvalue().splitlines()]
        assert len(once) == len(source.read_text().splitlines())
        assert list(parse(io.StringIO(out.getvalue()), "again")) == list(read_jsonl(source))


def test_words_of_four_bytes_and_faults_are_taken_in() -> None:
    """As the lists of the bare-metal reference guests have them."""
    lines = (
        '{"ev":"page","gpa":"0x1000","size":4,"words":{"0":"0x2067","1":"0x3067","1023":"0x4067"}}\n'
        '{"ev":"access","va":"0x5000","write":1,"fault":1}\n'
    )
    page, access = parse(io.StringIO(lines), "t")
    assert page.extra == pack_words([(0, 0x3067_0000_2067), (511, 0x4067 << 32)])
    assert access.flags == ACCESS_WRITE | ACCESS_FAULT
