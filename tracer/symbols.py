"""A kernel's symbols and the layout of its task structure, from the image as it is shipped.

The image is unpacked, ``vmlinux-to-elf`` (an external command) recovers kallsyms into an ELF, pyelftools reads that; what kallsyms
and BTF do not say, as on i386, the kernel's data does. The
result is kept, keyed by the image's digest: it takes some 10 seconds the first time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tracer import btf, kerneldata, kernelimage, resources

_FORMAT = 4


@dataclass(frozen=True)
class Symbols:
    """Link-time addresses by name, the kernel's word size in bits, and offsets in task_struct and mm_struct where they are known."""

    bits: int
    addresses: dict[str, int]
    task: dict[str, int]
    mm: dict[str, int]
    functions: list[tuple[int, str]]
    """Every function's link-time address and name, in order; one name where an address has several."""

    @property
    def first_c_function(self) -> str | None:
        """The function that Linux's assembly enters first; ``None`` for any other kernel."""
        name = "x86_64_start_kernel" if self.bits == 64 else "i386_start_kernel"
        return name if name in self.addresses else None

    @property
    def names_programs(self) -> bool:
        """Whether programs can be seen to be executed, and named."""
        return {kerneldata.LISTENERS, kerneldata.AT_EXEC, kerneldata.CURRENT} <= set(self.addresses) and {"pid", "comm"} <= set(self.task)

    def function(self, name: str) -> range:
        """The link-time addresses of a function, up to where the next one begins."""
        start = self.addresses[name]
        after = bisect_right(self.functions, start, key=lambda function: function[0])
        return range(start, self.functions[after][0] if after < len(self.functions) else start + 1)

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


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command() -> str | None:
    """The path of vmlinux-to-elf: beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name("vmlinux-to-elf")
    return str(beside) if beside.exists() else shutil.which("vmlinux-to-elf")


def load(kernel: Path) -> Symbols | None:
    """The symbols of a kernel image; ``None`` where they cannot be recovered, which costs names and nothing else.

    An ELF file that has a symbol table is read as it is.
    """
    own = read_elf(kernel)
    if own is not None:
        return own
    kept = resources.cache("symbols") / f"{sha256(kernel)}.json"
    if kept.exists():
        data = json.loads(kept.read_text())
        if data.pop("format", None) == _FORMAT:
            return Symbols(**data | {"functions": [(address, name) for address, name in data["functions"]]})
    program = command()
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        unpacked, elf = Path(folder) / "vmlinux.bin", Path(folder) / "vmlinux"
        try:
            unpacked.write_bytes(kernelimage.unpack(kernel.read_bytes()))
        except ValueError:
            return None
        done = subprocess.run([program, str(unpacked), str(elf)], capture_output=True, check=False)
        if done.returncode or not elf.exists():
            return None
        symbols = read_elf(elf)
    if symbols is not None:
        partial = kept.with_suffix(f".{hashlib.sha256(folder.encode()).hexdigest()[:8]}")
        partial.write_text(json.dumps({"format": _FORMAT, **asdict(symbols)}))
        partial.replace(kept)
    return symbols


def read_elf(path: Path) -> Symbols | None:
    """The symbols of an ELF file; ``None`` where it is none or has no symbol table."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            table: Any = elf.get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                return None
            named = [symbol for symbol in table.iter_symbols() if symbol.name]
            addresses = {**kerneldata.exported(elf), **{symbol.name: int(symbol["st_value"]) for symbol in named}}
            if kerneldata.LISTENERS not in addresses and (word := kerneldata.listeners(elf, addresses)) is not None:
                addresses[kerneldata.LISTENERS] = word
            functions: dict[int, tuple[bool, str]] = {}
            for symbol in named:
                if symbol["st_info"]["type"] == "STT_FUNC":
                    rank = (symbol["st_info"]["bind"] == "STB_LOCAL", symbol.name)
                    functions[symbol["st_value"]] = min(rank, functions.get(symbol["st_value"], rank))
            section = elf.get_section_by_name(".BTF")
            task, mm = (btf.member_offsets(section.data(), name) if section is not None else {} for name in ("task_struct", "mm_struct"))
            if not task:
                task = kerneldata.task_offsets(elf, addresses)
    except (ELFError, ValueError, OSError):
        return None
    return Symbols(
        elf.elfclass,
        addresses,
        {name: task[name] for name in ("pid", "tgid", "comm") if name in task},
        {name: mm[name] for name in ("pgd",) if name in mm},
        [(address, name) for address, (_, name) in sorted(functions.items())],
    )
