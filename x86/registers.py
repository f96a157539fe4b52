"""Control-register bits and the paging mode they select (Intel SDM volume 3, sections 2.5 and 4.1)."""

from __future__ import annotations

from enum import IntEnum

CR0_PE = 1 << 0
CR0_TS = 1 << 3
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31

CR4_VME = 1 << 0
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_PGE = 1 << 7
CR4_LA57 = 1 << 12
CR4_VMXE = 1 << 13

EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NX = 1 << 11

#: Power-on values, by register name.
RESET = {"cr0": 0x60000010, "cr3": 0, "cr4": 0, "efer": 0}


class Mode(IntEnum):
    """A paging mode; the value is the number of table levels the processor walks."""

    NONE = 0
    TWO_LEVEL = 2
    PAE = 3
    LONG = 4
    LA57 = 5

    @property
    def label(self) -> str:
        """The mode's name in reports."""
        return _LABELS[self]

    @property
    def entry_bytes(self) -> int:
        """Bytes of a table entry: 4 for two-level paging, 8 elsewhere."""
        return 4 if self is Mode.TWO_LEVEL else 8


_LABELS = {
    Mode.NONE: "no paging",
    Mode.TWO_LEVEL: "32-bit",
    Mode.PAE: "PAE",
    Mode.LONG: "long",
    Mode.LA57: "LA57",
}


def paging_mode(cr0: int, cr4: int, efer: int) -> Mode:
    """The paging mode in force for these register values (SDM 4.1.1)."""
    if not cr0 & CR0_PG:
        return Mode.NONE
    if efer & EFER_LMA:
        return Mode.LA57 if cr4 & CR4_LA57 else Mode.LONG
    return Mode.PAE if cr4 & CR4_PAE else Mode.TWO_LEVEL
