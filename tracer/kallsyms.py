"""The symbol table that a Linux kernel carries for itself (kallsyms), from its unpacked ELF file.

The tables have no symbols of their own in a stripped kernel, so each is found by what its content must be. Linux writes them in
scripts/kallsyms.c and reads them in kernel/kallsyms.c; what differs between versions:

- to 6.3 the offsets lie before the names, since 404bad70fcf7 behind the token index;
- an offset is relative to a base behind the offsets; in kernels for amd64 with per-CPU variables at 0 an offset from 0 on is an
  address by itself, and the base counts down for the others; the newest kernels have no base: an offset is relative to its own place;
- since 73bbb94466fd a name of more than 127 tokens has two length bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

#: Tokens 0x30 to 0x39: every kernel has symbols with every digit, so these stand for themselves.
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_FIRST_DIGIT = 0x30
_TOKENS = 256
_INDEX_BYTES = 2 * _TOKENS

#: There is a marker, the place of a name, for so many symbols.
_PER_MARKER = 256
#: The most bytes that so many names take: two for a length, and one a token.
_MARKER_STEP = _PER_MARKER * 514

#: Bytes before the token table in which the markers are looked for: there may be three bytes a symbol between.
_BEFORE = 4 << 20

#: The lowest address of a kernel, by the bits of a word.
_LOWEST = {32: 0x4000_0000, 64: 0xFFFF_FFFF_8000_0000}


@dataclass(frozen=True)
class Symbol:
    """One symbol: its link-time address, its type letter as nm prints it, its name."""

    address: int
    kind: str
    name: str


def symbols(elf: ELFFile) -> list[Symbol]:
    """Every symbol of a kernel's kallsyms, in its order; ``ValueError`` where there is none, or none of a form that is known."""
    elf.stream.seek(0)
    data = elf.stream.read()
    try:
        return _symbols(elf, data)
    except (IndexError, struct.error) as error:
        raise ValueError("the kernel's kallsyms cannot be read") from error


def _symbols(elf: ELFFile, data: bytes) -> list[Symbol]:
    table, tokens, index_end = _tokens(data)
    names_at, count, names_end = _names_place(data, table, elf.elfclass)
    names = list(_names(data[names_at:names_end], count, tokens))
    addresses = _addresses(elf, data, count, names_at, index_end)
    return [Symbol(address, name[:1], name[1:]) for address, name in zip(addresses.tolist(), names, strict=True)]


def _tokens(data: bytes) -> tuple[int, list[str], int]:
    """Where the token table begins, the tokens, and where the index behind it ends."""
    digits = data.find(_DIGITS)
    while digits >= 0:
        start = digits
        for _ in range(_FIRST_DIGIT):
            start = data.rfind(b"\0", 0, start - 1) + 1
        tokens = data[start : start + (1 << 16)].split(b"\0", _TOKENS)[:_TOKENS]
        places = np.cumsum([0, *(len(token) + 1 for token in tokens)])
        index = data.find(places[:-1].astype("<u2").tobytes(), start + int(places[-1]), start + int(places[-1]) + 64 + _INDEX_BYTES)
        if index >= 0:
            return start, [token.decode("latin-1") for token in tokens], index + _INDEX_BYTES
        digits = data.find(_DIGITS, digits + 1)
    raise ValueError("the kernel has no kallsyms")


def _names_place(data: bytes, table: int, bits: int) -> tuple[int, int, int]:
    """Where the names begin, how many there are, and where they end.

    The markers before the token table are the longest run of words that go up by what 256 names take; the first of them is 0. The
    number of symbols stands before the names, at a whole word to 6.12 and some.
    """
    start = max(0, table - _BEFORE) + table % 4
    words = np.frombuffer(data, "<u4", (table - start) // 4, start)
    rises = np.diff(words.astype(np.int64))
    broken = np.flatnonzero((rises < _PER_MARKER) | (rises > _MARKER_STEP))
    edges = np.concatenate(([-1], broken, [len(rises)]))
    longest = int(np.argmax(np.diff(edges)))
    first, last = int(edges[longest]) + 1, int(edges[longest + 1])
    while words[first] and first < last:
        first += 1
    markers = words[first : last + 1]
    at, word = start + 4 * first, bits // 8
    highest = (at - int(markers[-1])) & -4
    for names_at in range(highest, max(highest - _MARKER_STEP, word), -4):
        for before in {4, word}:
            (count,) = struct.unpack_from("<I", data, names_at - before)
            if -(-count // _PER_MARKER) != len(markers):
                continue
            end = _end(data, names_at, count, markers)
            if end is not None and 0 <= at - end < word:
                return names_at, count, end
    raise ValueError("the kernel's kallsyms has no names")


def _end(data: bytes, start: int, count: int, markers: NDArray[np.uint32]) -> int | None:
    """Where so many names end; ``None`` where they do not pass by the markers."""
    at = start
    for number in range(count):
        if number % _PER_MARKER == 0 and at - start != markers[number // _PER_MARKER]:
            return None
        length = data[at]
        at += 1
        if length & 0x80:
            length = length & 0x7F | data[at] << 7
            at += 1
        at += length
    return at


def _names(data: bytes, count: int, tokens: list[str]) -> Iterator[str]:
    at = 0
    for _ in range(count):
        length = data[at]
        at += 1
        if length & 0x80:
            length = length & 0x7F | data[at] << 7
            at += 1
        yield "".join([tokens[byte] for byte in data[at : at + length]])
        at += length


def _addresses(elf: ELFFile, data: bytes, count: int, names_at: int, index_end: int) -> NDArray[np.uint64]:
    word = elf.elfclass // 8
    after = index_end + -index_end % 4
    base_before = names_at - 2 * word
    for offsets_at, base_at in (((base_before - 4 * count) & -word, base_before), (after, (after + 4 * count + word - 1) & -word)):
        base = int.from_bytes(data[base_at : base_at + word], "little")
        offsets = np.frombuffer(data, "<i4", count, offsets_at).astype(np.int64)
        if base in range(_LOWEST[elf.elfclass], 1 << elf.elfclass, 4096):
            return _by_base(offsets, base, elf.elfclass)
    offsets = np.frombuffer(data, "<i4", count, after).astype(np.int64)
    here = _virtual(elf, after) + 4 * np.arange(count, dtype=np.uint64)
    return _cut(here + offsets.astype(np.uint64), elf.elfclass)


def _by_base(offsets: NDArray[np.int64], base: int, bits: int) -> NDArray[np.uint64]:
    if bits == 64 and np.count_nonzero(offsets < 0) > len(offsets) // 2:
        return np.where(offsets >= 0, offsets.astype(np.uint64), np.uint64(base - 1) - offsets.astype(np.uint64))
    return _cut(np.uint64(base) + (offsets & 0xFFFF_FFFF).astype(np.uint64), bits)


def _cut(addresses: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    return addresses & np.uint64((1 << bits) - 1)


def _virtual(elf: ELFFile, offset: int) -> np.uint64:
    """The link-time address of a place in the file."""
    for segment in elf.iter_segments("PT_LOAD"):
        if segment["p_offset"] <= offset < segment["p_offset"] + segment["p_filesz"]:
            return np.uint64(segment["p_vaddr"] + offset - segment["p_offset"])
    raise ValueError("the kernel's kallsyms lies in no segment")
