"""QEMU's gdb stub, spoken to by packets through gdb's own connection; and a clock that can stop a running guest."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import gdb

#: QEMU's numbers of the registers, and where each lies in the answer to `g`: (offset, bytes).
RSP, RIP, EFLAGS, CS, FS_BASE, GS_BASE = 7, 16, 17, 18, 24, 25
CR0, CR2, CR3, CR4, EFER = 27, 28, 29, 30, 32
_PLACES = {
    **{number: (8 * number, 8) for number in range(17)},
    **{number: (136 + 4 * (number - 17), 4) for number in range(17, 24)},
    **{number: (164 + 8 * (number - 24), 8) for number in range(24, 33)},
}

BREAKPOINT, WRITES, READS = 0, 2, 3

_INTERRUPT = b"\x03"
_MOST_BYTES = 2048
_AGAIN_SECONDS = 0.05


class GoneError(Exception):
    """The stub does not answer any more: QEMU ended, or its last answer said so (``clean``)."""

    def __init__(self, clean: bool = False) -> None:
        super().__init__("QEMU ended")
        self.clean = clean


class Stop(NamedTuple):
    """Why the guest stands still: a signal's number; for a watchpoint, where it starts."""

    signal: int
    watch: int | None


class Registers:
    """All registers at one stop, by QEMU's numbers."""

    def __init__(self, answer: bytes) -> None:
        self._bytes = bytes.fromhex(answer.decode())

    def __getitem__(self, number: int) -> int:
        offset, size = _PLACES[number]
        return int.from_bytes(self._bytes[offset : offset + size], "little")


class Stub:
    """The stub at the other end of gdb's connection. Raises ``GoneError`` when there is none."""

    def __init__(self, path: str) -> None:
        self._connection = gdb.selected_inferior().connection
        self.alarm = Alarm(path)
        self._physical = False

    def ask(self, packet: str) -> bytes:
        """The answer to a packet."""
        try:
            answer = self._connection.send_packet(packet)
        except (gdb.error, ValueError) as error:
            raise GoneError from error
        if answer is None or answer[:1] in (b"W", b"X"):
            raise GoneError(clean=answer is not None and answer[:1] == b"W")
        return answer

    def resume(self) -> Stop:
        """Let the guest run until it stops."""
        return _stop(self.ask("c"))

    def step(self) -> Stop:
        """Have the guest execute one instruction, whatever breakpoint is at it."""
        return _stop(self.ask("s"))

    def register(self, number: int) -> int:
        """One register."""
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}").decode()), "little")

    def registers(self) -> Registers:
        """All registers."""
        return Registers(self.ask("g"))

    def insert(self, kind: int, va: int, size: int) -> bool:
        """Stop at an address, or after stores to (loads from) a range; false where the stub refuses."""
        return self.ask(f"Z{kind},{va:x},{size:x}") == b"OK"

    def remove(self, kind: int, va: int, size: int) -> None:
        """Take that back."""
        self.ask(f"z{kind},{va:x},{size:x}")

    def read(self, address: int, size: int, physical: bool) -> bytes | None:
        """Memory by virtual or physical address; ``None`` where there is none."""
        if physical != self._physical:
            self.ask(f"Qqemu.PhyMemMode:{int(physical)}")
            self._physical = physical
        data = b""
        while len(data) < size:
            answer = self.ask(f"m{address + len(data):x},{min(size - len(data), _MOST_BYTES):x}")
            if answer[:1] == b"E":
                return None
            data += bytes.fromhex(answer.decode())
        return data

    def monitor(self, command: str) -> str:
        """What QEMU's monitor answers."""
        try:
            return gdb.execute(f"monitor {command}", to_string=True)
        except gdb.error as error:
            raise GoneError from error

    def leave_virtual(self) -> None:
        """What gdb itself reads from here on are virtual addresses again."""
        if self._physical:
            self.ask("Qqemu.PhyMemMode:0")
            self._physical = False


def _stop(answer: bytes) -> Stop:
    """A stop reply: ``T05thread:p01.01;watch:ffff888000001000;``."""
    text = answer.decode("latin-1")
    watch = None
    for part in text[3:].split(";"):
        name, _, value = part.partition(":")
        if name in ("watch", "rwatch", "awatch"):
            watch = int(value, 16)
    return Stop(int(text[1:3], 16), watch)


class Alarm:
    """Stops a running guest after a time, from a process of its own: while gdb waits for a stop nothing here runs.

    Any byte on the stub's socket stops a running guest, and is ignored by one that stands still.
    """

    def __init__(self, path: str) -> None:
        fd = _socket_to(path)
        read_end, self._write_end = os.pipe()
        if os.fork() == 0:
            try:
                os.close(self._write_end)
                _keep_only(fd, read_end)
                _ring(fd, read_end)
            finally:
                os._exit(0)
        os.close(read_end)

    def ring_after(self, seconds: float) -> None:
        """Ring after so long, instead of what was asked before, and again and again: the guest may not have run yet."""
        os.write(self._write_end, struct.pack("d", seconds))

    def cancel(self) -> None:
        """Do not ring."""
        os.write(self._write_end, struct.pack("d", -1))


def _socket_to(path: str) -> int:
    """Gdb's descriptor of its connection to the stub at ``path``."""
    for entry in Path("/proc/self/fd").iterdir():
        fd = int(entry.name)
        with contextlib.suppress(OSError):
            duplicate = socket.socket(fileno=os.dup(fd))
            with duplicate:
                if duplicate.family == socket.AF_UNIX and duplicate.getpeername() == path:
                    return fd
    raise GoneError


def _keep_only(*kept: int) -> None:
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(entry.name))


def _ring(fd: int, orders: int) -> None:
    """The alarm's process: ends when gdb does, because the orders' other end is then closed."""
    seconds: float | None = None
    while True:
        ready, _, _ = select.select([orders], [], [], seconds)
        if not ready:
            os.write(fd, _INTERRUPT)
            seconds = _AGAIN_SECONDS
            continue
        order = os.read(orders, 8 * 512)
        if not order:
            return
        (wanted,) = struct.unpack("d", order[-8:])
        seconds = wanted if wanted >= 0 else None
