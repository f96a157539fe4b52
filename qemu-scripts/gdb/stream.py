"""Events as the records of qemu-scripts/plugin/shadowtrace.h, into the pipe to the recorder; counters into the shared page."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence

REGS, CR3, WRITE, PAGE, ACCESS, INVLPG = 1, 2, 3, 4, 5, 6
EFER, PDPTES, WORDS = 16, 17, 18
NO_WORD = 0xFFFF_FFFF

ACCESS_WRITE, ACCESS_USER, ACCESS_FETCH, ACCESS_FAULT = 1, 2, 4, 8
SEEN_EXACT, SEEN_NET, SEEN_FOREIGN = 0, 1, 3

_RECORD = struct.Struct("<BBHIQQ")
_CONTROL = struct.Struct("<17Q")
#: Events of vCPU 0, behind what the recorder says.
_OF_VCPU = struct.Struct("<Q")
_OF_VCPU_AT = _CONTROL.size + 8
_MAGIC = 0x5368547230303031
_FLUSH_BYTES = 1 << 16
_WORDS = struct.Struct("<512Q")


class Stream:
    """The one vCPU's events. ``tables``, ``peak``, ``refused`` and ``faults`` are shown to the recorder at each flush."""

    def __init__(self, stream_path: str, control_path: str) -> None:
        self._fd = os.open(stream_path, os.O_WRONLY)
        control = os.open(control_path, os.O_RDWR)
        self._control = mmap.mmap(control, mmap.PAGESIZE)
        os.close(control)
        self._buffer = bytearray()
        self._dropped = 0
        self._by_kind = [0] * 8
        self.events = 0
        self.tables = self.peak = self.refused = self.faults = 0
        self.flush()

    def event(self, kind: int, flags: int, addr: int, value: int, sides: Sequence[tuple[int, int, int, int, int]] = ()) -> None:
        """One event and its side records: (kind, flags, seq, addr, value)."""
        self._buffer += _RECORD.pack(kind, 0, flags, self.events & 0xFFFF_FFFF, addr, value)
        self.events += 1
        self._by_kind[kind] += 1
        for side, side_flags, seq, side_addr, side_value in sides:
            self._buffer += _RECORD.pack(side, 0, side_flags, seq, side_addr, side_value)
        if len(self._buffer) >= _FLUSH_BYTES:
            self.flush()

    def content(self, gfn: int, page: bytes) -> None:
        """A page's content: its words that are not zero, two to a side record."""
        words = [(index, word) for index, word in enumerate(_WORDS.unpack(page)) if word]
        sides = []
        for at in range(0, len(words), 2):
            index, word = words[at]
            second, second_word = words[at + 1] if at + 1 < len(words) else (NO_WORD, 0)
            sides.append((WORDS, index, second, word, second_word))
        self.event(PAGE, 0, gfn << 12, len(sides), sides)

    def flush(self, closed: bool = False) -> None:
        """Have everything reach the recorder; a full pipe makes the guest, which stands still now, wait."""
        data = memoryview(bytes(self._buffer))
        self._buffer.clear()
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:
                self._dropped += len(data) // _RECORD.size
                break
        counters = (self.events, self._dropped, self.tables, self.peak, self.refused, self.faults, 0, int(closed))
        _CONTROL.pack_into(self._control, 0, _MAGIC, *counters, *self._by_kind)
        _OF_VCPU.pack_into(self._control, _OF_VCPU_AT, self.events)

    def close(self) -> None:
        """The last record is out."""
        self.flush(closed=True)
        os.close(self._fd)
