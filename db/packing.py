"""A trace packed for keeping: its events by column and kind, in a tar file under zstandard; and back, bit for bit.

``zstd -d`` and ``tar`` open it anywhere. The members, in order:

================  =========================================================================================================
``pack.json``     format (1), number of events, digest
``kind``          one byte for each event
``vcpu``          one byte for each event
``seq``           8 bytes for each event; only where they are not 1, 2, 3, ...
``flags-K``       2 bytes for each event of kind K
``addr-K``        8 bytes for each event of kind K
``value-K``       8 bytes for each event of kind K
``store_origin``  16 bytes for each row of that table
``rest.db``       the trace file without the rows of ``event`` and ``store_origin``
================  =========================================================================================================

Numbers are little-endian, 64-bit ones in two's complement. The digest is SHA-256 over what ``digest`` feeds it.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from db.columns import Ints, event_rows
from db.errors import UsageError
from db.event import Kind
from db.opening import connect
from db.storage import refuse_existing, storage_errors
from db.trace import TraceReader

FORMAT = 1

#: Beyond it zstandard takes minutes for a few percent.
LEVEL = 12

_BATCH = 1 << 17

#: Tables whose rows belong to events, besides ``event`` itself.
_SIDES = ("mode_registers", "pdptes", "content", "store_origin")


@dataclass(frozen=True)
class Packed:
    """What was written: how many events in how many bytes."""

    events: int
    bytes: int


def digest(trace: TraceReader) -> str:
    """SHA-256 over every event and the rows that belong to some: the columns of ``event``, one after the other, then the side tables."""
    columns = [hashlib.sha256() for _ in range(6)]
    for rows in event_rows(trace):
        for column, numbers in zip(columns, rows, strict=True):
            column.update(np.ascontiguousarray(numbers, "<i8").tobytes())
    whole = hashlib.sha256(b"".join(column.digest() for column in columns))
    for table in _SIDES:
        for row in trace.stream(f"SELECT * FROM {table} ORDER BY seq"):  # noqa: S608 - a constant
            whole.update(repr(row).encode())
    return whole.hexdigest()


def pack(source: Path, target: Path, force: bool) -> Packed:
    """Pack a sealed trace into a file that takes its name when it is whole."""
    refuse_existing_pack(target, force)
    partial = target.with_name(f".{target.name}.partial")
    rest = target.with_name(f".{target.name}.rest")
    try:
        with TraceReader(source) as trace, storage_errors(target):
            if trace.live or trace.recording["ended"] is None:
                raise UsageError(f"{source} is not sealed: it cannot be packed", "wait until it is recorded")
            parts = list(event_rows(trace))
            rows: Ints = np.concatenate(parts, axis=1) if parts else np.zeros((6, 0), np.int64)
            del parts
            origins = np.array(list(trace.stream("SELECT seq, pc FROM store_origin ORDER BY seq")), "<i8")
            about = {"format": FORMAT, "events": rows.shape[1], "digest": digest(trace)}
            _without_events(trace.file, rest)
            with (
                partial.open("wb") as out,
                zstandard.ZstdCompressor(level=LEVEL, threads=-1).stream_writer(out) as compressed,
                tarfile.open(fileobj=compressed, mode="w|") as tar,
            ):
                for name, content in _members(about, rows, origins):
                    _add(tar, name, content)
                _add(tar, "rest.db", rest.read_bytes())
            partial.replace(target)
            return Packed(rows.shape[1], target.stat().st_size)
    finally:
        partial.unlink(missing_ok=True)
        rest.unlink(missing_ok=True)


def refuse_existing_pack(target: Path, force: bool) -> None:
    """Raise ``UsageError`` where a pack must not be written: over anything but a pack, or over one without ``force``."""
    if not target.parent.is_dir() or target.is_dir():
        raise UsageError(f"{target} cannot be written: it is a folder, or lies in none", "name a file: -o FILE.pack")
    if not target.exists():
        return
    if not force:
        raise UsageError(f"{target} exists already", "name another file, or replace it with --force")
    with target.open("rb") as file:
        if file.read(4) != zstandard.FRAME_HEADER:
            raise UsageError(f"{target} is not a packed trace, so --force does not replace it", "name another file")


def _members(about: dict[str, Any], rows: Ints, origins: Ints) -> Iterator[tuple[str, bytes]]:
    seq, kind, vcpu, flags, addr, value = rows
    yield "pack.json", json.dumps(about).encode()
    yield "kind", kind.astype("u1").tobytes()
    yield "vcpu", vcpu.astype("u1").tobytes()
    if not np.array_equal(seq, np.arange(1, len(seq) + 1)):
        yield "seq", seq.astype("<i8").tobytes()
    for k in Kind:
        those = kind == k
        yield f"flags-{k:d}", flags[those].astype("<u2").tobytes()
        yield f"addr-{k:d}", addr[those].astype("<i8").tobytes()
        yield f"value-{k:d}", value[those].astype("<i8").tobytes()
    yield "store_origin", origins.tobytes()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _without_events(source: Path, rest: Path) -> None:
    """A copy of the trace without what is packed apart."""
    rest.unlink(missing_ok=True)
    with closing(connect(source, "ro")) as whole, closing(sqlite3.connect(rest)) as copy:
        whole.backup(copy)
        copy.execute("DELETE FROM event")
        copy.execute("DELETE FROM store_origin")
        copy.commit()
        copy.execute("VACUUM")


def unpack(source: Path, target: Path, force: bool) -> int:
    """Make the trace file that was packed, which takes its name when it is whole and its digest is right; how many events."""
    if not source.is_file():
        raise UsageError(f"there is no file {source}", "shadowtrace pack FILE -o FILE.pack writes one")
    refuse_existing(target, force)
    members = _read(source)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with storage_errors(target):
            partial.write_bytes(members["rest.db"])
            # What is in it is looked at as in any trace before anything is done with it.
            TraceReader(partial, check=False).close()
            about = json.loads(members["pack.json"])
            _insert(partial, members)
            with TraceReader(partial) as trace:
                if digest(trace) != about["digest"]:
                    raise _bad(source)
            partial.replace(target)
            return int(about["events"])
    except (LookupError, ValueError, TypeError) as error:
        raise _bad(source) from error
    finally:
        for suffix in ("", "-journal"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _bad(source: Path) -> UsageError:
    return UsageError(f"{source} is no packed trace, or is damaged", "shadowtrace pack FILE -o FILE.pack writes one")


def _read(source: Path) -> dict[str, bytes]:
    members = {}
    try:
        with (
            source.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as plain,
            tarfile.open(fileobj=plain, mode="r|") as tar,
        ):
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    members[member.name] = content.read()
    except (tarfile.TarError, zstandard.ZstdError, OSError, EOFError) as error:
        raise _bad(source) from error
    if "pack.json" not in members or "rest.db" not in members:
        raise _bad(source)
    return members


def _insert(path: Path, members: dict[str, bytes]) -> None:
    kind = np.frombuffer(members["kind"], "u1")
    rows = np.zeros((6, len(kind)), np.int64)
    rows[0] = np.frombuffer(members["seq"], "<i8") if "seq" in members else np.arange(1, len(kind) + 1)
    rows[1] = kind
    rows[2] = np.frombuffer(members["vcpu"], "u1")
    for k in Kind:
        those = kind == k
        for column, name, width in ((3, "flags", "<u2"), (4, "addr", "<i8"), (5, "value", "<i8")):
            rows[column, those] = np.frombuffer(members[f"{name}-{k:d}"], width)
    origins = np.frombuffer(members["store_origin"], "<i8").reshape(-1, 2)
    with closing(connect(path, "rw")) as connection:
        for first in range(0, len(kind), _BATCH):
            part = rows[:, first : first + _BATCH].tolist()
            connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", zip(*part, strict=True))
        connection.executemany("INSERT INTO store_origin VALUES (?, ?)", origins.tolist())
        connection.commit()
