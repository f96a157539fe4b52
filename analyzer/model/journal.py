"""What happened to shadow pages, in order: the one record that a core leaves of a replay besides its counters and its end.

Every core of a model writes the same journal, row for row, and every fact about sharing is drawn from it. A shadow page is
named by its page id: 0 for the first page that was ever made, then 1, and so on; a page of the free list that is used
again gets a new one. ``ROWS`` are 16 bytes:

=========  ==============================================================================================================
column     meaning
=========  ==============================================================================================================
``event``  number of the event being replayed, from 1; 0 = the creation of the virtual machine, before any event
``what``   a ``What``
``vcpu``   whose event
``cause``  by ``what``, below
``page``   page id of the page it happened to, or ``NO_PAGE``
``other``  by ``what``, below
=========  ==============================================================================================================

=================  ==================================  =================================================================
what               cause                               page, other
=================  ==================================  =================================================================
``ALLOC``          1: looked up as a root              other: the root that the walk began at; ``NO_PAGE`` for a root
``HIT``            1: looked up as a root              the same
``LINKED``         0                                   other: the new parent, whose entry points to page now
``UNLINKED``       0                                   other: the parent whose entry points to page no more
``ZAP_FREED``      index in ``CAUSES``                 page went to the free list
``ZAP_ROOT_KEPT``  index in ``CAUSES``                 page is a root in use: it was zapped and kept
``ROOTS_LOADED``   glevels                             a vCPU took roots: low and high 32 bits of their address, see ``ROOT_SHIFT``
``FAULT``          a ``Fault``                         page: the leaf table that holds the entry after it, or ``NO_PAGE``
``STORE``          1: flooded                          page: the newest shadow of the frame stored to; other: how many it has
=================  ==================================  =================================================================

``ALLOC`` and ``HIT`` come before the ``LINKED`` of the same look-up. A zap unlinks the page from its parents in the order
the kernel meets them, then its children by entry, then comes ``ZAP_FREED`` or ``ZAP_ROOT_KEPT``. A ``STORE`` comes before what it does,
a ``FAULT`` after. ``ROOTS_LOADED`` comes before the look-ups of the roots.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

#: The address of roots in a ``ROOTS_LOADED`` is cr3's in 32 bytes: of PAE's PDPTEs, or of the page in any other mode.
ROOT_SHIFT = 5

#: No page at all.
NO_PAGE = 0xFFFF_FFFF

AS_ROOT = 1

FLOODED = 1

#: Why a shadow page was zapped, as the counters ``zaps_<cause>`` name it.
CAUSES = ("misaligned", "flood", "misaligned_and_flood", "user_fault", "evict", "dropped")

ROWS = np.dtype([("event", "<u4"), ("what", "u1"), ("vcpu", "u1"), ("cause", "u1"), ("free", "u1"), ("page", "<u4"), ("other", "<u4")])

#: The key of each page that was ever made, by page id.
BIRTHS = np.dtype([("gfn", "<u8"), ("role", "<u8")])


class What(IntEnum):
    """What happened."""

    ALLOC = 1
    HIT = 2
    LINKED = 3
    UNLINKED = 4
    ZAP_FREED = 5
    ZAP_ROOT_KEPT = 6
    ROOTS_LOADED = 7
    FAULT = 8
    STORE = 9


class Fault(IntEnum):
    """How a fault was answered, as the counters ``access_*`` name it."""

    SHADOW_FIXED = 0
    GUEST = 1
    WRITE_TO_SHADOWED = 2
    MMIO = 3
    UNRESOLVED = 4


@dataclass(frozen=True)
class Journal:
    """A finished journal: ``rows`` of dtype ``ROWS`` in order, ``births`` of dtype ``BIRTHS``, one for each page ever made."""

    rows: NDArray[np.void]
    births: NDArray[np.void]


class JournalWriter:
    """Takes rows from the readable core, 16 bytes each."""

    def __init__(self) -> None:
        #: Number of the event being replayed and whose it is: set by the core before it acts.
        self.event = 0
        self.vcpu = 0
        self._rows = array("Q")
        self._births = array("Q")

    def add(self, what: What, cause: int, page: int, other: int) -> None:
        """Write a row."""
        self._rows.append(self.event | what << 32 | self.vcpu << 40 | cause << 48)
        self._rows.append(page | other << 32)

    def born(self, gfn: int, role: int) -> int:
        """Give a page that is being made its page id."""
        self._births.append(gfn)
        self._births.append(role)
        return len(self._births) // 2 - 1

    def finish(self) -> Journal:
        """All that was written so far."""
        return Journal(
            np.frombuffer(self._rows.tobytes(), ROWS),
            np.frombuffer(self._births.tobytes(), BIRTHS),
        )
