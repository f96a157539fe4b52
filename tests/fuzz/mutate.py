"""Inputs made by damaging good ones, the same for the same number."""

from __future__ import annotations

import random

_TELLING = (0, 1, 2, 4, 8, 15, 16, 63, 64, 127, 128, 255)
_NUMBERS = (b"0", b"-1", b"18446744073709551616", b"1e400", b"0x", b'"\\ud800"', b"[" * 200, b"null", b"NaN", b"{}")
_PAGE = 4096


def mutated(seeds: tuple[bytes, ...], number: int) -> bytes:
    """The ``number``-th damaged input."""
    chance = random.Random(number)
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16, 64))):
        _once(data, chance)
    return bytes(data)


def _once(data: bytearray, chance: random.Random) -> None:
    if not data:
        return
    at = chance.randrange(len(data))
    how = chance.randrange(10)
    if how < 3:
        data[at] = chance.choice(_TELLING)
    elif how == 3:
        data[at] ^= 1 << chance.randrange(8)
    elif how == 4:
        # A database's header, and the schema after it, are small and tell the most.
        data[chance.randrange(min(len(data), 200))] = chance.choice(_TELLING)
    elif how == 5:
        size = chance.choice((1, 2, 4, 8, 24, 100))
        data[at : at + size] = bytes(chance.randrange(256) for _ in range(min(size, len(data) - at)))
    elif how == 6:
        source, size = chance.randrange(len(data)), chance.choice((1, 8, 24, 100))
        data[at : at + size] = data[source : source + size]
    elif how == 7 and len(data) > 2 * _PAGE:
        pages = len(data) // _PAGE
        one, other = chance.randrange(pages) * _PAGE, chance.randrange(pages) * _PAGE
        data[one : one + _PAGE] = data[other : other + _PAGE]
    elif how == 8:
        # Near the start of a page lie its kind, its cells and where they are.
        page = at // _PAGE * _PAGE
        data[min(len(data) - 1, page + chance.randrange(40))] = chance.choice(_TELLING)
    elif chance.random() < 0.5:
        data[at:at] = chance.choice(_NUMBERS)
    else:
        del data[at : at + chance.choice((1, 3, 24, 5000))]
