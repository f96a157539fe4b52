"""A kernel's symbols, and where a task's fields lie, from the image as it is shipped.

An ELF file that has a symbol table is read as it is. A bzImage is unpacked, and its kallsyms read; what kallsyms does not say, the
kernel's data does.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tracer import kallsyms, kerneldata, kernelimage
from tracer.kallsyms import Symbol

#: What `nm` calls code: the linker's letter is upper case for what other files see, and weak symbols are seen too.
_FUNCTIONS = frozenset("tTwW")


@dataclass(frozen=True)
class Symbols:
    """Link-time addresses by name, the kernel's word size in bits, and offsets in task_struct where they are known."""

    bits: int
    addresses: dict[str, int]
    task: dict[str, int] = field(default_factory=dict)
    functions: list[tuple[int, str]] = field(default_factory=list)
    """Every function's link-time address and name, in order; one name where an address has several."""

    @property
    def first_c_function(self) -> str | None:
        """The function that Linux's assembly enters first; ``None`` for any other kernel."""
        name = "x86_64_start_kernel" if self.bits == 64 else "i386_start_kernel"
        return name if name in self.addresses else None

    def slides(self) -> range:
        """Every distance by which the kernel may have been moved: KASLR's slots of 2 MiB (amd64) or 16 MiB (i386)."""
        step, span = (2 << 20, 1 << 30) if self.bits == 64 else (16 << 20, 512 << 20)
        text = self.addresses.get("_text", self.addresses.get("_stext", 0))
        base = 0xFFFF_FFFF_8000_0000 if self.bits == 64 else 0xC000_0000
        return range(0, min(span, base + span - text), step)


def functions_at(symbols: Symbols, slide: int, pcs: Iterable[int]) -> list[tuple[int, int, str]]:
    """The functions that some addresses in a guest lie in: where each begins there, its bytes up to the next one, its name.

    ``slide`` is how far the kernel was moved. Addresses outside the kernel's functions are left out.
    """
    starts = [address for address, _ in symbols.functions]
    found = {bisect_right(starts, pc - slide) for pc in pcs}
    return [
        (starts[at - 1] + slide, starts[at] - starts[at - 1], symbols.functions[at - 1][1]) for at in sorted(found) if 0 < at < len(starts)
    ]


def load(kernel: Path) -> Symbols:
    """The symbols of a kernel image; ``ValueError``, with the reason, where they cannot be read."""
    try:
        elf = ELFFile(io.BytesIO(kernelimage.unpack(kernel.read_bytes())))
        return _read(elf)
    except ELFError as error:
        raise ValueError(f"the kernel's ELF file is damaged: {error}") from error


def _read(elf: ELFFile) -> Symbols:
    found = _symbol_table(elf) or kallsyms.symbols(elf)
    # Several files may have a symbol of one name for themselves: the one that all see goes before them.
    by_scope = sorted(found, key=lambda symbol: symbol.kind.isupper())
    addresses = {**kerneldata.exported(elf), **{symbol.name: symbol.address for symbol in by_scope}}
    functions: dict[int, tuple[bool, str]] = {}
    for symbol in found:
        if symbol.kind in _FUNCTIONS:
            rank = (symbol.kind == "t", symbol.name)
            functions[symbol.address] = min(rank, functions.get(symbol.address, rank))
    return Symbols(
        elf.elfclass,
        addresses,
        kerneldata.task_offsets(elf, addresses),
        [(address, name) for address, (_, name) in sorted(functions.items())],
    )


def _symbol_table(elf: ELFFile) -> list[Symbol]:
    """What the ELF file's own table holds; empty where it has none."""
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return []
    return [Symbol(int(entry["st_value"]), _letter(entry["st_info"]), entry.name) for entry in table.iter_symbols() if entry.name]


def _letter(info: dict[str, str]) -> str:
    letter = "t" if info["type"] == "STT_FUNC" else "d"
    return letter if info["bind"] == "STB_LOCAL" else letter.upper()
