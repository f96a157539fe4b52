"""Where instructions that matter lie: memory is looked through as code appears in it, and they are made breakpoints.

Code may come and run without any stop between. So besides looking now and then, the guest is stopped where code that was put into
memory is entered first: at the addresses where a PC's boot loaders put a boot sector and a kernel, at every address to which a
kernel that moves itself is aligned, and after stores to the end of low memory, where boot code puts what runs without paging.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import sites
from mappings import BREAKPOINT, WRITES, Mappings, Spot
from memory import HOLE, PAGE, Ram
from stub import Stub

_LANDINGS = (0x7C00, 0x100000)
_ALIGNMENT = 2 << 20
_MOST_LANDINGS = 1024
_LOW = (0x80000, 0xA0000)
_ROM = 0xC0000

#: Looking through memory may take this share of the time.
_SHARE = 0.1
_FIRST_LOADS = 6
_LOW_HALF = 0xFFFF_FFFF


class Hunt:
    """The sites found so far, and where more are waited for."""

    def __init__(self, stub: Stub, ram: Ram, mappings: Mappings) -> None:
        self._stub, self._ram, self._mappings = stub, ram, mappings
        self._sites: set[int] = set()
        self._landings: set[int] = set()
        self._low_watched = False
        self._functions: set[int] = set()
        self._followed: set[int] = set()
        self._eager = 0
        self._looked_at = self._took = 0.0

    def begin(self) -> None:
        """The machine comes up: what is in ROM is at its place, and everything else is still to come."""
        self._landings.update((*_LANDINGS, *range(_ALIGNMENT, self._ram.size, _ALIGNMENT)[:_MOST_LANDINGS]))
        for address in self._landings:
            self._mappings.stop_at(BREAKPOINT, address, 1)
        self._take(_ROM, self._stub.read(_ROM, HOLE[1] - _ROM, True) or b"")

    def paging_came(self) -> None:
        """Before a kernel runs, whoever turns paging on may have to turn it off again, by code in low memory."""
        if self._landings and not self._low_watched:
            self._low_watched = True
            self._mappings.stop_at(WRITES, _LOW[0], _LOW[1] - _LOW[0])

    def stored_low(self, va: int) -> bool:
        """After a stop at a watchpoint that starts at an address: whether it was the one over low memory."""
        if not self._low_watched or va != _LOW[0]:
            return False
        self._take(_LOW[0], self._ram.read(_LOW[0], _LOW[1] - _LOW[0]))
        return True

    def landed(self, pc: int) -> None:
        """At a breakpoint. Where code is entered first: look what came with it. An aligned address is a kernel's: no more are waited for."""
        if pc not in self._landings:
            return
        kernel = pc >= _ALIGNMENT
        for address in self._landings if kernel else {pc}:
            self._mappings.no_stop_at(BREAKPOINT, address, 1)
        self._landings = set() if kernel else self._landings - {pc}
        self._eager = _FIRST_LOADS if kernel else 0
        if self._low_watched and kernel:
            self._low_watched = False
            self._mappings.no_stop_at(WRITES, _LOW[0], _LOW[1] - _LOW[0])
        self.look()

    def look_if_due(self, seconds: float) -> None:
        """Look through memory, unless that was done less than so long ago or would take too much of the time."""
        if time.monotonic() >= self._looked_at + max(seconds, self._took / _SHARE):
            self.look()

    def look_early(self) -> None:
        """While paging is off code comes by the piece, and what runs next may be new: half of the time may go into looking."""
        if time.monotonic() >= self._looked_at + self._took:
            self.look()

    def loaded(self) -> None:
        """After a load of cr3: the first of a new kernel are those by which it comes to its own addresses."""
        if self._eager:
            self._eager -= 1
            self.look()

    def look(self) -> None:
        """Look through all memory that is in use."""
        began = time.monotonic()
        for start, data in self._ram.used():
            self._take(start, data)
        self._follow_pointers()
        self._looked_at = time.monotonic()
        self._took = self._looked_at - began

    def _take(self, start: int, data: bytes) -> None:
        for offset in sites.candidates(data):
            gpa = start + offset
            if gpa not in self._sites:
                self._sites.add(gpa)
                self._mappings.want(gpa >> 12, Spot(BREAKPOINT, gpa % PAGE, 1))
                function = sites.function_that_loads_cr3(data, offset, start)
                if function is not None:
                    self._functions.add(function)

    def _follow_pointers(self) -> None:
        """Calls through a pointer to a function that does nothing but load cr3: Linux replaces them by the load itself, and uses that
        at once, before anybody can look. So these calls are sites already.
        """
        pointers = {va + gpa % PAGE for gpa in self._functions for va in self._mappings.addresses(gpa >> 12)} - self._followed
        self._followed |= pointers
        if not pointers:
            return
        slots: set[int] = set()
        for start, data in self._ram.used():
            for pointer in pointers:
                for offset in _places(data, pointer.to_bytes(8 if pointer >> 32 else 4, "little")):
                    gpa = start + offset
                    slots |= {(va + gpa % PAGE) & _LOW_HALF for va in self._mappings.addresses(gpa >> 12)}
        for start, data in self._ram.used() if slots else ():
            for offset, number, short in sites.calls(data):
                gpa = start + offset
                places = {number & _LOW_HALF}
                if short:
                    places |= {(va + gpa % PAGE + sites.SHORT_CALL + number) & _LOW_HALF for va in self._mappings.addresses(gpa >> 12)}
                if places & slots:
                    self._mappings.want(gpa >> 12, Spot(BREAKPOINT, gpa % PAGE, 1))


def _places(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)
