"""A trace's events in columns: large batches of numpy arrays, without an object for each event.

A sealed trace is read from its pages (``db.btree``, where numba can be imported), any other through sqlite3; docs/performance.md
has what other ways cost.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from db.errors import TraceError
from db.event import Kind, unpack_words
from db.trace import TraceReader

Ints = NDArray[np.int64]

#: Rows of a batch, about.
BATCH = 1 << 19

_SELECT = "SELECT seq, kind, vcpu, flags, addr, value FROM event WHERE seq > ? ORDER BY seq"

#: Tables with what some kinds of events have besides, and what to ask them for.
_SIDES = {
    Kind.REGS: "SELECT seq, cr0, cr4, efer FROM mode_registers WHERE seq BETWEEN ? AND ? ORDER BY seq",
    Kind.CR3: "SELECT seq, entry0, entry1, entry2, entry3 FROM pdptes WHERE seq BETWEEN ? AND ? ORDER BY seq",
    Kind.PAGE: "SELECT seq, words FROM content WHERE seq BETWEEN ? AND ? ORDER BY seq",
}

_WORD = np.dtype([("index", "<u2"), ("word", "<i8")])

#: No row of the event table is shorter: with its pointer 9 bytes. So many fit a page at the most.
_SHORTEST = 9


@dataclass(frozen=True)
class Columns:
    """Events in columns, in order; 64-bit numbers in two's complement, as the file holds them."""

    kind: NDArray[np.uint8]
    vcpu: NDArray[Any]
    """uint8, or int64 where a number is none that a trace may hold."""
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
    damage: tuple[int, str] | None = None
    """The first event whose content is none: its place in the batch, and what is wrong. Its content is empty here."""


def batches(trace: TraceReader) -> Iterator[Columns]:
    """A trace's events, batch by batch. Raises ``TraceError`` past the last event before one of no known shape."""
    for rows in _rows(trace):
        kind = rows[1]
        place = {k: np.flatnonzero(kind == k) for k in (Kind.REGS, Kind.CR3, Kind.PAGE)}
        sides = {k: _side(trace, k, rows[0]) for k in place}
        wrong = [np.flatnonzero((kind < 1) | (kind > 6))]
        value = rows[5].copy()
        for k, (seqs, _) in sides.items():
            wanted = rows[0][place[k]]
            at = np.searchsorted(seqs, wanted)
            there = np.zeros(len(at), bool)
            inside = at < len(seqs)
            there[inside] = seqs[at[inside]] == wanted[inside]
            value[place[k]] = np.where(there, at, -1)
            if k != Kind.CR3:
                wrong.append(place[k][~there])
        bad = min((int(found[0]) for found in wrong if len(found)), default=None)
        columns = _columns(rows[:, :bad], value[:bad], sides, place[Kind.PAGE])
        if len(columns.kind):
            yield columns
        if bad is not None:
            raise TraceError(f"{trace.path} is damaged: event {rows[0, bad]} is incomplete", "shadowtrace verify names what is wrong")


def _columns(rows: Ints, value: Ints, sides: dict[Kind, tuple[Ints, Any]], pages: Ints) -> Columns:
    vcpu = rows[2]
    fits = len(vcpu) == 0 or (vcpu.min() >= 0 and vcpu.max() <= 255)
    offsets, indexes, words, wrong = _contents(sides[Kind.PAGE][1])
    damage = None
    if wrong:
        places = [(int(i), reason) for i in pages if i < len(value) and (reason := wrong.get(int(value[i])))]
        damage = places[0] if places else None
    return Columns(
        rows[1].astype(np.uint8),
        vcpu.astype(np.uint8) if fits else vcpu.copy(),
        (rows[3] & 0xFF).astype(np.uint8),
        rows[4].copy(),
        value,
        sides[Kind.REGS][1],
        sides[Kind.CR3][1],
        offsets,
        indexes,
        words,
        damage,
    )


def _side(trace: TraceReader, kind: Kind, seqs: Ints) -> tuple[Ints, Any]:
    """The seq of each row of a side table in this range, and the rows: an array, or the blobs of content."""
    rows = trace.raw(_SIDES[kind], (int(seqs[0]), int(seqs[-1]))).fetchall()
    keys = np.array([row[0] for row in rows], np.int64)
    if kind == Kind.PAGE:
        return keys, [row[1] for row in rows]
    if kind == Kind.CR3:
        return keys, np.array([row[1:] for row in rows], np.int64).reshape(-1, 4)
    given = [(sum(1 << i for i, value in enumerate(row[1:]) if value is not None), *(value or 0 for value in row[1:])) for row in rows]
    return keys, np.array(given, np.int64).reshape(-1, 4)


def _contents(blobs: list[bytes]) -> tuple[Ints, NDArray[np.uint16], Ints, dict[int, str]]:
    """Offsets, indexes and words of these contents; and what is wrong with those that are none, by number."""
    lengths = np.array([len(blob) for blob in blobs], np.int64)
    suspect = (lengths % _WORD.itemsize != 0) | (lengths > 512 * _WORD.itemsize)
    whole = [b"" if bad else blob for blob, bad in zip(blobs, suspect.tolist(), strict=True)]
    packed = np.frombuffer(b"".join(whole), _WORD)
    offsets = np.zeros(len(blobs) + 1, np.int64)
    np.cumsum(np.where(suspect, 0, lengths) // _WORD.itemsize, out=offsets[1:])
    past_the_end = np.searchsorted(offsets, np.flatnonzero(packed["index"] > 511), side="right") - 1
    suspect[past_the_end] = True
    wrong = {}
    for number in np.flatnonzero(suspect).tolist():
        try:
            unpack_words(blobs[number])
        except ValueError as error:
            wrong[number] = str(error)
    return offsets, packed["index"].copy(), packed["word"].copy(), wrong


def _rows(trace: TraceReader) -> Iterator[Ints]:
    """The event table as arrays (6, n): seq, kind, vcpu, flags, addr, value."""
    last = 0
    for rows in _rows_of_pages(trace):
        last = int(rows[0, -1])
        yield rows
    cursor = trace.raw(_SELECT, (last,))
    while fetched := cursor.fetchmany(BATCH // 8):
        yield np.fromiter(itertools.chain.from_iterable(fetched), np.int64, 6 * len(fetched)).reshape(-1, 6).T.copy()


def _rows_of_pages(trace: TraceReader) -> Iterator[Ints]:
    """The same from the file's pages, as far as they are plain; nothing where the file may change or cannot be read so."""
    try:
        from db import btree
    except ImportError:
        return
    root = trace.raw("SELECT rootpage FROM sqlite_schema WHERE name = 'event' AND type = 'table'", ()).fetchone()
    if trace.live or trace.recording["ended"] is None or root is None or not trace.path.stat().st_size:
        return
    with trace.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
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
