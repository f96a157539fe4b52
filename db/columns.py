"""A trace's events in columns: large batches of numpy arrays, without an object for each event.

A sealed trace is read from its pages (``db.btree``, where numba can be imported), any other through sqlite3; docs/performance.md
has what other ways cost.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from db.trace import TraceReader
from x86.event import CR3_HAS_PDPTES, Kind, in_range, is_content
from x86.paging import BASE64, BASE_PDPT

Ints = NDArray[np.int64]

#: Rows of a batch, about.
BATCH = 1 << 19

_SELECT = "SELECT seq, kind, vcpu, flags, addr, value FROM event WHERE seq > :last ORDER BY seq"

#: Tables with what some kinds of events have besides, and the query for it.
_SIDES = {
    Kind.REGS: ("mode_registers", "SELECT seq, cr0, cr4, efer FROM mode_registers WHERE seq BETWEEN :first AND :last ORDER BY seq"),
    Kind.CR3: ("pdptes", "SELECT seq, entry0, entry1, entry2, entry3 FROM pdptes WHERE seq BETWEEN :first AND :last ORDER BY seq"),
    Kind.PAGE: ("content", "SELECT seq, words FROM content WHERE seq BETWEEN :first AND :last ORDER BY seq"),
}

_WORD = np.dtype([("index", "<u2"), ("word", "<i8")])

#: No row of the event table is shorter: with its pointer 9 bytes. So many fit a page at the most.
_SHORTEST = 9


@dataclass(frozen=True)
class Columns:
    """Events in columns, in order; 64-bit numbers in two's complement, as the file holds them."""

    seq: Ints
    kind: NDArray[np.uint8]
    vcpu: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    addr: Ints
    value: Ints
    """``WRITE``: the bytes stored. ``REGS``, ``CR3``, ``PAGE``: the row in a table below; -1: a cr3 load without PDPTEs."""
    registers: Ints
    """(n, 4): bit 0 CR0, bit 1 CR4, bit 2 EFER are given; the three values."""
    pdptes: Ints
    """(n, 4): what a PAE load of cr3 read."""
    offsets: Ints
    """(n + 1,): page content ``i`` is words ``offsets[i]`` to ``offsets[i + 1]``."""
    indexes: NDArray[np.uint16]
    words: Ints


def batches(trace: TraceReader) -> Iterator[Columns]:
    """A trace's events, batch by batch: what ``TraceReader.events`` gives, and its errors, past the last event before a bad one."""
    last = 0
    for rows in event_rows(trace):
        seq, kind, _, _, _, value = rows
        sides = {k: _side(trace, k, seq) for k in _SIDES}
        good = _known_shape(rows, last)
        for k, (keys, _) in sides.items():
            places = np.flatnonzero(kind == k)
            at = np.searchsorted(keys, seq[places])
            there = np.append(keys, -1)[at] == seq[places]
            value[places] = np.where(there, at, -1)
            if k != Kind.CR3:
                good[places[~there]] = False
        bad = len(good) if good.all() else int(np.argmin(good))
        if bad:
            yield _columns(rows[:, :bad], sides)
        if bad < len(good):
            raise trace.damaged(f"event {seq[bad]} is incomplete or of no known shape")
        last = int(seq[-1])


def root_rows(columns: Columns) -> Iterator[tuple[Any, ...]]:
    """The rows of ``db.queries.ROOTS`` that lie in a batch."""
    loads = columns.kind == Kind.CR3
    with_pdptes = loads & (columns.flags & CR3_HAS_PDPTES != 0)
    places = np.flatnonzero(loads | (columns.kind == Kind.PAGE))
    roots = columns.addr[places] & np.where(with_pdptes[places], BASE_PDPT, BASE64)
    rows = np.where(loads[places], columns.value[places], -1).tolist()
    none = [None] * 4
    for seq, kind, vcpu, root, row in zip(
        *(c[places].tolist() for c in (columns.seq, columns.kind, columns.vcpu)), roots.tolist(), rows, strict=True
    ):
        yield seq, kind, vcpu, root, *(none if row < 0 else columns.pdptes[row].tolist())


def _known_shape(rows: Ints, last: int) -> NDArray[np.bool_]:
    """Which rows ``TraceReader.events`` would take, as far as they themselves say; ``last`` is the seq before them."""
    good: NDArray[np.bool_] = (np.diff(rows[0], prepend=last) > 0) & in_range(*rows[1:5])
    return good


