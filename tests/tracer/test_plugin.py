"""The plugin's stream: parsing, gaps, damage; building the plugin."""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.errors import ShadowtraceError
from tests.tracer.metal import arguments
from tracer import plugin, qemu
from tracer.plugin import (
    NO_WORD,
    REC_DATA,
    REC_EFER,
    REC_NOTE,
    REC_PC,
    REC_PDPTES,
    REC_WORDS,
    RECORD,
    WRITE_HAS_PC,
    Batch,
    StreamParser,
)
from tracer.tasks import Named, TaskEvent
from x86.event import Kind, Seen, unpack_words


def stream(*records: tuple[int, int, int, int, int, int]) -> bytes:
    return np.array(list(records), RECORD).tobytes()


def note(sp: int, stack: bytes, text_va: int, strings: bytes) -> list[tuple[int, int, int, int, int, int]]:
    """What follows a program's note: process 7, called sh, in side records of 16 bytes each."""
    data = struct.pack("<iIII16sQQ", 7, len(stack), len(strings), 8, b"sh\xff\0rest", sp, text_va) + stack + strings
    data += bytes(-len(data) % 16)
    return [(REC_DATA, 0, 0, 0, *struct.unpack_from("<QQ", data, at)) for at in range(0, len(data), 16)]


NOTE = note(0x7FFE00, struct.pack("<QQQQ", 2, 0x7FFF00, 0x7FFF03, 0), 0x7FFF00, b"sh\0-c\0".ljust(256, b"\0"))

#: A mode change, a page with three words, a cr3 load with PDPTEs, a store, a touch, a program, a store that nobody made, a space's end: vCPU 0's events 0..5.
WHOLE = stream(
    (Kind.REGS, 0, 0, 0, 0x80000011, 0x20),
    (REC_EFER, 0, 0, 0, 0xD01, 0),
    (Kind.PAGE, 0, 0, 1, 0x2000, 2),
    (REC_WORDS, 0, 3, 7, 0x67, 1 << 63),
    (REC_WORDS, 0, 511, NO_WORD, 0x99, 0),
    (Kind.CR3, 0, 1, 2, 0x1000, 0),
    (REC_PDPTES, 0, 0, 0, 1, 2),
    (REC_PDPTES, 0, 0, 0, 3, 4),
    (Kind.WRITE, 0, 8 | WRITE_HAS_PC, 3, 0x2008, (1 << 64) - 1),
    (REC_PC, 0, 0, 0, 0xFFFFFFFF81000040, 0),
    (Kind.ACCESS, 0, 3, 4, 0xFFFFFFFF81000000, 0),
    (REC_NOTE, 0, TaskEvent.EXEC, 0, 0x5000, len(NOTE)),
    *NOTE,
    (Kind.WRITE, 0, 8 | Seen.FOREIGN << 4, 5, 0x2010, 7),
    (REC_NOTE, 0, TaskEvent.END, 0, 0x5000, 0),
)


def joined(batches: list[Batch]) -> Batch:
    columns = tuple([item for batch in batches for item in batch.columns[number]] for number in range(6))
    names = ("registers", "pdptes", "contents", "origins", "gaps", "names")
    return Batch(columns, *([item for batch in batches for item in getattr(batch, name)] for name in names))


def test_records_become_rows() -> None:
    batch = StreamParser().feed(WHOLE)
    assert list(batch.rows()) == [
        (1, Kind.REGS, 0, 0, 0, 0),
        (2, Kind.PAGE, 0, 0, 0x2000, 0),
        (3, Kind.CR3, 0, 1, 0x1000, 0),
        (4, Kind.WRITE, 0, 8, 0x2008, -1),
        (5, Kind.ACCESS, 0, 3, -0x7F000000, 0),
        (6, Kind.WRITE, 0, 0x38, 0x2010, 7),
    ]
    assert batch.registers == [(1, 0x80000011, 0x20, 0xD01)]
    assert batch.pdptes == [(3, 1, 2, 3, 4)]
    assert [(seq, unpack_words(words)) for seq, words in batch.contents] == [(2, [(3, 0x67), (7, 1 << 63), (511, 0x99)])]
    assert batch.origins == [(4, -0x7EFFFFC0)]
    assert batch.gaps == []
    assert batch.names == [(5, Named(0x5000, "exec", 7, "sh\\xff", ["sh", "-c"])), (6, Named(0x5000, "end"))]


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=600), st.integers(0, (1 << 64) - 1), st.binary(max_size=2100))
def test_whatever_a_guest_has_on_its_stack_a_note_is_read(sp: int, stack: bytes, text_va: int, strings: bytes) -> None:
    data = note(sp, stack, text_va, strings)
    batch = StreamParser().feed(stream((REC_NOTE, 1, TaskEvent.EXEC, 0, 0x1000, len(data)), *data))
    ((seq, named),) = batch.names
    assert (seq, named.root, named.pid, list(batch.rows())) == (0, 0x1000, 7, [])


