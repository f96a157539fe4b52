"""The fast core: the same model as ``analyzer.model.machine`` over flat arrays, compiled. ``analyzer.model.fast`` holds its rooms.

It takes events in columns, never one by one, and leaves the same ``Outcome``: counters, journal and pages, to the last bit.
The first use after an installation compiles it, which takes about half a minute, and keeps the result in the user's cache folder.
"""

from __future__ import annotations

import zlib
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from analyzer.model.cache import hash_function
from analyzer.model.counters import Counters
from analyzer.model.fast import events, frames
from analyzer.model.fast.compiled import is_kept
from analyzer.model.fast.layout import (
    BIRTH,
    CHAINS,
    CONTENT,
    ENTRIES,
    GFN,
    KEY,
    LEVEL,
    LINK,
    OLDER,
    PARENT,
    ROLE,
    ROOT_COUNT,
    SHORT_OF_FRAMES,
    USED,
    Arrays,
    Ints,
)
from analyzer.model.journal import BIRTHS, ROWS, Journal
from analyzer.model.outcome import LivePage, Outcome
from analyzer.model.parameters import Parameters

_MASK64 = (1 << 64) - 1


class Batch(Protocol):
    """Events in columns, in order; 64-bit numbers in two's complement. ``value`` names the row of a side table where a kind has one."""

    @property
    def kind(self) -> NDArray[np.uint8]:
        """As ``analyzer.model.fast.events`` names them."""

    @property
    def vcpu(self) -> NDArray[np.uint8]:
        """Whose event."""

    @property
    def flags(self) -> NDArray[np.uint8]:
        """Of an access: write, user, fetch; of a store: its size."""

    @property
    def addr(self) -> Ints:
        """A cr3, a physical or a virtual address."""

    @property
    def value(self) -> Ints:
        """The bytes stored; the row in ``registers``, in ``pdptes`` (-1: none), in ``offsets``."""

    @property
    def registers(self) -> Ints:
        """Which of CR0, CR4, EFER are given (bits 0 to 2), and the three."""

    @property
    def pdptes(self) -> Ints:
        """The four entries that a PAE load read."""

    @property
    def offsets(self) -> Ints:
        """Page content ``i`` is words ``offsets[i]`` to ``offsets[i + 1]``."""

    @property
    def indexes(self) -> NDArray[np.uint16]:
        """Where in its page each word of content lies."""

    @property
    def words(self) -> Ints:
        """The words of content."""


class Kernel:
    """One virtual machine of the fast core: feed it batches, then take its ``outcome``. ``ValueError`` as ``Parameters.check`` has it."""

    def __init__(self, parameters: Parameters, vcpus: int = 1) -> None:
        parameters.check(vcpus)
        self.parameters = parameters
        self._arrays = Arrays(parameters, vcpus)
        self._rows: list[Ints] = []
        self._births: list[Ints] = []
        events.begin(*self._arrays.all())

    @staticmethod
    def is_compiled() -> bool:
        """Whether an earlier use left the compiled code that making one needs."""
        return is_kept(events.begin)

    def feed(self, batch: Batch) -> None:
        """Replay a batch. Its vCPUs are known to exist, its rows of side tables too."""
        done, last = 0, len(batch.kind)
        columns = (batch.kind, batch.vcpu, batch.flags, batch.addr, batch.value)
        sides = (batch.registers, batch.pdptes, batch.offsets, batch.indexes, batch.words)
        while (done := events.run(*self._arrays.all(), *columns, *sides, done, last)) < last:
            self._make_room()

    def _make_room(self) -> None:
        """Empty the journal, and let grow what the kernel stopped for."""
        arrays, vm = self._arrays, self._arrays.vm
        self._drain()
        arrays.grow(int(vm.links + 4 * vm.active_pages + 64))
        if vm.short & SHORT_OF_FRAMES:
            larger = np.zeros((2 * len(arrays.frames), arrays.frames.shape[1]), np.int64)
            frames.rehash(arrays.frames, larger)
            arrays.frames = larger

    def _drain(self) -> None:
        vm = self._arrays.vm
        self._rows.append(self._arrays.journal[: vm.rows].copy())
        self._births.append(self._arrays.births[: vm.births_kept].copy())
        vm.rows = vm.births_kept = 0

    def journal(self) -> Journal:
        """All that was written so far."""
        self._drain()
        self._rows, self._births = [np.concatenate(self._rows)], [np.concatenate(self._births)]
        return Journal(self._rows[0].view(ROWS).ravel(), self._births[0].view(BIRTHS).ravel())

    def counters(self) -> Counters:
        """What was counted so far."""
        vm = self._arrays.vm
        vm.events_access = vm.access_mapped + vm.access_faults
        return Counters(**{f.name: int(vm[f.name]) for f in fields(Counters)})

    def outcome(self) -> Outcome:
        """What the replay leaves behind, as ``analyzer.model.outcome.outcome`` has it of the readable core."""
        arrays = self._arrays
        pages, page = [], int(arrays.vm.newest)
        while page >= 0:
            pages.append(self._live(page))
            page = int(arrays.pages[page, OLDER])
        buckets = [0] * self.parameters.buckets
        if self.parameters.caching:
            hashfn = hash_function(self.parameters)
            for live in pages:
                buckets[hashfn(live.gfn)] += 1
        nonzero, crc = self._digest()
        return Outcome(self.parameters, self.counters(), self.journal(), pages, int(arrays.vm.free_pages), buckets, nonzero, crc)

    def _live(self, page: int) -> LivePage:
        row = self._arrays.pages[page]
        chains = self._chains(int(row[CHAINS]))
        entries: dict[int, int | tuple[int, int]] = {}
        for index in np.flatnonzero(row[:ENTRIES]).tolist():
            entry = int(row[index])
            if row[LEVEL] == 1:
                entries[index] = entry & _MASK64
            else:
                child = self._arrays.pages[entry >> 12]
                entries[index] = (int(child[GFN]), int(child[ROLE]))
        parents = sum(chains) if chains else int(row[PARENT] != 0)
        return LivePage(int(row[GFN]), int(row[ROLE]), int(row[BIRTH]), int(row[ROOT_COUNT]), bool(chains), parents, chains, entries)

    def _chains(self, chain: int) -> tuple[int, ...]:
        used = []
        while chain:
            used.append(int(self._arrays.nodes[chain, USED]))
            chain = int(self._arrays.nodes[chain, LINK])
        return tuple(used)

    def _digest(self) -> tuple[int, int]:
        """How many frames are not all zero, and the CRC-32 over them (``GuestMemory.digest``)."""
        table = self._arrays.frames
        table = table[table[:, CONTENT] > 0]
        contents = self._arrays.memory.reshape(-1, ENTRIES)
        crc, count = 0, 0
        for row in table[np.argsort(table[:, KEY])]:
            content: Any = contents[row[CONTENT]]
            if content.any():
                count += 1
                crc = zlib.crc32(content.tobytes(), zlib.crc32(int(row[KEY] - 1).to_bytes(8, "little"), crc))
        return count, crc
