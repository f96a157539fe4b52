"""What an event is: its kind, what its columns mean for each kind, and what they may be.

===========  ===============================================  =============================  =================
kind         flags                                            addr                           value
===========  ===============================================  =============================  =================
``REGS``     0                                                0 (row in ``mode_registers``)  0
``CR3``      1 if a row in ``pdptes`` holds what a PAE load   the value loaded               0
             read
``WRITE``    size in bytes; ``seen << 4``: how it was seen    guest physical address         the bytes stored
``PAGE``     0                                                guest physical address (row    0
                                                              in ``content``)
``ACCESS``   1 write, 2 user, 4 fetch, 8 ended in a guest     virtual address                0
             page fault
``INVLPG``   0                                                virtual address                0
===========  ===============================================  =============================  =================

Addresses and values are unsigned 64-bit numbers; SQLite's integers are signed, so the file holds them in two's complement.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, NamedTuple

MASK64 = (1 << 64) - 1

ACCESS_WRITE = 1
ACCESS_USER = 2
ACCESS_FETCH = 4
ACCESS_FAULT = 8

CR3_HAS_PDPTES = 1

#: vCPUs that a trace may name.
MAX_VCPUS = 64

#: Physical addresses end here.
MAX_GPA = 1 << 52

#: The greatest number that flags may be.
MOST_FLAGS = (1 << 16) - 1

WRITE_SIZE = 15
WRITE_SEEN_SHIFT = 4


class Kind(IntEnum):
    """Kinds of events, as the ``kind`` column holds them."""

    REGS = 1
    CR3 = 2
    WRITE = 3
    PAGE = 4
    ACCESS = 5
    INVLPG = 6


# To compare with a member takes several times as long as with a number.
_FIRST, _WRITE, _PAGE, _LAST = int(min(Kind)), int(Kind.WRITE), int(Kind.PAGE), int(max(Kind))
_MOST_STORED_TO = MAX_GPA - 8

_NAMES = {int(kind): kind.name.lower() for kind in Kind}


def kind_name(kind: int) -> str:
    """A kind's name as verbs and formats have it, such as ``cr3``; a number that is no kind is left one."""
    return _NAMES.get(kind) or str(kind)


def in_range(kind: Any, vcpu: Any, flags: Any, addr: Any) -> Any:
    """Whether an event may have these columns: of numbers a bool, of arrays of them an array of bools.

    A store has a size of 1 to 8 bytes, and lies in physical memory as a whole; a table is a page of physical memory.
    """
    size = flags & WRITE_SIZE
    return (
        (kind >= _FIRST)
        & (kind <= _LAST)
        & (vcpu >= 0)
        & (vcpu < MAX_VCPUS)
        & (flags >= 0)
        & (flags <= MOST_FLAGS)
        & ((kind != _WRITE) | ((size >= 1) & (size <= 8) & (addr >= 0) & (addr <= _MOST_STORED_TO)))
        & ((kind != _PAGE) | ((addr >= 0) & (addr < MAX_GPA) & (addr & 0xFFF == 0)))
    )


def is_event(seq: Any, kind: Any, vcpu: Any, flags: Any, addr: Any, value: Any) -> bool:
    """Whether these are what a row of the event table may hold, which in a damaged file may be of any type."""
    try:
        return (seq | kind | vcpu | flags | addr | value) is not None and bool(in_range(kind, vcpu, flags, addr))
    except TypeError:
        return False


class Seen(IntEnum):
    """How a store to a table was seen."""

    EXACT = 0
    """The store itself."""
    NET = 1
    """What differed between two stops."""
    SNAPSHOT = 2
    """What differed when the page's content was taken again."""
    FOREIGN = 3
    """Not by a guest instruction: a device, the loader, a debugger."""


class Event(NamedTuple):
    """One event, with the rows that belong to it; numbers are unsigned."""

    kind: int
    vcpu: int = 0
    flags: int = 0
    addr: int = 0
    value: int = 0
    extra: tuple[int | None, ...] | bytes | None = None
    """``REGS``: (cr0, cr4, efer), ``None`` for one that keeps its value. ``CR3``: four PDPTEs. ``PAGE``: packed words."""


_WORD = struct.Struct("<HQ")


def signed(number: int) -> int:
    """An unsigned 64-bit number as SQLite stores it."""
    return number - (1 << 64) if number >> 63 else number


def unsigned(number: int) -> int:
    """The unsigned 64-bit number that SQLite's integer stands for."""
    return number & MASK64


def pack_words(words: list[tuple[int, int]]) -> bytes:
    """A page's non-zero 8-byte words as a blob: 10 bytes each, the index (0..511) and the word, little-endian."""
    return b"".join(_WORD.pack(index, word) for index, word in words if word)


def is_content(blob: bytes) -> bool:
    """Whether ``unpack_words`` takes it."""
    return len(blob) % _WORD.size == 0 and len(blob) <= 512 * _WORD.size and max(blob[1 :: _WORD.size], default=0) < 2


def unpack_words(blob: bytes) -> list[tuple[int, int]]:
    """The (index, word) pairs of a content blob; ``ValueError`` where it is none."""
    if len(blob) % _WORD.size or len(blob) > 512 * _WORD.size:
        raise ValueError("a page's content is not a whole number of words")
    pairs = list(_WORD.iter_unpack(blob))
    if any(index > 511 for index, _ in pairs):
        raise ValueError("a page's content has a word past its end")
    return pairs
