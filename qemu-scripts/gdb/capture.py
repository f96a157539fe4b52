"""The capture itself: stops of the guest in, events out."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import sites
import stub as gdbstub
from faults import Faults
from hunt import Hunt
from mappings import BREAKPOINT, Mappings
from memory import PAGE, Ram, in_ram
from sites import What
from stream import INVLPG, SEEN_FOREIGN, SEEN_NET, Stream
from stub import Registers, Stop, Stub
from tables import Changes, Table, Tables
from vcpu import CR0_PG, Vcpu

_SIGTRAP, _SIGINT = 5, 2
_WIDEST_STORE = 16
_EARLY_SECONDS, _QUIET_SECONDS, _LOOK_SECONDS = 0.05, 0.2, 0.5

#: Instructions number general registers rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi; gdb rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp.
_GDB_NUMBERS = (0, 2, 3, 1, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)


class Ended(NamedTuple):
    """Why a slice of running ended: its time, a breakpoint or watchpoint of the recorder's, a signal; QEMU ended."""

    reason: str
    pc: int = 0
    number: int = 0


class Settings(NamedTuple):
    """How to capture. ``exact``: by watchpoints; else what differs at stops."""

    exact: bool
    retire_after_stores: int
    most_tables: int


class Capture:
    """One vCPU's paging, from stop to stop. The guest stands still whenever a method returns."""

    def __init__(self, stub: Stub, ram: Ram, stream: Stream, settings: Settings) -> None:
        self._stub, self._ram, self._stream, self._exact = stub, ram, stream, settings.exact
        self._mappings = Mappings(stub)
        self._tables = Tables(ram, stream, self._mappings, settings.retire_after_stores, settings.most_tables, settings.exact)
        self._vcpu = Vcpu(ram, stream, self._mappings, self._tables)
        self._faults = Faults(stub, ram, stream, self._mappings, self._vcpu)
        self._hunt = Hunt(stub, ram, self._mappings)
        self._own: dict[int, tuple[int, int, int]] = {}
        self._own_armed: set[int] = set()
        self._wide_segments: dict[int, bool] = {}
        self._at_breakpoint = False
        self._looked_at = 0.0
        self.missed = 0
        """Times that a control register was found changed by something that was not seen."""

    @property
    def refused(self) -> int:
        """Breakpoints and watchpoints that the stub refused."""
        return self._mappings.refused

    # -- life cycle --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The guest has been stopped, at its reset vector or anywhere: take its registers, find the code there is."""
        self._vcpu.set_identity(True)
        self._faults.read_idt()
        self._resolve(self._stub.registers(), load=False)
        if not self._vcpu.paging:
            self._hunt.begin()
        self._hunt.look()
        self._stream.flush()

    def finish(self) -> None:
        """Leave nothing in the stub."""
        self._mappings.disarm_all()
        self._stub.leave_virtual()
        self._stream.close()

    def add_stop(self, number: int, kind: int, va: int, size: int) -> None:
        """A breakpoint or watchpoint of the recorder's own."""
        self._own[number] = (kind, va, size)
        self._arm_own()

    def remove_stop(self, number: int) -> None:
        """Take it back."""
        stop = self._own.pop(number)
        if number in self._own_armed:
            self._own_armed.remove(number)
            self._mappings.no_stop_at(*stop)

    def _arm_own(self) -> None:
        """Arm those of the recorder's stops whose addresses are mapped: there may be one for each place where a kernel can be."""
        for number, stop in self._own.items():
            mapped = self._vcpu.translate(stop[1]) is not None
            if mapped and number not in self._own_armed:
                self._own_armed.add(number)
                self._mappings.stop_at(*stop)
            elif not mapped and number in self._own_armed:
                self._own_armed.remove(number)
                self._mappings.no_stop_at(*stop)

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> Ended:
        """Let the guest run for so long, or until something concerns the recorder."""
        deadline = time.monotonic() + seconds
        try:
            ended: Ended | None = None
            while ended is None:
                ended = self._go(deadline)
            self._stub.alarm.cancel()
            self._look_around()
            self._stub.leave_virtual()
        except gdbstub.GoneError as gone:
            self._stream.flush(closed=gone.clean)
            return Ended("exited" if gone.clean else "lost")
        self._stream.flush()
        return ended

    def _go(self, deadline: float) -> Ended | None:
        if self._at_breakpoint:
            self._at_breakpoint = False
            stop = self._pass_over()
            if stop is not None:
                return self._answer(stop, deadline)
        left = deadline - time.monotonic()
        if left <= 0:
            return Ended("slice")
        if time.monotonic() >= self._looked_at + _LOOK_SECONDS:
            self._look_around()
        # From this moment on, not until the slice's end: a guest that stops often needs no alarm.
        self._stub.alarm.ring_after(max(left, _QUIET_SECONDS) if self._vcpu.paging else _EARLY_SECONDS)
        return self._answer(self._stub.resume(), deadline)

    def _answer(self, stop: Stop, deadline: float) -> Ended | None:
        if stop.watch is not None:
            return self._on_watch(stop.watch)
        if stop.signal == _SIGTRAP:
            return self._on_breakpoint(self._pc())
        if stop.signal != _SIGINT:
            return Ended("signal")
        ended = self._settle()
        return Ended("slice") if ended is None and time.monotonic() >= deadline else ended

    def _settle(self) -> Ended | None:
        """After the alarm stopped the guest: have QEMU tell of a watchpoint that was hit at that very moment.

        It keeps that for the next stop of its own, and would take the next store for this one. A step is such a stop.
        """
        pc = self._pc()
        if self._mappings.stops_at(pc):
            return self._on_breakpoint(pc)
        stop = self._stub.step()
        return self._on_watch(stop.watch) if stop.watch is not None else None

    def _look_around(self) -> None:
        """The guest stands wherever it was: what has happened unseen, and what code has come."""
        self._notice()
        self._take_net(SEEN_FOREIGN if self._exact else SEEN_NET)
        self._hunt.look_if_due(_LOOK_SECONDS)
        self._looked_at = time.monotonic()

    def _take_net(self, seen: int) -> None:
        """Look at every table for changes."""
        for table in list(self._tables.by_frame.values()):
            changes = self._tables.changes(table)
            if changes and table.gfn in self._tables.by_frame:
                self._tables.store(table, changes, seen)

    # -- stops -------------------------------------------------------------------------------------------------------

    def _pc(self) -> int:
        """Where the guest stands, by linear address: the instruction pointer is relative to the segment, which 16-bit code uses."""
        pc, stops_at = self._stub.register(gdbstub.RIP), self._mappings.stops_at
        if self._vcpu.long_mode or stops_at(pc):
            return pc
        real = pc + (self._stub.register(gdbstub.CS) << 4)
        if stops_at(real):
            return real
        base = re.search(r"^CS =[0-9a-f]+ ([0-9a-f]+)", self._stub.monitor("info registers"), re.MULTILINE)
        return (pc + int(base[1], 16)) & 0xFFFF_FFFF if base else pc

    def _on_watch(self, va: int) -> Ended | None:
        own = [number for number, (kind, address, _) in self._own.items() if kind != BREAKPOINT and address == va]
        if own:
            return Ended("watch", self._stub.register(gdbstub.RIP), own[0])
        if not self._vcpu.long_mode:
            self._notice()
        if any(self._faults.in_frame(gfn) for gfn in self._mappings.watched(va)):
            self._faults.look_up()
        found = self._take_changes(va)
        if not self._hunt.stored_low(va) and not found:
            self._stored_the_same(va)
        return None

    def _take_changes(self, va: int) -> bool:
        """Record what a store changed in the page at an address, and beyond that page's edges: of two pages QEMU tells one.

        Whether it changed anything.
        """
        here = self._changes_at(va, range(PAGE))
        offsets = [offset for changes in here.values() for offset, _ in changes]
        below = self._changes_at(va - PAGE, range(PAGE - _WIDEST_STORE, PAGE)) if not offsets or min(offsets) < _WIDEST_STORE else {}
        above = self._changes_at(va + PAGE, range(_WIDEST_STORE)) if not offsets or max(offsets) >= PAGE - _WIDEST_STORE else {}
        found = {**below, **here, **above}
        for table, changes in found.items():
            if table.gfn in self._tables.by_frame:
                self._tables.store(table, changes)
        return bool(found)

    def _changes_at(self, va: int, places: range) -> dict[Table, Changes]:
        """The tables that are watched in the page at an address and differ there from what the stream has said; how."""
        tables = [self._tables.by_frame.get(gfn) for gfn in self._mappings.watched(va)]
        found = {table: [change for change in self._tables.changes(table) if change[0] in places] for table in tables if table is not None}
        return {table: changes for table, changes in found.items() if changes}

    def _stored_the_same(self, va: int) -> None:
        """A store that left the page as it was, unless the address maps some other page now."""
        gpa = self._vcpu.translate(va)
        table = self._tables.by_frame.get(gpa >> 12) if gpa is not None else None
        if table is not None:
            self._tables.store(table, [])

    def _on_breakpoint(self, pc: int) -> Ended | None:
        self._at_breakpoint = True
        if not self._exact:
            self._take_net(SEEN_NET)
        if pc == self._faults.handler:
            self._faults.record()
        self._hunt.landed(pc)
        for number, (kind, va, _) in self._own.items():
            if kind == BREAKPOINT and va == pc:
                return Ended("breakpoint", pc, number)
        return None

    def _pass_over(self) -> Stop | None:
        """Execute the instruction that the guest stands at, and record what it did; a stop that it made, if any."""
        before = self._stub.registers()
        instruction = sites.decode(self._code(self._pc()), self._is_64_bit_code(before[gdbstub.CS]))
        if instruction.what in (What.CR3, What.MODE):
            self._resolve(before, load=False)
        stop = self._stub.step()
        if instruction.what is not What.PLAIN:
            after = self._stub.registers()
            # An interrupt may have come instead: the guest will be here again.
            if instruction.what is What.MODE or after[gdbstub.RIP] == before[gdbstub.RIP] + instruction.size:
                self._executed(instruction, before, after)
        return stop if stop.watch is not None or stop.signal != _SIGTRAP else None

    def _executed(self, instruction: sites.Instruction, before: Registers, after: Registers) -> None:
        if instruction.what in (What.CR3, What.MODE):
            self._resolve(after, load=instruction.what is What.CR3)
            if not self._vcpu.paging:
                self._hunt.look_early()
            elif instruction.what is What.CR3:
                self._hunt.loaded()
        elif instruction.what is What.INVLPG and self._exact and instruction.operand is not None:
            self._stream.event(INVLPG, 0, self._address(instruction, before), 0)
        elif instruction.what is What.LIDT:
            self._faults.read_idt()
            self._faults.look_up()

    # -- registers and code ------------------------------------------------------------------------------------------

    def _notice(self) -> None:
        """A load that no instruction of ours made: a task switch, or code that was not found in time."""
        stub, vcpu = self._stub, self._vcpu
        if stub.register(gdbstub.CR3) != vcpu.cr3 or (stub.register(gdbstub.CR0) ^ vcpu.cr0) & CR0_PG:
            # Task switches are for 32-bit code.
            self.missed += vcpu.long_mode
            self._resolve(stub.registers(), load=False)

    def _resolve(self, now: Registers, load: bool) -> None:
        paging, long_mode = self._vcpu.paging, self._vcpu.long_mode
        if self._vcpu.resolve(now, load):
            if self._vcpu.long_mode != long_mode:
                self._wide_segments.clear()
            if self._vcpu.paging and not paging:
                self._hunt.paging_came()
            self._arm_own()
            self._faults.look_up()

    def _code(self, pc: int) -> bytes:
        """The bytes at an address, from ROM if need be."""
        gpa = self._vcpu.translate(pc)
        if gpa is not None and in_ram(self._ram, gpa, 16) and gpa % PAGE <= PAGE - 16:
            return self._ram.read(gpa, 16)
        return self._stub.read(pc, 16, False) or b""

    def _is_64_bit_code(self, selector: int) -> bool:
        """In long mode, the L bit of the code segment's descriptor, which QEMU's monitor tells; asked once for each selector."""
        if not self._vcpu.long_mode:
            return False
        if selector not in self._wide_segments:
            self._wide_segments[selector] = " CS64 " in self._stub.monitor("info registers")
        return self._wide_segments[selector]

    def _address(self, instruction: sites.Instruction, registers: Registers) -> int:
        """What an operand names."""
        operand = instruction.operand
        assert operand is not None
        wide = self._is_64_bit_code(registers[gdbstub.CS])
        va = operand.displacement
        if operand.base >= 0:
            va += registers[_GDB_NUMBERS[operand.base]]
        elif operand.base == -2 and wide:
            va += registers[gdbstub.RIP] + instruction.size
        if operand.index >= 0:
            va += registers[_GDB_NUMBERS[operand.index]] << operand.scale_shift
        if operand.address32:
            va &= 0xFFFF_FFFF
        if operand.segment >= 0:
            va += registers[gdbstub.FS_BASE if operand.segment == 4 else gdbstub.GS_BASE]
        return va & (0xFFFF_FFFF_FFFF_FFFF if wide else 0xFFFF_FFFF)
