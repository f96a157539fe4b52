"""The address spaces of Linux itself, which no exec names: where their top tables lie, by the kernel's own symbols.

Kernels for amd64 only: kallsyms of those for i386 has no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tracer.symbols import Symbols

#: Reads so many bytes at a virtual address of the guest; ``None`` where nothing is mapped.
Read = Callable[[int, int], bytes | None]

#: The table that the kernel runs on from its first instructions to the first that it makes (arch/x86/kernel/head_64.S).
EARLY_TABLE = "early_top_pgt"

#: Structures, and pointers to one: the kernel's own space, that of EFI's services, the one in which code is patched.
_MMS = ("init_mm", "efi_mm")
_MM_POINTERS = ("poking_mm",)

#: Where the kernel's image is mapped, before KASLR moves it.
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_POINTER_BYTES = 8
_WORD = (1 << 64) - 1

#: Where a table may lie: what the guest's memory says may be anything.
_TABLE_ADDRESSES = range(0, 1 << 52, 4096)


def early_root(read: Read, symbols: Symbols, slide: int) -> int | None:
    """The physical address of ``EARLY_TABLE``; ``None`` where it does not show. ``slide`` is how far the kernel was moved."""
    if EARLY_TABLE not in symbols.addresses:
        return None
    return _physical(read, symbols, slide, symbols.addresses[EARLY_TABLE] + slide)


def roots(read: Read, symbols: Symbols, slide: int) -> Iterator[tuple[int, str]]:
    """The physical addresses of top tables, and the names of what they are the top of, as far as it has been made by now."""
    if symbols.bits != 64 or "pgd" not in symbols.mm:
        return
    for name in (*_MMS, *_MM_POINTERS):
        address: int | None = symbols.addresses.get(name)
        if address is None:
            continue
        address += slide
        if name in _MM_POINTERS:
            address = _pointer(read, address)
        table = _pointer(read, address + symbols.mm["pgd"]) if address else None
        root = _physical(read, symbols, slide, table) if table else None
        if root is not None:
            yield root, name


def _physical(read: Read, symbols: Symbols, slide: int, address: int) -> int | None:
    """Where the kernel's image, or what it maps of all memory, lies."""
    in_image = address >= _KERNEL_MAP
    variable = symbols.addresses.get("phys_base" if in_image else "page_offset_base")
    value = None if variable is None else _pointer(read, variable + slide)
    if value is None:
        return None
    physical = (address - _KERNEL_MAP + value if in_image else address - value) & _WORD
    return physical if physical in _TABLE_ADDRESSES else None


def _pointer(read: Read, address: int) -> int | None:
    data = read(address, _POINTER_BYTES)
    return None if data is None else int.from_bytes(data, "little")