def _columns(rows: Ints, sides: dict[Kind, tuple[Ints, Any]]) -> Columns:
    offsets, packed = sides[Kind.PAGE][1]
    return Columns(
        rows[0].copy(),
        rows[1].astype(np.uint8),
        rows[2].astype(np.uint8),
        (rows[3] & 0xFF).astype(np.uint8),
        rows[4].copy(),
        rows[5].copy(),
        sides[Kind.REGS][1],
        sides[Kind.CR3][1],
        offsets,
        packed["index"].copy(),
        packed["word"].copy(),
    )


def _side(trace: TraceReader, kind: Kind, seqs: Ints) -> tuple[Ints, Any]:
    """The seq of each row of a side table in the range of ``seqs``, and the rows: an array, or offsets and words of contents."""
    table, query = _SIDES[kind]
    rows = list(trace.stream(query, {"first": int(seqs[0]), "last": int(seqs[-1])}))
    try:
        keys = np.array([row[0] for row in rows], np.int64)
        if kind == Kind.PAGE:
            return keys, _contents(trace, rows)
        if kind == Kind.CR3:
            return keys, np.array([row[1:] for row in rows], np.int64).reshape(-1, 4)
        given = [(sum(1 << i for i, value in enumerate(row[1:]) if value is not None), *(value or 0 for value in row[1:])) for row in rows]
        return keys, np.array(given, np.int64).reshape(-1, 4)
    except (TypeError, ValueError) as error:
        raise trace.damaged(f"{table} holds what is no number") from error


def _contents(trace: TraceReader, rows: list[tuple[Any, ...]]) -> tuple[Ints, NDArray[np.void]]:
    """Offsets and words of these contents."""
    for seq, words in rows:
        if not isinstance(words, bytes) or not is_content(words):
            raise trace.damaged(f"the content at event {seq} is none of a page")
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(words) // _WORD.itemsize for _, words in rows], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(words for _, words in rows), _WORD)


def digest(trace: TraceReader) -> str:
    """SHA-256, in hex, over the event table and the tables beside it: which events a trace has, whoever recorded them and when.

    It is not ``db.digest``'s, which takes an object for each event.
    """
    columns = [hashlib.sha256() for _ in range(6)]
    last = 0
    for rows in event_rows(trace):
        for told, column in zip(columns, rows, strict=True):
            told.update(column.astype("<i8").tobytes())
        last = int(rows[0, -1])
    whole = hashlib.sha256(b"".join(told.digest() for told in columns))
    for _, query in _SIDES.values():
        for row in trace.stream(query, {"first": 0, "last": last}):
            whole.update(repr(row).encode())
    return whole.hexdigest()


def event_rows(trace: TraceReader) -> Iterator[Ints]:
    """The event table as arrays (6, n): seq, kind, vcpu, flags, addr, value."""
    last = 0
    for rows in _rows_of_pages(trace):
        last = int(rows[0, -1])
        yield rows
    stream = trace.stream(_SELECT, {"last": last})
    while fetched := list(itertools.islice(stream, BATCH // 8)):
        # numpy would take a real, and text of digits, for a number.
        if set(map(type, itertools.chain.from_iterable(fetched))) != {int}:
            strange = next(row for row in fetched if any(type(number) is not int for number in row))
            raise trace.damaged(f"event {strange[0]!r} is incomplete or of no known shape")
        rows = np.fromiter(itertools.chain.from_iterable(fetched), np.int64, 6 * len(fetched))
        yield rows.reshape(-1, 6).T.copy()


def _rows_of_pages(trace: TraceReader) -> Iterator[Ints]:
    """The same from the file's pages, as far as they are plain; nothing where the file may change or cannot be read so."""
    try:
        from db import btree
    except ImportError:
        return
    root = next(trace.stream("SELECT rootpage FROM sqlite_schema WHERE name = 'event' AND type = 'table'"), None)
    log = trace.file.with_name(f"{trace.file.name}-wal")
    if trace.live or trace.recording["ended"] is None or root is None or (log.exists() and log.stat().st_size):
        return
    with trace.file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        size = int.from_bytes(mapped[16:18], "big")
        size = 65536 if size == 1 else size
        # Bytes 18 and 19 are 1 where there is no write-ahead log, byte 20 is the room kept free in every page.
        if mapped[18:21] != b"\1\1\0" or size < 512 or len(mapped) % size:
            return
        pages = np.frombuffer(mapped, np.uint8).reshape(-1, size)
        try:
            numbers = np.zeros(len(pages), np.int64)
            numbers = numbers[: max(btree.leaves(pages, root[0], numbers), 0)]
            most = size // _SHORTEST
            step = max(BATCH // most, 1)
            for first in range(0, len(numbers), step):
                out = np.empty((6, step * most), np.int64)
                count = btree.rows(pages, numbers[first : first + step], out)
                if count <= 0:
                    return
                yield out[:, :count]
                mapped.madvise(mmap.MADV_DONTNEED)
        finally:
            del pages
