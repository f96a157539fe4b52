"""What is fuzzed: bytes in; out comes nothing, or an error with a sentence. Everything else is a finding."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import zstandard

from db.check.verify import verify
from db.errors import ShadowtraceError
from db.exchange import packing
from db.exchange.importing import import_jsonl
from db.exchange.jsonl import write_jsonl
from db.trace import TraceReader, store_run
from db.writer import TraceWriter
from shadowtrace.__main__ import main
from tracer.plugin import NO_WORD, REC_EFER, REC_PDPTES, REC_WORDS, RECORD, StreamParser
from x86.event import Event, Kind, pack_words

CORPUS = Path(__file__).resolve().parent.parent / "corpus"
_DATA = Path(__file__).resolve().parent.parent / "data"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    # In memory where there is such a place: thousands of small files are written, each to the disk and back.
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="shadowtrace-fuzz-", dir=memory if memory.is_dir() else None)


def _file(name: str, data: bytes) -> Path:
    path = Path(_folder().name) / name
    path.write_bytes(data)
    return path


def reader(data: bytes) -> None:
    """A trace file: read in every way, verified, a run kept in it."""
    path = _file("reader.db", data)
    for check in (True, False):
        with contextlib.suppress(ShadowtraceError), TraceReader(path, check=check) as trace:
            write_jsonl(trace.events(), io.StringIO())
    with contextlib.suppress(ShadowtraceError), TraceReader(path, check=False) as trace:
        for table in ("mark", "address_space", "console", "loss", "memory_check", "end_table", "run"):
            with contextlib.suppress(ShadowtraceError):
                trace.rows(table)
        verify(trace)
    store_run(path, model="m", parameters="{}", version="v", core="c", events=0, seconds=0.0, facts="{}")
    for suffix in ("-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def verbs(data: bytes) -> None:
    """A trace file, by the command line: an exit code of ours, and never what no verb expected."""
    path = _file("verbs.db", data)
    for arguments in (["report"], ["replay", "--format", "json"], ["verify"], ["export"], ["report", "--format", "json"]):
        out = io.StringIO()
        with patch.dict(os.environ, SHADOWTRACE_DEBUG="1"), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([*arguments[:1], str(path), *arguments[1:]])
        assert code in (0, 1, 2), (arguments, code, out.getvalue())
        assert not any(c < " " and c not in "\n\t" for c in out.getvalue()), arguments


def importer(data: bytes) -> None:
    """Events as JSON Lines, plain and in gzip."""
    target = Path(_folder().name) / "imported.db"
    for name in ("events.jsonl", "events.jsonl.gz"):
        with contextlib.suppress(ShadowtraceError):
            import_jsonl(_file(name, data), target, True, "fuzz")
    assert not target.with_name(f".{target.name}.partial").exists()


def stream(data: bytes) -> None:
    """The plugin's stream, in pieces whose length the first byte gives; what has not become an event stays small."""
    parser, piece = StreamParser(), 1 + (data[0] if data else 0)
    with contextlib.suppress(ShadowtraceError):
        for start in range(1, len(data), piece):
            batch = parser.feed(data[start : start + piece])
            assert all(len(row) == 6 for row in batch.rows())
            assert parser.left_over <= (257 + 1) * RECORD.itemsize + piece


def pack(data: bytes) -> None:
    """A packed trace, and its tar file without the compression around it: else hardly any damage gets past zstandard."""
    target = Path(_folder().name) / "unpacked.db"
    for content in (data, zstandard.ZstdCompressor().compress(data)):
        target.unlink(missing_ok=True)
        with contextlib.suppress(ShadowtraceError):
            packing.unpack(_file("fuzz.pack", content), target, False)
        assert not list(target.parent.glob(".unpacked.db*"))


TARGETS: dict[str, Callable[[bytes], None]] = {"reader": reader, "verbs": verbs, "importer": importer, "stream": stream, "pack": pack}


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """Good inputs to begin with."""
    return {"reader": _traces, "verbs": _traces, "importer": _jsonl, "stream": _streams, "pack": _packs}[name]()


def _events() -> list[Event]:
    return [
        Event(Kind.PAGE, addr=0x1000, extra=pack_words([(0, 0x2067), (511, 1 << 63 | 0x3067)])),
        Event(Kind.PAGE, addr=0x2000, extra=pack_words([(3, 0x9067)])),
        Event(Kind.REGS, extra=(None, 0x20, 0x100)),
        Event(Kind.CR3, addr=0x1000, extra=(0x2001, 2, 3, 4)),
        Event(Kind.REGS, extra=(0x80010011, None, None)),
        Event(Kind.ACCESS, flags=1, addr=0x3000),
        Event(Kind.WRITE, flags=8, addr=0x1008, value=0x3067),
        Event(Kind.INVLPG, addr=0xFFFF800000000000),
        Event(Kind.CR3, addr=0x2000),
    ]


def _traces() -> tuple[bytes, ...]:
    path = Path(_folder().name) / "seed.db"
    with TraceWriter(path, force=True) as writer:
        writer.describe(source="record", guest="g", title="t", vcpus=1, ram_bytes=1 << 24, version="test", touch="first", linger=64)
        writer.append(_events() * 8)
        writer.add("mark", id=1, seq=0, name="reset", vcpu=0)
        writer.add("address_space", id=1, seq=3, root_gfn=1, pid=7, comm="init\x1b[31m")
        writer.add("console", id=1, seq=3, line="hello\x1b]0;title\x07")
        writer.add("loss", id=1, vcpu=0, seq=5, count=2, cause="a test")
        writer.add("memory_check", id=1, seq=9, tables=2, entries=3, missing=0, different=0, leaves=1, leaves_different=0, detail="")
        writer.add("end_table", id=1, gfn=1, level=4, entry_bytes=8, words=pack_words([(0, 0x2067)]))
        writer.seal("poweroff", "the guest powered off")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["report", str(path)]) == 0
    recorded = [gzip.decompress(file.read_bytes()) for file in sorted(_DATA.glob("*.gz"))]
    return (path.read_bytes(), *recorded)


def _packs() -> tuple[bytes, ...]:
    path = _file("packed.db", _traces()[0])
    packing.pack(path, path.with_suffix(".pack"), True)
    packed = path.with_suffix(".pack").read_bytes()
    return (packed, zstandard.ZstdDecompressor().stream_reader(packed).read())


def _jsonl() -> tuple[bytes, ...]:
    out = io.StringIO()
    write_jsonl(_events(), out)
    return (out.getvalue().encode(), gzip.compress(out.getvalue().encode(), mtime=0))


def _streams() -> tuple[bytes, ...]:
    records = [
        (Kind.REGS, 0, 0, 0, 0x80000011, 0x20),
        (REC_EFER, 0, 0, 0, 0xD01, 0),
        (Kind.PAGE, 0, 0, 1, 0x2000, 2),
        (REC_WORDS, 0, 3, 7, 0x67, 1 << 63),
        (REC_WORDS, 0, 511, NO_WORD, 0x99, 0),
        (Kind.CR3, 0, 1, 2, 0x1000, 0),
        (REC_PDPTES, 0, 0, 0, 1, 2),
        (REC_PDPTES, 0, 0, 0, 3, 4),
        (Kind.WRITE, 0, 8, 3, 0x2008, (1 << 64) - 1),
        (Kind.ACCESS, 0, 3, 4, 0xFFFFFFFF81000000, 0),
    ]
    whole = np.array(records, RECORD).tobytes()
    return (b"\xff" + whole, b"\x17" + whole * 3)
