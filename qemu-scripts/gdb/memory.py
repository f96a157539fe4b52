"""Guest-physical memory: through the file that holds it, or through the stub."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator

PAGE = 4096

#: Between these a PC's reads may come from ROM or a device: no table lies there.
HOLE = (0xA0000, 0x100000)


class FileRam:
    """Guest RAM mapped from the file that QEMU keeps it in."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size
        self._map = mmap.mmap(self._fd, self.size, prot=mmap.PROT_READ)

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at a physical address that ``in_ram`` holds for."""
        return self._map[gpa : gpa + size]

    def used(self) -> Iterator[tuple[int, int]]:
        """Ranges that something has been written to: (from, to)."""
        at = 0
        while at < self.size:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError:
                return
            at = os.lseek(self._fd, start, os.SEEK_HOLE)
            yield start, at


class StubRam:
    """Guest RAM read through the stub, page by page."""

    def __init__(self, read: Callable[[int, int, bool], bytes | None], size: int) -> None:
        self._read = read
        self.size = size

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at a physical address; zero where the stub has none."""
        return self._read(gpa, size, True) or bytes(size)

    def used(self) -> Iterator[tuple[int, int]]:
        """All of it: there is no telling."""
        for start in range(0, self.size, 1 << 20):
            yield start, min(start + (1 << 20), self.size)


Ram = FileRam | StubRam


def in_ram(ram: Ram, gpa: int, size: int) -> bool:
    """Whether a range is RAM as the guest sees it."""
    return gpa + size <= ram.size and not (gpa + size > HOLE[0] and gpa < HOLE[1])
