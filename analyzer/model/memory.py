"""Guest memory as the model knows it: zero until an event says otherwise."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from x86.paging import PAGE_BYTES, PAGE_SHIFT


class GuestMemory:
    """Sparse physical memory of 4096-byte frames, little-endian; frames from ``ram_pages`` up are not RAM."""

    def __init__(self, ram_pages: int) -> None:
        self.ram_pages = ram_pages
        self._frames: dict[int, bytearray] = {}

    def is_ram(self, gfn: int) -> bool:
        """Whether the frame is RAM."""
        return gfn < self.ram_pages

    def read(self, gpa: int, size: int) -> int:
        """``size`` bytes at ``gpa``, within one page, as a number; zero outside RAM."""
        gfn = gpa >> PAGE_SHIFT
        frame = self._frames.get(gfn)
        if frame is None or gfn >= self.ram_pages:
            return 0
        offset = gpa & PAGE_BYTES - 1
        return int.from_bytes(frame[offset : offset + size], "little")

    def write(self, gpa: int, size: int, value: int) -> None:
        """Store the low ``size`` bytes of ``value`` at ``gpa``, within one page; a store outside RAM is dropped."""
        gfn = gpa >> PAGE_SHIFT
        if gfn >= self.ram_pages:
            return
        frame = self._frames.get(gfn)
        if frame is None:
            frame = self._frames[gfn] = bytearray(PAGE_BYTES)
        offset = gpa & PAGE_BYTES - 1
        frame[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def set_page(self, gfn: int, words: Iterable[tuple[int, int]]) -> bool:
        """Make a frame hold these (index, 8-byte word) pairs and zeros; whether that changed it.

        A frame outside RAM keeps them too, though nothing reads them there.
        """
        frame = bytearray(PAGE_BYTES)
        for index, word in words:
            frame[8 * index : 8 * index + 8] = word.to_bytes(8, "little")
        changed = self._frames.get(gfn, bytes(PAGE_BYTES)) != frame
        self._frames[gfn] = frame
        return changed

    def digest(self) -> tuple[int, int]:
        """How many frames are not all zero, and the CRC-32 over them: 8 bytes of gfn and 4096 of content each, by gfn."""
        crc, count = 0, 0
        for gfn in sorted(self._frames):
            frame = self._frames[gfn]
            if any(frame):
                count += 1
                crc = zlib.crc32(frame, zlib.crc32(gfn.to_bytes(8, "little"), crc))
        return count, crc
