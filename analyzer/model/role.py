"""The role word: with the guest frame number, the key of the shadow page cache.

Bit for bit as cea0f0e7ea "MMU: Shadow page table caching" defines ``union kvm_mmu_page_role``:

=======  ================  =====================================================
bits     field             meaning
=======  ================  =====================================================
0..3     ``glevels``       guest paging levels: 0 off, 2 two-level, 3 PAE, 4 long
4..7     ``level``         level of this shadow table, 1 = leaf table
8..9     ``quadrant``      which part of the guest table it shadows
16       ``metaphysical``  1: no guest table stands behind it
=======  ================  =====================================================
"""

from __future__ import annotations

from typing import NamedTuple

from x86.paging import PAGE_SHIFT

METAPHYSICAL = 1 << 16

#: Index bits of a shadow table: shadow tables are always in the 64-bit format.
PT64_PT_BITS = 9


class Role(NamedTuple):
    """A role word taken apart; ``word`` puts it together."""

    glevels: int
    level: int
    quadrant: int
    metaphysical: int

    @property
    def word(self) -> int:
        """The 32-bit role word."""
        return pack(*self)


def pack(glevels: int, level: int, quadrant: int, metaphysical: int) -> int:
    """The role word of these fields."""
    return glevels | level << 4 | quadrant << 8 | metaphysical << 16


def unpack(word: int) -> Role:
    """The fields of a role word."""
    return Role(word & 15, word >> 4 & 15, word >> 8 & 3, word >> 16 & 1)


def quadrant(va: int, glevels: int, level: int) -> int:
    """Which quadrant of a guest table shadows ``va``: a guest table of 1024 entries needs 2 (level 1) or 4 (level 2).

    Always 0 for guests whose tables have 512 entries themselves.
    """
    if glevels > 2:
        return 0
    return va >> (PAGE_SHIFT + PT64_PT_BITS * level) & (1 << level) - 1
