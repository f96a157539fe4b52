"""The event table straight out of the pages of a trace file, compiled: what SQLite would give, without an object for each number.

SQLite's file format (https://www.sqlite.org/fileformat.html) is a public contract. What is not plainly as expected here is
left to SQLite: an answer of -1 means "ask it instead". Nothing is ever read past a page.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_LEAF = 13
_INTERIOR = 5

#: Columns of the table: the key, which is the rowid, and five integers.
_COLUMNS = 6

#: Bytes of an integer by its serial type; 0, 8 and 9 stand for NULL, 0 and 1.
_SIZES = (0, 1, 2, 3, 4, 6, 8, 0, 0, 0)


@numba.njit(nogil=True, cache=True)
def leaves(pages: Bytes, root: int, found: Ints) -> int:
    """Fill ``found`` with the numbers of the table's leaf pages, in order of key; how many, -1 where a page is not as expected.

    ``pages`` is (pages, page size); page numbers count from 1.
    """
    count, size = 0, pages.shape[1]
    numbers = np.zeros(64, np.int64)
    cells = np.zeros(64, np.int64)
    depth = 0
    numbers[0] = root
    while depth >= 0:
        number = numbers[depth]
        if number < 2 or number > len(pages):
            return -1
        page = pages[number - 1]
        if page[0] == _LEAF:
            if count == len(found):
                return -1
            found[count] = number
            count += 1
            depth -= 1
            continue
        if page[0] != _INTERIOR or depth == 63:
            return -1
        cell, total = cells[depth], np.int64(page[3]) << 8 | page[4]
        if cell > total:
            depth -= 1
            continue
        at = 8
        if cell < total:
            pointer = 12 + 2 * cell
            if pointer + 2 > size:
                return -1
            at = np.int64(page[pointer]) << 8 | page[pointer + 1]
            if at + 4 > size:
                return -1
        cells[depth] = cell + 1
        depth += 1
        numbers[depth] = np.int64(page[at]) << 24 | np.int64(page[at + 1]) << 16 | np.int64(page[at + 2]) << 8 | page[at + 3]
        cells[depth] = 0
    return count


@numba.njit(nogil=True, cache=True)
def rows(pages: Bytes, numbers: Ints, out: Ints) -> int:
    """Fill the columns of ``out`` (6, n) with the rows of these leaf pages; how many, -1 where something is not as expected."""
    count, size = 0, pages.shape[1]
    for number in numbers:
        page = pages[number - 1]
        total = np.int64(page[3]) << 8 | page[4]
        if page[0] != _LEAF or 8 + 2 * total > size or count + total > out.shape[1]:
            return -1
        for cell in range(total):
            at = np.int64(page[8 + 2 * cell]) << 8 | page[9 + 2 * cell]
            # No cell is longer than this; one that lies at the page's end is looked at byte by byte by SQLite instead.
            if at + 4 > size:
                return -1
            payload = np.int64(page[at])
            at += 1
            if payload & 0x80:
                return -1
            key = np.int64(0)
            longest = at + 8
            while True:
                # The ninth byte of such a number has no bit to end it.
                if at >= size or at == longest:
                    return -1
                byte = np.int64(page[at])
                at += 1
                key = key << 7 | byte & 0x7F
                if not byte & 0x80:
                    break
            if at + payload > size or payload < _COLUMNS + 1:
                return -1
            header, end = np.int64(page[at]), at + payload
            body = at + header
            if header < _COLUMNS + 1 or body > end or page[at + 1] != 0:
                return -1
            out[0, count] = key
            for column in range(1, _COLUMNS):
                kind = np.int64(page[at + 1 + column])
                if kind == 0 or kind > 9 or kind == 7:
                    return -1
                value = np.int64(kind == 9)
                length = _SIZES[kind]
                if length:
                    if body + length > end:
                        return -1
                    value = np.int64(np.int8(page[body]))
                    for i in range(1, length):
                        value = value << 8 | page[body + i]
                    body += length
                out[column, count] = value
            count += 1
    return count
