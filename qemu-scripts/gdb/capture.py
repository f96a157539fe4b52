"""The capture itself: stops of the guest in, events out."""

from __future__ import annotations

import time
from typing import NamedTuple

import sites
import stub as gdbstub
from mappings import BREAKPOINT, EXECUTABLE, WRITES, Mappings, Spot
from memory import HOLE, PAGE, Ram, in_ram
from sites import What
from stream import (
    ACCESS,
    ACCESS_FAULT,
    ACCESS_FETCH,
    ACCESS_USER,
    ACCESS_WRITE,
    CR3,
    EFER,
    INVLPG,
    PDPTES,
    REGS,
    SEEN_FOREIGN,
    SEEN_NET,
    Stream,
)
from stub import Registers, Stop, Stub
from tables import BASE32, BASE64, BIG, L2, L2_32, L4, L5, PRESENT, Table, Tables

CR0_PE, CR0_PG, CR0_TS, CR4_PSE, CR4_PAE, CR4_LA57, EFER_LMA = 1, 1 << 31, 1 << 3, 1 << 4, 1 << 5, 1 << 12, 1 << 10
_PF_ERROR_BITS = 0x807F
_SIGTRAP, _SIGINT = 5, 2

#: Where a PC's boot loaders put what they start: a boot sector, a kernel; and every kernel that is relocated is aligned to this.
_LANDINGS = (0x7C00, 0x100000)
_ALIGNMENT = 2 << 20
_MOST_LANDINGS = 1024

#: Where boot code puts what has to run in real mode or without paging; it is watched for until a kernel runs.
_LOW = (0x80000, 0xA0000)

#: Roots, the loaded one among them, under which addresses are kept armed.
_RECENT_ROOTS = 3
_MANY_BREAKPOINTS = 200

#: A scan of memory for instructions may take this share of the time.
_SCAN_SHARE = 0.1
_EARLY_SECONDS, _QUIET_SECONDS, _LOOK_SECONDS = 0.05, 0.2, 0.5


class Ended(NamedTuple):
    """Why a slice of running ended: its time, a breakpoint or watchpoint of the recorder's, a signal; QEMU ended."""

    reason: str
    pc: int
    number: int


class Settings(NamedTuple):
    """How to capture. ``exact``: by watchpoints; else what differs at stops."""

    exact: bool
    linger: int
    most_tables: int


