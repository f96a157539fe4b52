"""Address spaces as Linux keeps them: where the kernel has memory mapped, and the top tables of the spaces that no exec names.

The kernel's own spaces are known of kernels for amd64 only: kallsyms of those for i386 has no data.
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
_MM_POINTERS = ("poking_mm", "text_poke_mm")

#: Where the kernel's image is mapped, before KASLR moves it; where all memory is, where the kernel does not move that.
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_ALL_MEMORY = {32: 0xC000_0000, 64: 0xFFFF_8880_0000_0000}
_WORD = (1 << 64) - 1

#: Where a table may lie: what the guest's memory says may be anything.
_TABLE_ADDRESSES = range(0, 1 << 52, 32)

#: How much of a task and of its address space is looked through for the fields that are wanted.
_TASK_BYTES, _MM_BYTES = 8192, 512


def early_root(read: Read, symbols: Symbols, slide: int) -> int | None:
    """The physical address of ``EARLY_TABLE``; ``None`` where it does not show. ``slide`` is how far the kernel was moved."""
    if EARLY_TABLE not in symbols.addresses:
        return None
    return physical(read, symbols, slide, symbols.addresses[EARLY_TABLE] + slide)


def roots(read: Read, symbols: Symbols, slide: int, pgd: int) -> Iterator[tuple[int, str]]:
    """The physical addresses of top tables, and the names of what they are the top of, as far as it has been made by now.

    ``pgd`` is the offset of that field in mm_struct.
    """
    if symbols.bits != 64:
        return
    for name in (*_MMS, *_MM_POINTERS):
        address: int | None = symbols.addresses.get(name)
        if address is None:
            continue
        address += slide
        if name in _MM_POINTERS:
            address = pointer(read, address, 64)
        table = pointer(read, address + pgd, 64) if address else None
        root = physical(read, symbols, slide, table) if table else None
        if root is not None:
            yield root, name


def find_mm(read: Read, symbols: Symbols, slide: int, task: int, root: int) -> tuple[int, int] | None:
    """The offsets of ``mm`` in task_struct and ``pgd`` in mm_struct, by a task that runs on the table at ``root``; ``None``: not found.

    ``mm`` and ``active_mm`` lie side by side and are the same, and ``pgd`` is where the kernel has that table mapped.
    """
    word, start = symbols.bits // 8, _all_memory(read, symbols, slide)
    fields = _words(read, task, _TASK_BYTES, word)
    for at in (at for at in range(len(fields) - 1) if fields[at] == fields[at + 1] and fields[at] >= start):
        mm = _words(read, fields[at], _MM_BYTES, word)
        if root + start in mm:
            return at * word, mm.index(root + start) * word
    return None


def physical(read: Read, symbols: Symbols, slide: int, address: int) -> int | None:
    """Where something of the kernel's image, or of what it maps of all memory, lies, if it may be a table; else ``None``."""
    if address >= _KERNEL_MAP:
        base = symbols.addresses.get("phys_base")
        value = None if base is None else pointer(read, base + slide, 64)
        found = None if value is None else address - _KERNEL_MAP + value & _WORD
    else:
        found = address - _all_memory(read, symbols, slide) & _WORD
    return found if found in _TABLE_ADDRESSES else None


def _all_memory(read: Read, symbols: Symbols, slide: int) -> int:
    """The virtual address at which the kernel has physical memory mapped from 0 on."""
    variable = symbols.addresses.get("page_offset_base")
    moved = pointer(read, variable + slide, 64) if variable is not None else None
    return moved or _ALL_MEMORY[symbols.bits]


def pointer(read: Read, address: int, bits: int) -> int | None:
    """A pointer in the guest's memory; ``None`` where nothing is mapped."""
    data = read(address, bits // 8)
    return None if data is None else int.from_bytes(data, "little")


def _words(read: Read, address: int, size: int, word: int) -> list[int]:
    """So many bytes as words, up to where nothing is mapped."""
    data = b""
    while len(data) < size:
        more = read(address + len(data), min(size - len(data), 4096 - (address + len(data)) % 4096))
        if more is None:
            break
        data += more
    return [int.from_bytes(data[at : at + word], "little") for at in range(0, len(data) - word + 1, word)]
