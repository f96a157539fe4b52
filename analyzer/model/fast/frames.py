"""Guest frames: a table of what is known of each, and their content (``analyzer.model.memory``)."""

from __future__ import annotations

from typing import Any

from analyzer.model.fast.compiled import compiled, entry
from analyzer.model.fast.layout import CONTENT, ENTRIES, KEY, RMAP, SHADOWS, Ints

_PAGE_MASK = 0xFFF
_LOW32 = 0xFFFF_FFFF

#: 2^64 divided by the golden ratio, as a signed number: a multiplicative hash, whose high half is well mixed.
_MULTIPLIER = 0x9E37_79B9_7F4A_7C15 - (1 << 64)


@compiled
def frame_of(number: int) -> int:
    """The frame of a physical address, or of a cr3: every bit from 12 up, unsigned."""
    return number >> 12 & 0xF_FFFF_FFFF_FFFF


@compiled
def find(frames: Ints, gfn: int) -> int:
    """The frame's row, or of the empty row where it would be."""
    mask = len(frames) - 1
    row = gfn * _MULTIPLIER >> 32 & mask
    while frames[row, KEY] != gfn + 1 and frames[row, KEY] != 0:
        row = row + 1 & mask
    return row


@compiled
def known(vm: Any, frames: Ints, gfn: int) -> int:
    """The frame's row, made where it is new."""
    row = find(frames, gfn)
    if frames[row, KEY] == 0:
        frames[row, KEY] = gfn + 1
        vm.frames += 1
    return row


@entry
def rehash(frames: Ints, larger: Ints) -> None:
    """Fill a larger table with the rows of a smaller one."""
    for row in range(len(frames)):
        if frames[row, KEY]:
            place = find(larger, frames[row, KEY] - 1)
            larger[place, KEY] = frames[row, KEY]
            larger[place, CONTENT] = frames[row, CONTENT]
            larger[place, RMAP] = frames[row, RMAP]
            larger[place, SHADOWS] = frames[row, SHADOWS]


@compiled
def word_at(vm: Any, frames: Ints, gfn: int, offset: int) -> int:
    """Where in memory the 8-byte word lies that holds byte ``offset`` of the frame; -1 where it is zero: not RAM, or never filled."""
    if gfn >= vm.ram_pages:
        return -1
    content = frames[find(frames, gfn), CONTENT]
    return content * ENTRIES + (offset >> 3) if content else -1


@compiled
def content_of(vm: Any, frames: Ints, gfn: int) -> int:
    """The frame's place in memory, in frames, given one where it has none."""
    row = known(vm, frames, gfn)
    if not frames[row, CONTENT]:
        frames[row, CONTENT] = vm.contents
        vm.contents += 1
    return frames[row, CONTENT]


@compiled
def write(vm: Any, frames: Ints, memory: Ints, gfn: int, offset: int, size: int, value: int) -> None:
    """Store the low ``size`` bytes of ``value``, within one frame; a store outside RAM is dropped."""
    if gfn >= vm.ram_pages:
        return
    base = content_of(vm, frames, gfn) * ENTRIES
    if size == 8 and offset & 7 == 0:
        memory[base + (offset >> 3)] = value
        return
    for i in range(size):
        byte = value >> 8 * i & 0xFF if i < 8 else 0
        place, shift = base + (offset + i >> 3), 8 * (offset + i & 7)
        memory[place] = memory[place] & ~(0xFF << shift) | byte << shift


@compiled
def set_page(vm: Any, frames: Ints, memory: Ints, gfn: int, indexes: Any, words: Any, first: int, last: int) -> bool:
    """Make a frame hold the words ``first`` to ``last`` of a trace's contents and zeros; whether that changed it."""
    memory[:ENTRIES] = 0
    for i in range(first, last):
        memory[indexes[i]] = words[i]
    base = content_of(vm, frames, gfn) * ENTRIES
    changed = False
    for i in range(ENTRIES):
        changed |= memory[base + i] != memory[i]
        memory[base + i] = memory[i]
    return changed


@compiled
def read(memory: Ints, at: int, offset: int, entry_bytes: int) -> int:
    """The table entry of 4 or 8 bytes at byte ``offset`` of its frame, whose word lies at ``at``."""
    if at < 0:
        return 0
    if entry_bytes == 8:
        return memory[at]
    return memory[at] >> 8 * (offset & 4) & _LOW32


@compiled
def rewrite(memory: Ints, at: int, offset: int, entry_bytes: int, entry: int) -> None:
    """Put a table entry back where ``read`` found it."""
    if entry_bytes == 8:
        memory[at] = entry
    else:
        shift = 8 * (offset & 4)
        memory[at] = memory[at] & ~(_LOW32 << shift) | entry << shift