class Capture:
    """One vCPU's paging, from stop to stop. The guest stands still whenever a method returns."""

    def __init__(self, stub: Stub, ram: Ram, stream: Stream, settings: Settings) -> None:
        self._stub, self._ram, self._stream, self._settings = stub, ram, stream, settings
        self._mappings = Mappings(stub)
        self._tables = Tables(ram, stream, self._mappings, settings.linger, settings.most_tables, settings.exact)
        self._known = False
        self._cr0 = self._cr3 = self._cr4 = self._efer = 0
        self._pdptes: tuple[int, ...] = (0, 0, 0, 0)
        self._roots: list[Table] = []
        self._recent: list[list[Table]] = []
        self._idt: int | None = None
        self._gate: tuple[int, Spot] | None = None
        self._handler = 0
        self._at_stop = False
        self._wide_segments: dict[int, bool] = {}
        self._landings: set[int] = set()
        self._low_watched = False
        self._own: dict[int, tuple[int, int, int]] = {}
        self._own_armed: set[int] = set()
        self._sites: dict[int, int] = {}
        self._identity = False
        self._scanned_at = self._looked_at = 0.0
        self._scan_seconds = 0.0
        self.missed = 0
        """Times that a control register was found changed by something that was not seen."""
        self.same_value = 0
        """Stores that changed nothing but accessed and dirty bits."""
        self.foreign = 0

    # -- life cycle --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The guest has been stopped, at its reset vector or anywhere: take its registers, find the code there is."""
        self._set_identity(True)
        self._read_idt()
        self._resolve(self._stub.registers(), load=False)
        if not self._cr0 & CR0_PG:
            self._landings.update((*_LANDINGS, *range(_ALIGNMENT, self._ram.size, _ALIGNMENT)[:_MOST_LANDINGS]))
            for address in self._landings:
                self._mappings.stop_at(BREAKPOINT, address, 1)
            self._scan_rom()
        self._scan()
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
            mapped = self._translate(stop[1]) is not None
            if mapped and number not in self._own_armed:
                self._own_armed.add(number)
                self._mappings.stop_at(*stop)
            elif not mapped and number in self._own_armed:
                self._own_armed.remove(number)
                self._mappings.no_stop_at(*stop)

    def run(self, seconds: float) -> Ended:
        """Let the guest run for so long, or until something concerns the recorder."""
        deadline = time.monotonic() + seconds
        try:
            ended: Ended | None = None
            while ended is None:
                ended = self._go(deadline)
            self._stub.alarm.cancel()
            self._look_around()
        except gdbstub.GoneError as gone:
            self._stream.flush(closed=gone.clean)
            return Ended("exited" if gone.clean else "lost", 0, 0)
        self._stub.leave_virtual()
        self._stream.flush()
        return ended

    def _go(self, deadline: float) -> Ended | None:
        if self._at_stop:
            self._at_stop = False
            stop = self._pass_over()
            if stop is not None:
                return self._answer(stop, deadline)
        left = deadline - time.monotonic()
        if left <= 0:
            return Ended("slice", 0, 0)
        if time.monotonic() >= self._looked_at + _LOOK_SECONDS:
            self._look_around()
        # From this moment on, not until the slice's end: a guest that stops often needs no alarm.
        self._stub.alarm.ring_after(max(left, _QUIET_SECONDS) if self._cr0 & CR0_PG else _EARLY_SECONDS)
        return self._answer(self._stub.resume(), deadline)

    def _answer(self, stop: Stop, deadline: float) -> Ended | None:
        if stop.watch is not None:
            return self._on_watch(stop.watch)
        if stop.signal == _SIGTRAP:
            return self._on_breakpoint(self._pc())
        if stop.signal != _SIGINT:
            return Ended("signal", 0, 0)
        ended = self._settle()
        if ended is None and time.monotonic() >= deadline:
            ended = Ended("slice", 0, 0)
        return ended

    def _settle(self) -> Ended | None:
        """After the alarm stopped the guest: have QEMU tell of a watchpoint that was hit at that very moment.

        It keeps that for the next stop of its own, and would take the next store for this one. A step is such a stop.
        """
        pc = self._pc()
        if self._mappings.stops_at(pc):
            return self._on_breakpoint(pc)
        stop = self._stub.step()
        return self._on_watch(stop.watch) if stop.watch is not None else None

    # -- stops -------------------------------------------------------------------------------------------------------

    def _pc(self) -> int:
        """Where the guest stands, by linear address: in real mode the instruction pointer is relative to the segment."""
        pc = self._stub.register(gdbstub.RIP)
        return pc if self._cr0 & CR0_PE else pc + (self._stub.register(gdbstub.CS) << 4)

    def _on_watch(self, va: int) -> Ended | None:
        own = [number for number, (kind, address, _) in self._own.items() if kind != BREAKPOINT and address == va]
        if own:
            return Ended("watch", self._stub.register(gdbstub.RIP), own[0])
        if not self._efer & EFER_LMA:
            self._notice()
        found = False
        for gfn in self._mappings.watched(va):
            if self._gate is not None and gfn == self._gate[0]:
                self._look_up_handler()
            table = self._tables.by_frame.get(gfn)
            changes = self._tables.changes(table) if table is not None else []
            if table is not None and changes:
                self._tables.store(table, changes)
                found = True
        if va == _LOW[0]:
            self._find_sites(_LOW[0], self._ram.read(_LOW[0], _LOW[1] - _LOW[0]))
        elif not found:
            self._stored_the_same(va)
        return None

    def _stored_the_same(self, va: int) -> None:
        """A store that left the page as it was, unless the address maps some other page now."""
        gpa = self._translate(va)
        table = self._tables.by_frame.get(gpa >> 12) if gpa is not None else None
        if table is not None:
            self.same_value += 1
            self._tables.store(table, [])

    def _on_breakpoint(self, pc: int) -> Ended | None:
        self._at_stop = True
        if not self._settings.exact:
            self._take_net(SEEN_NET)
        if pc == self._handler:
            self._record_fault()
        if pc in self._landings:
            self._landed(pc)
        for number, (kind, va, _) in self._own.items():
            if kind == BREAKPOINT and va == pc:
                return Ended("breakpoint", pc, number)
        return None

    def _landed(self, pc: int) -> None:
        """Code that was put into memory begins to run. An aligned address is a kernel's: no more of those are waited for."""
        for address in self._landings if pc >= _ALIGNMENT else {pc}:
            self._mappings.no_stop_at(BREAKPOINT, address, 1)
        self._landings = set() if pc >= _ALIGNMENT else self._landings - {pc}
        if self._low_watched and not self._landings:
            self._low_watched = False
            self._mappings.no_stop_at(WRITES, _LOW[0], _LOW[1] - _LOW[0])
        self._scan()

    def _pass_over(self) -> Stop | None:
        """Execute the instruction that the guest stands at, and record what it did; a stop that it made, if any."""
        before = self._stub.registers()
        pc = self._pc()
        instruction = sites.decode(self._code(pc), self._is_64_bit_code(before[gdbstub.CS]))
        if instruction.what in (What.CR3, What.MODE):
            self._resolve(before, load=False)
        stop = self._stub.step()
        if instruction.what is not What.PLAIN:
            after = self._stub.registers()
            if after[gdbstub.RIP] == before[gdbstub.RIP] + instruction.size or instruction.what is What.MODE:
                self._executed(instruction, before, after)
        return stop if stop.watch is not None or stop.signal != _SIGTRAP else None

    def _executed(self, instruction: sites.Instruction, before: Registers, after: Registers) -> None:
        if instruction.what in (What.CR3, What.MODE):
            self._resolve(after, load=instruction.what is What.CR3)
            if not self._cr0 & CR0_PG:
                self._scan_if_due(0.0)
        elif instruction.what is What.INVLPG and self._settings.exact and instruction.operand is not None:
            self._stream.event(INVLPG, 0, self._address(instruction, before), 0)
        elif instruction.what is What.LIDT:
            self._read_idt()
            self._look_up_handler()

    def _record_fault(self) -> None:
        """At the page-fault handler's first instruction: the access that faulted, from cr2 and the error code on the stack."""
        registers = self._stub.registers()
        stack = self._translate(registers[gdbstub.RSP] & (0xFFFF_FFFF_FFFF_FFFF if self._efer & EFER_LMA else 0xFFFF_FFFF))
        error = int.from_bytes(self._read(stack, 4), "little") if stack is not None else 0
        if error & ~_PF_ERROR_BITS:
            return
        flags = ACCESS_FAULT | (ACCESS_WRITE if error & 2 else 0) | (ACCESS_USER if error & 4 else 0) | (ACCESS_FETCH if error & 16 else 0)
        self._stream.event(ACCESS, flags, registers[gdbstub.CR2], 0)
        self._stream.faults += 1

    def _look_around(self) -> None:
        """The guest stands wherever it was: what has happened unseen, and what code has come."""
        self._notice()
        self._take_net(SEEN_FOREIGN if self._settings.exact else SEEN_NET)
        self._scan_if_due(0.5)
        self._looked_at = time.monotonic()

    def _take_net(self, seen: int) -> None:
        """Look at every table for changes."""
        for table in list(self._tables.by_frame.values()):
            changes = self._tables.changes(table)
            if changes and table.gfn in self._tables.by_frame:
                self.foreign += seen == SEEN_FOREIGN
                self._tables.store(table, changes, seen)

    # -- registers ---------------------------------------------------------------------------------------------------

    def _notice(self) -> None:
        """A load that no instruction of ours made: a task switch, or code that was not found in time."""
        if self._stub.register(gdbstub.CR3) != self._cr3 or self._stub.register(gdbstub.CR0) & CR0_PG != self._cr0 & CR0_PG:
            self._resolve(self._stub.registers(), load=False)

    def _resolve(self, now: Registers, load: bool) -> None:
        """Record what the registers say, if it is new; ``load``: an instruction loaded cr3, perhaps with the same value."""
        cr0, cr3, cr4, efer = (now[number] for number in (gdbstub.CR0, gdbstub.CR3, gdbstub.CR4, gdbstub.EFER))
        mode = not self._known or bool((cr0 ^ self._cr0) & ~CR0_TS) or cr4 != self._cr4 or efer != self._efer
        loaded = load or cr3 != self._cr3
        if not mode and not loaded:
            return
        self._known = True
        if loaded and not self._cr0 & CR0_PG:
            self._record_cr3(cr3)
            loaded = False
        if mode:
            self._record_mode(cr0, cr4, efer)
        if loaded:
            self._record_cr3(cr3)
        self._look_up_handler()

    def _record_cr3(self, cr3: int) -> None:
        self._cr3 = cr3
        sides = []
        if self._is_pae():
            entries = self._four_pointers()
            sides = [(PDPTES, 0, 0, entries[0], entries[1]), (PDPTES, 0, 0, entries[2], entries[3])]
        self._load_roots()
        self._stream.event(CR3, 1 if sides else 0, cr3, 0, sides)

    def _record_mode(self, cr0: int, cr4: int, efer: int) -> None:
        was_pae = self._is_pae()
        self._cr0, self._cr4, self._efer = cr0, cr4, efer
        self._mappings.five_levels = bool(cr4 & CR4_LA57)
        self._tables.long_mode = bool(efer & EFER_LMA)
        self._wide_segments.clear()
        self._tables.set_pse(bool(cr4 & CR4_PSE))
        self._set_identity(not cr0 & CR0_PG)
        if cr0 & CR0_PG and self._landings and not self._low_watched:
            self._low_watched = True
            self._mappings.stop_at(WRITES, _LOW[0], _LOW[1] - _LOW[0])
        if self._is_pae():
            self._four_pointers()
            if not was_pae:
                self._tables.take_again((self._cr3 & 0xFFFF_FFFF) >> 12)
        self._load_roots()
        self._stream.event(REGS, 0, cr0, cr4, [(EFER, 0, 0, efer, 0)])

    def _is_pae(self) -> bool:
        return bool(self._cr0 & CR0_PG and self._cr4 & CR4_PAE and not self._efer & EFER_LMA)

    def _four_pointers(self) -> tuple[int, ...]:
        data = self._read(self._cr3 & 0xFFFF_FFE0, 32)
        self._pdptes = tuple(int.from_bytes(data[at : at + 8], "little") for at in range(0, 32, 8))
        return self._pdptes

    def _load_roots(self) -> None:
        tables, roots = self._tables, []
        if self._cr0 & CR0_PG and self._is_pae():
            for index, pointer in enumerate(self._pdptes):
                if pointer & PRESENT:
                    roots.append(tables.load_root((pointer & BASE64) >> 12, L2, index << 30))
        elif self._cr0 & CR0_PG:
            kind = (L5 if self._cr4 & CR4_LA57 else L4) if self._efer & EFER_LMA else L2_32
            roots.append(tables.load_root((self._cr3 & (BASE32 if kind == L2_32 else BASE64)) >> 12, kind, 0))
        for root in self._roots:
            tables.unload_root(root)
        self._roots = [root for root in roots if root is not None]
        self._rest_older()
        self._arm_own()

    def _rest_older(self) -> None:
        """Roots that were not loaded lately translate nothing now: take back what is armed through them alone.

        Boot loaders leave roots behind that map all memory as code, and every breakpoint slows the guest.
        """
        most = 1 if self._mappings.breakpoints > _MANY_BREAKPOINTS else _RECENT_ROOTS
        recent = [*(roots for roots in self._recent if roots != self._roots), self._roots]
        self._recent = recent[-most:]
        kept = {table.gfn for roots in self._recent for table in roots}
        for roots in recent[:-most]:
            for table in roots:
                if table.gfn not in kept:
                    self._tables.rest(table)

    def _set_identity(self, on: bool) -> None:
        """With paging off every frame lies at its own address."""
        if on != self._identity:
            self._identity = on
            (self._mappings.add if on else self._mappings.drop)(EXECUTABLE, 0, self._ram.size // PAGE)

    # -- memory ------------------------------------------------------------------------------------------------------

    def _read(self, gpa: int, size: int) -> bytes:
        return self._ram.read(gpa, size) if in_ram(self._ram, gpa, size) else bytes(size)

    def _code(self, pc: int) -> bytes:
        """The bytes at an address, from ROM if need be."""
        gpa = self._translate(pc)
        if gpa is not None and in_ram(self._ram, gpa, 16) and gpa % PAGE <= PAGE - 16:
            return self._ram.read(gpa, 16)
        return self._stub.read(pc, 16, False) or b""

    def _translate(self, va: int) -> int | None:
        """Where a virtual address lies, by the tables as they are."""
        if not self._cr0 & CR0_PG:
            return va if va < self._ram.size else None
        wide = bool(self._cr4 & CR4_PAE)
        base, size, bits = (BASE64, 8, 9) if wide else (BASE32, 4, 10)
        level = (5 if self._cr4 & CR4_LA57 else 4) if self._efer & EFER_LMA else 2
        table = self._cr3 & base
        if self._is_pae():
            pointer = self._pdptes[va >> 30 & 3]
            if not pointer & PRESENT:
                return None
            table = pointer & base
        while True:
            shift = 12 + (level - 1) * bits
            entry = int.from_bytes(self._read(table + (va >> shift & (1 << bits) - 1) * size, size), "little")
            if not entry & PRESENT:
                return None
            big = 1 < level <= 3 and entry & BIG and (wide or self._cr4 & CR4_PSE)
            if level == 1 or big:
                mask = (1 << shift) - 1
                return entry & base & ~mask | va & mask
            table = entry & base
            level -= 1

    def _address(self, instruction: sites.Instruction, registers: Registers) -> int:
        """What an operand names."""
        operand = instruction.operand
        assert operand is not None
        order = (0, 2, 3, 1, 7, 6, 4, 5)
        long_mode = self._is_64_bit_code(registers[gdbstub.CS])
        va = operand.displacement
        if operand.base >= 0:
            va += registers[order[operand.base] if operand.base < 8 else operand.base]
        elif operand.base == -2 and long_mode:
            va += registers[gdbstub.RIP] + instruction.size
        if operand.index >= 0:
            va += registers[order[operand.index] if operand.index < 8 else operand.index] << operand.scale_shift
        if operand.address32:
            va &= 0xFFFF_FFFF
        if operand.segment >= 0:
            va += registers[gdbstub.FS_BASE if operand.segment == 4 else gdbstub.GS_BASE]
        return va & (0xFFFF_FFFF_FFFF_FFFF if long_mode else 0xFFFF_FFFF)

    def _is_64_bit_code(self, selector: int) -> bool:
        """In long mode, the L bit of the code segment's descriptor, which QEMU's monitor tells; asked once for each selector."""
        if not self._efer & EFER_LMA:
            return False
        if selector not in self._wide_segments:
            self._wide_segments[selector] = " CS64 " in self._stub.monitor("info registers")
        return self._wide_segments[selector]

    # -- the page-fault handler --------------------------------------------------------------------------------------

    def _read_idt(self) -> None:
        for line in self._stub.monitor("info registers").splitlines():
            if line.startswith("IDT="):
                self._idt = int(line[4:].split()[0], 16)

    def _look_up_handler(self) -> None:
        """Gate 14's target, as the descriptor table says now; the gate is watched, the target a breakpoint."""
        size = 16 if self._efer & EFER_LMA else 8
        where = self._translate(self._idt + 14 * size) if self._idt is not None and self._cr0 & CR0_PG else None
        gate = (where >> 12, Spot(WRITES, where % PAGE, size)) if where is not None and in_ram(self._ram, where, size) else None
        if gate != self._gate:
            if self._gate is not None:
                self._mappings.forget(*self._gate)
            if gate is not None:
                self._mappings.want(*gate)
            self._gate = gate
        data = self._read(where, size) if where is not None else bytes(16)
        handler = 0
        if data[5] & 0x80:
            handler = int.from_bytes(data[0:2] + data[6:8] + (data[8:12] if size == 16 else b""), "little")
        if handler != self._handler:
            if self._handler:
                self._mappings.no_stop_at(BREAKPOINT, self._handler, 1)
            if handler:
                self._mappings.stop_at(BREAKPOINT, handler, 1)
            self._handler = handler

    # -- where instructions lie --------------------------------------------------------------------------------------

    def _scan_rom(self) -> None:
        """What lies in ROM as the machine comes up, at its addresses; RAM may take its place later."""
        start, size = 0xC0000, HOLE[1] - 0xC0000
        self._find_sites(start, self._stub.read(start, size, True) or b"")

    def _scan_if_due(self, seconds: float) -> None:
        if time.monotonic() >= self._scanned_at + max(seconds, self._scan_seconds / _SCAN_SHARE):
            self._scan()

    def _scan(self) -> None:
        """Look through memory for instructions that matter."""
        began = time.monotonic()
        for start, data in self._ram.used():
            self._find_sites(start, data)
        self._scanned_at = time.monotonic()
        self._scan_seconds = self._scanned_at - began

    def _find_sites(self, start: int, data: bytes) -> None:
        for offset in sites.candidates(data):
            self._want_site(start + offset)

    def _want_site(self, gpa: int) -> None:
        if gpa not in self._sites:
            self._sites[gpa] = gpa
            self._mappings.want(gpa >> 12, Spot(BREAKPOINT, gpa % PAGE, 1))
