"""The command line of a program that Linux has just executed, from the top of its stack: argc, the addresses of the arguments, a null."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise

Reader = Callable[[int, int], bytes | None]

#: The end of user space, by word size in bytes.
_USER_END = {4: 1 << 32, 8: 1 << 47}

_PAGE = 4096

#: What is kept: a guest may give megabytes.
_MAX_ARGUMENTS = 64
_MAX_BYTES = 2048


def arguments(read: Reader, sp: int, word: int) -> list[str] | None:
    """The arguments of a new program whose stack pointer is ``sp``; ``None`` where the stack does not show them.

    ``read(address, size)`` gives guest memory, or ``None`` where nothing is mapped; ``word`` is 4 or 8. At the most 64 arguments
    and 2048 bytes of them are taken; bytes that are no UTF-8 come as backslash escapes.
    """
    (count,) = _words(read(sp, word), word) or (0,)
    if not 1 <= count <= _MAX_ARGUMENTS:
        return None
    pointers = _words(read(sp + word, (count + 1) * word), word)
    # The strings lie above the pointers, in the same order, and a null ends the list.
    if not pointers or pointers[-1] or any(low >= high for low, high in pairwise([sp, *pointers[:-1], _USER_END[word]])):
        return None
    first = pointers[0]
    text = _string_area(read, first)
    if not text:
        return None
    starts = [pointer - first for pointer in pointers[:-1] if pointer - first < len(text)]
    return [text[start:].split(b"\0", 1)[0].decode(errors="backslashreplace") for start in starts]


def _string_area(read: Reader, address: int) -> bytes:
    """What lies there, page by page, up to where nothing is mapped."""
    text = b""
    while len(text) < _MAX_BYTES:
        at = address + len(text)
        more = read(at, min(_MAX_BYTES - len(text), _PAGE - at % _PAGE))
        if more is None:
            break
        text += more
    return text


def _words(data: bytes | None, word: int) -> tuple[int, ...]:
    return () if data is None else struct.unpack(f"<{len(data) // word}{'I' if word == 4 else 'Q'}", data[: len(data) // word * word])