@given(st.lists(st.integers(0, len(WHOLE)), max_size=6))
def test_wherever_the_stream_is_cut_the_same_comes_out(cuts: list[int]) -> None:
    parser = StreamParser()
    edges = [0, *sorted(cuts), len(WHOLE)]
    batch = joined([parser.feed(WHOLE[a:b]) for a, b in pairwise(edges)])
    assert batch == StreamParser().feed(WHOLE)
    assert parser.left_over == 0


def test_a_gap_is_counted_for_its_vcpu() -> None:
    batch = StreamParser().feed(
        stream((Kind.INVLPG, 0, 0, 0, 0, 0), (Kind.INVLPG, 1, 0, 2, 0, 0), (Kind.INVLPG, 0, 0, 1, 0, 0), (Kind.INVLPG, 0, 0, 9, 0, 0))
    )
    assert sorted(batch.gaps) == [(0, 3, 2, 7), (1, 1, 0, 2)]


def test_a_gap_where_numbers_begin_again() -> None:
    """The stream has their lower 32 bits."""
    parser = StreamParser()
    first = parser.feed(stream((Kind.INVLPG, 0, 0, (1 << 32) - 2, 0, 0), (Kind.INVLPG, 0, 0, 3, 0, 0)))
    assert first.gaps == [(0, 0, 0, (1 << 32) - 2), (0, 1, (1 << 32) - 1, 4)]
    assert parser.feed(stream((Kind.INVLPG, 0, 0, 5, 0, 0))).gaps == [(0, 2, (1 << 32) + 4, 1)]
    assert parser.gap_at_end([(1 << 32) + 6, 0]) == []
    assert parser.gap_at_end([(1 << 32) + 9, 5]) == [(0, 3, (1 << 32) + 6, 3), (1, 3, 0, 5)]


def test_an_event_that_never_became_whole_is_left_over() -> None:
    parser = StreamParser()
    assert len(list(parser.feed(WHOLE[: 4 * 24]).rows())) == 1
    assert parser.left_over == 2 * 24


def test_a_record_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ShadowtraceError, match="no sense"):
        StreamParser().feed(stream((15, 0, 0, 0, 0, 0), (Kind.INVLPG, 0, 0, 0, 0, 0)))


def test_a_store_without_the_origin_it_promises_is_refused() -> None:
    with pytest.raises(ShadowtraceError, match="no sense"):
        StreamParser().feed(stream((Kind.WRITE, 0, 8 | WRITE_HAS_PC, 0, 0x2000, 1), (Kind.INVLPG, 0, 0, 1, 0, 0)))


@given(st.binary(max_size=24 * 12))
@settings(max_examples=300)
def test_no_bytes_make_it_do_anything_but_refuse(data: bytes) -> None:
    with contextlib.suppress(ShadowtraceError):
        StreamParser().feed(data)


def test_random_damage_is_refused_or_read() -> None:
    chance = random.Random(1)
    for _ in range(500):
        damaged = bytearray(WHOLE)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            StreamParser().feed(bytes(damaged))
        except ShadowtraceError:
            continue


def test_the_plugin_is_built_once(tmp_path: Path) -> None:
    first = plugin.build(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert plugin.build(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


@pytest.mark.boot
def test_a_qemu_that_does_not_export_its_registers_is_refused(tmp_path: Path) -> None:
    """QEMU itself, with the name of the function taken out of its symbols."""
    program = tmp_path / "qemu-system-x86_64"
    code = Path(qemu.find_qemu(None)).read_bytes()
    name = b"\0x86_cpu_gdb_read_register\0"
    assert name in code
    program.write_bytes(code.replace(name, name.replace(b"read", b"gone")))
    program.chmod(0o755)
    command = [program, *arguments("halt", tmp_path), "-plugin", str(plugin.build())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "shadowtrace plugin: this QEMU does not export" in done.stderr
    assert "--engine gdb" in done.stderr


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ShadowtraceError, match="no C compiler") as error:
        plugin.build(tmp_path)
    assert "apt-get install gcc" in error.value.hint
