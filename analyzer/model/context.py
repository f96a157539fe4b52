"""One vCPU's registers and MMU context, and the constants that the rooms of the MMU share."""

from __future__ import annotations

from dataclasses import dataclass, field

from analyzer.model.cache import ShadowPage
from x86.registers import RESET

PT_PAGE_TABLE_LEVEL = 1
PT_DIRECTORY_LEVEL = 2
PT32E_ROOT_LEVEL = 3
PT64_ROOT_LEVEL = 4

#: Software bits of a shadow entry: a big page's level-2 entry, an mmio leaf; what the guest allows.
PT_SHADOW_PS_MARK = 1 << 9
PT_SHADOW_IO_MARK = 1 << 9
PT_SHADOW_WRITABLE_MASK = 1 << 10
PT_SHADOW_USER_MASK = 1 << 11
PT_SHADOW_BITS_OFFSET = 9

PFERR_PRESENT = 1
PFERR_WRITE = 2
PFERR_USER = 4
PFERR_FETCH = 16


@dataclass(slots=True)
class Roots:
    """The root pages in use: one in long mode, four (``pae_root``) elsewhere, ``None`` where there is none."""

    key: tuple[int, ...]
    pages: list[ShadowPage | None]


@dataclass(slots=True)
class Context:
    """One vCPU's registers and MMU context (``struct kvm_vcpu``)."""

    vcpu: int
    cr0: int = RESET["cr0"]
    cr3: int = RESET["cr3"]
    cr4: int = RESET["cr4"]
    efer: int = RESET["efer"]
    pdptrs: tuple[int, int, int, int] = (0, 0, 0, 0)
    root_level: int = 0
    roots: Roots | None = None
    kept_roots: list[Roots] = field(default_factory=list)
    last_pt_write_gfn: int = 0
    last_pt_write_count: int = 0
