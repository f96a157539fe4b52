"""A trace's events in columns: large batches of numpy arrays, without an object for each event."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Events in columns, in order; 64-bit numbers in two's complement, as the file holds them."""

    kind: NDArray[np.uint8]
    vcpu: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    addr: Ints
    value: Ints
    """``WRITE``: the bytes stored. ``REGS``, ``CR3``, ``PAGE``: the row in a table below; -1: a cr3 load without PDPTEs."""
    registers: Ints
    """(n, 4): bit 0 CR0, bit 1 CR4, bit 2 EFER are given; the three values."""
    pdptes: Ints
    """(n, 4): what a PAE load of cr3 read."""
    offsets: Ints
    """(n + 1,): page content ``i`` is words ``offsets[i]`` to ``offsets[i + 1]``."""
    indexes: NDArray[np.uint16]
    words: Ints
