"""The command line of a program that Linux has just executed, from the top of its stack.

At the exec's end the new user stack holds argc, the addresses of the arguments and a null; its address stands among the registers
that the kernel will return to user mode with, which it saves at the very top of the task's kernel stack.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise

Reader = Callable[[int, int], bytes | None]

#: THREAD_SIZE by word size in bytes, and the end of user space.
_STACK_BYTES = {4: 8 << 10, 8: 16 << 10}
_USER_END = {4: 0xC000_0000, 8: 1 << 47}

#: The user stack pointer is among the last words of the kernel's stack, whatever is above it.
_SAVED_WORDS = 12
_PAGE = 4096

#: What is kept: a guest may give megabytes.
_MAX_ARGUMENTS = 64
_MAX_BYTES = 2048


def arguments(read: Reader, kernel_sp: int, word: int) -> list[str] | None:
    """The program's arguments; ``None`` where the stack does not show them.

    ``read(address, size)`` gives guest memory, or ``None`` where nothing is mapped; ``word`` is 4 or 8. At the most 64 arguments
    and 2048 bytes of them are taken; bytes that are no UTF-8 come as backslash escapes.
    """
    top = (kernel_sp & -_STACK_BYTES[word]) + _STACK_BYTES[word]
    saved = _words(read(top - _SAVED_WORDS * word, _SAVED_WORDS * word), word)
    for sp in reversed(saved):
        if _PAGE <= sp < _USER_END[word] and sp % word == 0:
            found = _at(read, sp, word)
            if found is not None:
                return found
    return None


def _at(read: Reader, sp: int, word: int) -> list[str] | None:
    """The arguments of a new program whose stack pointer this is."""
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
