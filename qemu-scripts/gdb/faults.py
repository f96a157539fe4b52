"""Guest page faults, told at the first instruction of the guest's handler: the #PF gate of the IDT says where that is."""

from __future__ import annotations

import stub as gdbstub
from mappings import BREAKPOINT, WRITES, Mappings, Spot
from memory import HOLE, PAGE, Ram, in_ram
from stream import ACCESS, ACCESS_FAULT, ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, Stream
from stub import Stub
from vcpu import Vcpu

#: What a page fault's error code may say: P, W, U, RSVD, I, PK, SS, and SGX.
_ERROR_BITS = 0x807F

#: Where a PC's firmware lies, up to the end of the hole.
_ROM = 0xC0000


class Faults:
    """The handler, wherever it is now: the gate is watched, the target is a breakpoint."""

    def __init__(self, stub: Stub, ram: Ram, stream: Stream, mappings: Mappings, vcpu: Vcpu) -> None:
        self._stub, self._ram, self._stream, self._mappings, self._vcpu = stub, ram, stream, mappings, vcpu
        self._idt: int | None = None
        self._gate: tuple[int, Spot] | None = None
        self.handler = 0
        """The handler's address; 0: none."""

    def read_idt(self) -> None:
        """Have QEMU's monitor say where the interrupt table is: no packet does."""
        for line in self._stub.monitor("info registers").splitlines():
            if line.startswith("IDT="):
                self._idt = int(line[4:].split()[0], 16)

    def in_frame(self, gfn: int) -> bool:
        """Whether the gate lies in a frame."""
        return self._gate is not None and self._gate[0] == gfn

    def look_up(self) -> None:
        """The #PF gate's target, as the descriptor table says now."""
        vcpu = self._vcpu
        size = 16 if vcpu.long_mode else 8
        where = vcpu.translate(self._idt + 14 * size) if self._idt is not None and vcpu.paging else None
        gate = (where >> 12, Spot(WRITES, where % PAGE, size)) if where is not None and in_ram(self._ram, where, size) else None
        if gate != self._gate:
            if self._gate is not None:
                self._mappings.forget(*self._gate)
            if gate is not None:
                self._mappings.want(*gate)
            self._gate = gate
        data = bytes(16)
        if where is not None:
            data = self._stub.read(where, size, True) or data if _ROM <= where < HOLE[1] else vcpu.read(where, size)
        handler = 0
        if data[5] & 0x80:
            handler = int.from_bytes(data[0:2] + data[6:8] + (data[8:12] if size == 16 else b""), "little")
        if handler != self.handler:
            if self.handler:
                self._mappings.no_stop_at(BREAKPOINT, self.handler, 1)
            if handler:
                self._mappings.stop_at(BREAKPOINT, handler, 1)
            self.handler = handler

    def record(self) -> None:
        """At the handler's first instruction: the access that faulted, from cr2 and the error code on the stack."""
        registers = self._stub.registers()
        stack = self._vcpu.translate(registers[gdbstub.RSP] & (0xFFFF_FFFF_FFFF_FFFF if self._vcpu.long_mode else 0xFFFF_FFFF))
        error = int.from_bytes(self._vcpu.read(stack, 4), "little") if stack is not None else 0
        if error & ~_ERROR_BITS:
            return
        flags = ACCESS_FAULT | (ACCESS_WRITE if error & 2 else 0) | (ACCESS_USER if error & 4 else 0) | (ACCESS_FETCH if error & 16 else 0)
        self._stream.event(ACCESS, flags, registers[gdbstub.CR2], 0)
        self._stream.faults += 1
