"""The vCPU's paging registers: what instructions did to them, which roots they load, where addresses lead."""

from __future__ import annotations

import stub as gdbstub
from mappings import EXECUTABLE, Mappings
from memory import PAGE, Ram, in_ram
from stream import CR3, EFER, PDPTES, REGS, Stream
from stub import Registers
from tables import ACCESSED, BASE32, BASE64, BIG, L2, L2_32, L4, L5, PRESENT, Table, Tables

CR0_PG, CR0_TS = 1 << 31, 1 << 3
CR4_PSE, CR4_PAE, CR4_LA57 = 1 << 4, 1 << 5, 1 << 12
EFER_LMA = 1 << 10

#: Roots, the loaded one among them, under which addresses are kept armed; and where that makes too many breakpoints, that one alone.
_RECENT_ROOTS = 3
_MANY_BREAKPOINTS = 200


class Vcpu:
    """What the stream has said of the one vCPU's registers, kept in step by ``resolve``."""

    def __init__(self, ram: Ram, stream: Stream, mappings: Mappings, tables: Tables) -> None:
        self._ram, self._stream, self._mappings, self._tables = ram, stream, mappings, tables
        self._known = False
        self._cr4 = self._efer = 0
        self._pdptes: tuple[int, ...] = (0, 0, 0, 0)
        self._roots: list[Table] = []
        self._recent: list[list[Table]] = []
        self._identity = False
        self.cr0 = self.cr3 = 0

    @property
    def paging(self) -> bool:
        """Whether paging is on."""
        return bool(self.cr0 & CR0_PG)

    @property
    def long_mode(self) -> bool:
        """Whether it is in long mode, compatibility code included."""
        return bool(self._efer & EFER_LMA)

    def resolve(self, now: Registers, load: bool) -> bool:
        """Record what the registers say, if it is new; ``load``: an instruction loaded cr3, perhaps with the same value.

        True where something was recorded.
        """
        cr0, cr3, cr4, efer = (now[number] for number in (gdbstub.CR0, gdbstub.CR3, gdbstub.CR4, gdbstub.EFER))
        mode = not self._known or bool((cr0 ^ self.cr0) & ~CR0_TS) or cr4 != self._cr4 or efer != self._efer
        loaded = load or cr3 != self.cr3
        if not mode and not loaded:
            return False
        self._known = True
        if loaded and not self.paging:
            self._record_cr3(cr3)
            loaded = False
        if mode:
            self._record_mode(cr0, cr4, efer)
        if loaded:
            self._record_cr3(cr3)
        return True

    def _record_cr3(self, cr3: int) -> None:
        self.cr3 = cr3
        sides = []
        if self._is_pae():
            entries = self._four_pointers()
            sides = [(PDPTES, 0, 0, entries[0], entries[1]), (PDPTES, 0, 0, entries[2], entries[3])]
        self._load_roots()
        self._stream.event(CR3, 1 if sides else 0, cr3, 0, sides)

    def _record_mode(self, cr0: int, cr4: int, efer: int) -> None:
        was_pae = self._is_pae()
        self.cr0, self._cr4, self._efer = cr0, cr4, efer
        self._mappings.five_levels = bool(cr4 & CR4_LA57)
        self._tables.long_mode = self.long_mode
        self._tables.set_pse(bool(cr4 & CR4_PSE))
        self.set_identity(not self.paging)
        if self._is_pae():
            self._four_pointers()
            if not was_pae:
                self._tables.take_pdpt(self.cr3 & 0xFFFF_FFE0, self._pdptes)
        self._load_roots()
        self._stream.event(REGS, 0, cr0, cr4, [(EFER, 0, 0, efer, 0)])

    def _is_pae(self) -> bool:
        return bool(self.paging and self._cr4 & CR4_PAE and not self.long_mode)

    def _four_pointers(self) -> tuple[int, ...]:
        """PAE's PDPTEs as a processor takes them: QEMU's walker marks them as accessed, which none does, the bit is reserved."""
        data = self.read(self.cr3 & 0xFFFF_FFE0, 32)
        self._pdptes = tuple(int.from_bytes(data[at : at + 8], "little") & ~ACCESSED for at in range(0, 32, 8))
        return self._pdptes

    def _load_roots(self) -> None:
        tables, roots = self._tables, []
        if self._is_pae():
            for index, pointer in enumerate(self._pdptes):
                if pointer & PRESENT:
                    roots.append(tables.load_root((pointer & BASE64) >> 12, L2, index << 30))
        elif self.paging:
            kind = (L5 if self._cr4 & CR4_LA57 else L4) if self.long_mode else L2_32
            roots.append(tables.load_root((self.cr3 & (BASE32 if kind == L2_32 else BASE64)) >> 12, kind, 0))
        for root in self._roots:
            tables.unload_root(root)
        self._roots = [root for root in roots if root is not None]
        self._rest_older()

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

    def set_identity(self, on: bool) -> None:
        """With paging off every frame lies at its own address."""
        if on != self._identity:
            self._identity = on
            (self._mappings.add if on else self._mappings.drop)(EXECUTABLE, 0, self._ram.size // PAGE)

    def read(self, gpa: int, size: int) -> bytes:
        """Physical memory; zero where there is no RAM."""
        return self._ram.read(gpa, size) if in_ram(self._ram, gpa, size) else bytes(size)

    def translate(self, va: int) -> int | None:
        """Where a virtual address lies, by the tables as they are."""
        if not self.paging:
            return va if va < self._ram.size else None
        wide = bool(self._cr4 & CR4_PAE)
        base, size, bits = (BASE64, 8, 9) if wide else (BASE32, 4, 10)
        level = (5 if self._cr4 & CR4_LA57 else 4) if self.long_mode else 2
        table = self.cr3 & base
        if self._is_pae():
            pointer = self._pdptes[va >> 30 & 3]
            if not pointer & PRESENT:
                return None
            table = pointer & base
        while True:
            shift = 12 + (level - 1) * bits
            entry = int.from_bytes(self.read(table + (va >> shift & (1 << bits) - 1) * size, size), "little")
            if not entry & PRESENT:
                return None
            big = 1 < level <= 3 and entry & BIG and (wide or self._cr4 & CR4_PSE)
            if level == 1 or big:
                mask = (1 << shift) - 1
                return entry & base & ~mask | va & mask
            table = entry & base
            level -= 1
