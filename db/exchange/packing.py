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
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard

from db.columns import Ints, event_rows
from db.errors import StorageError, TraceError, UsageError
from db.file.guarded import connect, harden
from db.file.locking import clear, refuse_existing, storage_errors
from db.trace import TraceReader
from x86.event import Kind

FORMAT = 1

#: Beyond it zstandard takes minutes for a few percent.
LEVEL = 12

_BATCH = 1 << 17

#: Bytes that are unpacked at a time, and how far back they may refer: level 12 takes 4 MiB, zstd -19 takes 8.
_PIECE = 1 << 20
_WINDOW = 8 << 20

#: No event takes fewer bytes in the trace file.
_LEAST_ROW = 9

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
                tarfile.open(fileobj=compressed, mode="w|", format=tarfile.GNU_FORMAT) as tar,
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
    """Make the trace file that was packed, which takes its name when it is whole and its digest is right; how many events.

    A pack may mean harm: its members are taken in their order alone, each as long as the ones before it say, and only where the
    disk has room; memory does not grow with them. ``UsageError`` where it is not what ``pack`` writes, ``StorageError`` without room.
    """
    if not source.is_file():
        raise UsageError(f"there is no file {source}", "shadowtrace pack FILE -o FILE.pack writes one")
    refuse_existing(target, force)
    partial = target.with_name(f".{target.name}.partial")
    clear(partial)
    try:
        with storage_errors(target), ExitStack() as files:
            about, columns = _staged(source, partial, files)
            # What is in it is looked at as in any trace before anything is done with it.
            TraceReader(partial).close()
            _insert(partial, about["events"], columns)
            with TraceReader(partial) as trace:
                if digest(trace) != about["digest"]:
                    raise _bad(source)
            partial.replace(target)
            return int(about["events"])
    except (LookupError, ValueError, TypeError, RecursionError, EOFError, tarfile.TarError, zstandard.ZstdError) as error:
        raise _bad(source) from error
    except TraceError as error:
        raise UsageError(str(error).replace(str(partial), f"the trace in {source}"), error.hint) from error
    finally:
        clear(partial)


def _bad(source: Path) -> UsageError:
    return UsageError(f"{source} is no packed trace, or is damaged", "shadowtrace pack FILE -o FILE.pack writes one")


def _staged(source: Path, partial: Path, files: ExitStack) -> tuple[dict[str, Any], dict[str, IO[bytes]]]:
    """What a pack says of itself, and its columns in files without a name beside ``partial``, which becomes the trace without events."""
    columns: dict[str, IO[bytes]] = {}
    folder = partial.parent
    with source.open("rb") as file, zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(file) as plain:

        def keep(header: tarfile.TarInfo, name: str, size: int) -> tarfile.TarInfo:
            if header.name != name or header.size != size:
                raise ValueError(name)
            columns[name] = files.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - closed with the others
            _copy(plain, size, columns[name], folder)
            return _header(plain)

        about = _about(plain)
        events: int = about["events"]
        header = keep(_header(plain), "kind", events)
        header = keep(header, "vcpu", events)
        if header.name == "seq":
            header = keep(header, "seq", 8 * events)
        for k, count in _of_each_kind(columns["kind"], events).items():
            for name, width in (("flags", 2), ("addr", 8), ("value", 8)):
                header = keep(header, f"{name}-{k:d}", width * count)
        header = keep(header, "store_origin", min(header.size, 16 * events) // 16 * 16)
        if header.name != "rest.db":
            raise ValueError(header.name)
        with partial.open("wb") as rest:
            _copy(plain, header.size, rest, folder, besides=events * _LEAST_ROW)
    for column in columns.values():
        column.seek(0)
    return about, columns


def _header(plain: zstandard.ZstdDecompressionReader) -> tarfile.TarInfo:
    """The next member's, which must be a plain file: what the other kinds bring along could be of any length."""
    header = tarfile.TarInfo.frombuf(_exactly(plain, tarfile.BLOCKSIZE), "ascii", "strict")
    if header.type != tarfile.REGTYPE or header.size < 0:
        raise ValueError(header.name)
    return header


def _about(plain: zstandard.ZstdDecompressionReader) -> dict[str, Any]:
    header = _header(plain)
    if header.name != "pack.json" or header.size > tarfile.BLOCKSIZE:
        raise ValueError(header.name)
    about = json.loads(_exactly(plain, tarfile.BLOCKSIZE)[: header.size])
    if about["format"] != FORMAT or type(about["events"]) is not int or about["events"] < 0:
        raise ValueError("pack.json")
    return dict(about)


def _exactly(plain: zstandard.ZstdDecompressionReader, size: int) -> bytes:
    content = plain.read(size)
    if len(content) != size:
        raise EOFError
    return content


def _copy(plain: zstandard.ZstdDecompressionReader, size: int, out: IO[bytes], folder: Path, besides: int = 0) -> None:
    """Copy a member of this many bytes into a file in ``folder``, where it and ``besides`` must find room."""
    free = shutil.disk_usage(folder).free
    if size + besides > free:
        raise StorageError(
            f"{folder} has no room for what is packed: {size + besides:,} bytes, {free:,} are free", "free some, or unpack elsewhere"
        )
    for at in range(0, size, _PIECE):
        out.write(_exactly(plain, min(_PIECE, size - at)))
    out.flush()
    _exactly(plain, -size % tarfile.BLOCKSIZE)


def _of_each_kind(kinds: IO[bytes], events: int) -> dict[Kind, int]:
    """How many events of each kind there are; ``ValueError`` where there are others."""
    kinds.seek(0)
    counts = np.zeros(256, np.int64)
    for _ in range(0, events, _BATCH):
        counts += np.bincount(np.fromfile(kinds, "u1", _BATCH), minlength=256)
    found = {k: int(counts[k]) for k in Kind}
    if sum(found.values()) != events:
        raise ValueError("kind")
    return found


def _insert(path: Path, events: int, columns: dict[str, IO[bytes]]) -> None:
    with closing(connect(path, "rw")) as connection:
        harden(connection)
        for first in range(0, events, _BATCH):
            many = min(_BATCH, events - first)
            kind = np.fromfile(columns["kind"], "u1", many)
            rows = np.zeros((6, many), np.int64)
            rows[0] = np.fromfile(columns["seq"], "<i8", many) if "seq" in columns else np.arange(first + 1, first + many + 1)
            rows[1] = kind
            rows[2] = np.fromfile(columns["vcpu"], "u1", many)
            for k in Kind:
                those = kind == k
                for place, name, width in ((3, "flags", "<u2"), (4, "addr", "<i8"), (5, "value", "<i8")):
                    rows[place, those] = np.fromfile(columns[f"{name}-{k:d}"], width, int(np.count_nonzero(those)))
            _insert_rows(connection, "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", zip(*rows.tolist(), strict=True))
        while len(origins := np.fromfile(columns["store_origin"], "<i8", 2 * _BATCH)):
            _insert_rows(connection, "INSERT INTO store_origin VALUES (?, ?)", origins.reshape(-1, 2).tolist())
        connection.commit()


def _insert_rows(connection: sqlite3.Connection, statement: str, rows: Iterable[Iterable[int]]) -> None:
    try:
        connection.executemany(statement, map(tuple, rows))
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        # Two events of one number, or a file that is damaged where it was not looked at.
        raise ValueError(str(error)) from error
