"""The arrays that one virtual machine of the fast core lives in, and how they grow.

==========  =====================================================================================================
array       row
==========  =====================================================================================================
``vm``      one record: the parameters, every counter by its name, list heads, how much of each pool is in use
``cpu``     a vCPU: registers, roots, flood counter, then the roots it keeps, the newest first
``pages``   a shadow page: its 512 entries, then its fields
``nodes``   a pte chain or a reverse-map descriptor: next, used slots, the slots (spte addresses)
``frames``  a guest frame, in an open-addressing table: its gfn + 1, content, reverse map, newest shadow page + 1
``memory``  not rows: 512 words for each frame with content, in order of arrival; the first 512 are scratch
``journal`` two words for each row of the journal
``births``  gfn and role of each page made
==========  =====================================================================================================

A spte address is ``page << 9 | entry index``, as in ``analyzer.model.cache``. Node 0 stands for none; so do page -1, and 0 in a
field that holds a number plus one.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.model.counters import Counters
from analyzer.model.parameters import Parameters
from x86.registers import RESET

Ints = NDArray[np.int64]

ENTRIES = 512

# Fields of a row of pages, after its entries.
GFN = 512
ROLE = 513
LEVEL = 514
BIRTH = 515
ROOT_COUNT = 516
LIVE = 517
OWNER = 518
PARENT = 519  # spte address + 1
CHAINS = 520  # first pte chain: the page is multimapped
NEWER = 521  # neighbours in the active list
OLDER = 522
NEXT = 523  # next older shadow page of the same frame; next page of the free list
PAGE_WORDS = 528

# Fields of a row of nodes.
LINK = 0
USED = 1
SLOT = 2
NODE_WORDS = 8

# Fields of a row of frames.
KEY = 0
CONTENT = 1  # its place in memory, in frames; 0: all zero
RMAP = 2  # 0: none; spte address + 1 << 1: one leaf; first descriptor << 1 | 1: several
SHADOWS = 3
FRAME_WORDS = 4

# Fields of a row of cpu.
CR0 = 0
CR3 = 1
CR4 = 2
EFER = 3
PDPTR = 4  # to 7
ROOT_LEVEL = 8
LAST_GFN = 9
LAST_COUNT = 10
KEPT = 11  # how many roots are kept
ROOT = 12  # to 15: the pages walked from; -1: none
ROOT_KEY = 16  # level, then four frames, -1 for one left out
KEEP = 24  # from here on the kept roots: four pages and a key each
KEEP_WORDS = 12

#: Why ``run`` stopped before the last event.
SHORT_OF_ROWS = 1
SHORT_OF_NODES = 2
SHORT_OF_FRAMES = 4
SHORT_OF_MEMORY = 8

#: More than one event can take of a pool.
EVENT_NODES = 16
EVENT_FRAMES = 16
EVENT_CONTENTS = 4
EVENT_BIRTHS = 16

_PARAMETERS = (
    "flood", "min_free", "refill", "keep_roots", "caching", "directory_fix", "quadrant_test", "small_store_misaligned",
    "flood_reset_by_faults", "skip_absent_pdptes", "strict", "ram_pages",
)  # fmt: skip

_STATE = (
    "event", "vcpu", "short", "rows", "births", "births_kept", "links", "free", "free_pages", "newest", "oldest", "active_pages", "free_node",
    "next_node", "nodes", "frames", "contents",
)  # fmt: skip

VM = np.dtype([(name, np.int64) for name in (*(f.name for f in fields(Counters)), *_PARAMETERS, *_STATE)])

#: No frame number reaches this; more RAM than that changes nothing.
_ALL_RAM = 1 << 60


class Arrays:
    """The arrays of one virtual machine, before its vCPUs have roots."""

    def __init__(self, parameters: Parameters, vcpus: int) -> None:
        self.vm: Any = np.zeros(1, VM).view(np.recarray)[0]
        for name in _PARAMETERS:
            self.vm[name] = min(int(getattr(parameters, name)), _ALL_RAM)
        self.cpu: Ints = np.zeros((vcpus, KEEP + KEEP_WORDS * (parameters.keep_roots + 1)), np.int64)
        self.cpu[:, CR0] = RESET["cr0"]
        self.cpu[:, ROOT : ROOT + 4] = -1
        self.pages: Ints = np.zeros((parameters.pages, PAGE_WORDS), np.int64)
        self.pages[:, NEXT] = np.arange(1, parameters.pages + 1)
        self.pages[-1, NEXT] = -1
        self.vm.free_pages = parameters.pages
        self.vm.newest = self.vm.oldest = -1
        self.nodes: Ints = np.zeros((1 << 12, NODE_WORDS), np.int64)
        self.vm.next_node = 1
        self.frames: Ints = np.zeros((1 << 12, FRAME_WORDS), np.int64)
        self.memory: Ints = np.zeros(ENTRIES << 8, np.int64)
        self.vm.contents = 1
        self.journal: Ints = np.zeros((1 << 16, 2), np.int64)
        self.births: Ints = np.zeros((1 << 12, 2), np.int64)

    def all(self) -> tuple[Any, Ints, Ints, Ints, Ints, Ints, Ints, Ints]:
        """The arrays in the order that the compiled functions take them."""
        return self.vm, self.cpu, self.pages, self.nodes, self.frames, self.memory, self.journal, self.births

    def grow(self, rows: int) -> None:
        """Make room in the pools that ``run`` stopped for; the journal, which was emptied, gets ``rows`` at least."""
        if len(self.journal) < rows:
            self.journal = np.zeros((2 * rows, 2), np.int64)
        if self.vm.short & SHORT_OF_NODES:
            self.nodes = np.concatenate((self.nodes, np.zeros_like(self.nodes)))
        if self.vm.short & SHORT_OF_MEMORY:
            self.memory = np.concatenate((self.memory, np.zeros_like(self.memory)))
