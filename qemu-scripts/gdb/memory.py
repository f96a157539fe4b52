"""Guest-physical memory: through the file that holds it, or through the stub."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

PAGE = 4096
_CHUNK = 16 << 20

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

    def used(self) -> Iterator[tuple[int, bytes]]:
        """What something has been written to, range by range, each with its address."""
        at = 0
        while at < self.size:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError:
                return
            at = os.lseek(self._fd, start, os.SEEK_HOLE)
            yield start, self._map[start:at]


class StubRam:
    """Guest RAM read through the stub, page by page; all of it at once, through a file that QEMU is asked to write."""

    def __init__(self, read: Callable[[int, int, bool], bytes | None], monitor: Callable[[str], str], size: int) -> None:
        self._read, self._monitor = read, monitor
        self.size = size

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at a physical address; zero where the stub has none."""
        return self._read(gpa, size, True) or bytes(size)

    def used(self) -> Iterator[tuple[int, bytes]]:
        """All of it: there is no telling what was written to."""
        with tempfile.TemporaryDirectory(prefix="shadowtrace-") as folder:
            path = Path(folder) / "ram"
            self._monitor(f'pmemsave 0 {self.size} "{path}"')
            if path.exists() and path.stat().st_size == self.size:
                with path.open("rb") as file:
                    for start in range(0, self.size, _CHUNK):
                        yield start, file.read(_CHUNK)
                return
        for start in range(0, self.size, PAGE):
            yield start, self.read(start, PAGE)


Ram = FileRam | StubRam


def in_ram(ram: Ram, gpa: int, size: int) -> bool:
    """Whether a range is RAM as the guest sees it."""
    return gpa + size <= ram.size and not (gpa + size > HOLE[0] and gpa < HOLE[1])
