"""Names: a kernel's symbols from its image, command lines off a stack, the kernel's own tables."""

from __future__ import annotations

import io
import struct

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from tracer import commandline, guest, kallsyms, kerneldata, kernelimage, kernelmms, symbols


class Memory:
    """Guest memory of a few mapped pages."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def write(self, address: int, data: bytes) -> None:
        for at, byte in enumerate(data, address):
            self.pages.setdefault(at >> 12, bytearray(4096))[at & 4095] = byte

    def read(self, address: int, size: int) -> bytes | None:
        pages = [self.pages.get(page) for page in range(address >> 12, (address + size - 1 >> 12) + 1)]
        if size <= 0 or any(page is None for page in pages):
            return None
        whole = b"".join(bytes(page) for page in pages if page is not None)
        return whole[address & 4095 :][:size]


def after_an_exec(word: int, arguments: list[bytes], environment: list[bytes] | None = None) -> tuple[Memory, int]:
    """Memory as Linux leaves it, and the program's stack pointer. User stacks end at a page's end, with nothing mapped above."""
    memory, size = Memory(), "I" if word == 4 else "Q"
    end = 0xBFFF_F000 if word == 4 else 0x7FFF_FFFF_F000
    strings = b"\0".join([*arguments, *(environment or [b"HOME=/", b"TERM=linux"]), b"/bin/program", b""]) + bytes(word)
    start = end - len(strings)
    memory.write(start, strings)
    pointers, at = [], start
    for argument in arguments:
        pointers.append(at)
        at += len(argument) + 1
    sp = start - 0x200 & -16
    memory.write(sp, struct.pack(f"<{len(pointers) + 2}{size}", len(pointers), *pointers, 0))
    return memory, sp


@pytest.mark.parametrize("word", [4, 8])
def test_arguments_are_read_off_the_stack(word: int) -> None:
    memory, sp = after_an_exec(word, [b"busybox", b"ls", b"", b"\x1b[31m\xff"])
    assert commandline.arguments(memory.read, sp, word) == ["busybox", "ls", "", "\x1b[31m\\xff"]


@pytest.mark.parametrize("word", [4, 8])
def test_megabytes_of_arguments_are_cut(word: int) -> None:
    memory, sp = after_an_exec(word, [b"x" * 1000] * 8)
    found = commandline.arguments(memory.read, sp, word)
    assert found is not None
    assert [len(argument) for argument in found] == [1000, 1000, 46]
    memory, sp = after_an_exec(word, [b"a"] * 65)
    assert commandline.arguments(memory.read, sp, word) is None


@pytest.mark.parametrize("word", [4, 8])
def test_no_arguments_where_nothing_is_mapped(word: int) -> None:
    assert commandline.arguments(Memory().read, 0xC000_0000, word) is None


@given(st.binary(min_size=64, max_size=64))
def test_a_hostile_stack_is_only_refused(user: bytes) -> None:
    memory = Memory()
    memory.write(0x1000, user)
    found = commandline.arguments(memory.read, 0x1000, 4)
    assert found is None or len(found) <= 64


def unpacked(name: str) -> ELFFile:
    kernel = guest.load(name).images().paths["kernel"]
    return ELFFile(io.BytesIO(kernelimage.unpack(kernel.read_bytes())))


@pytest.mark.boot
def test_exported_data_lies_where_kallsyms_has_it() -> None:
    elf = unpacked("cloud-amd64")
    known = {symbol.name: symbol.address for symbol in kallsyms.symbols(elf) if symbol.kind.isupper()}
    exported = kerneldata.exported(elf)
    assert len(exported) > 5000
    assert {name: known[name] for name in exported if name in known} == exported
    assert kerneldata.task_offsets(elf, {**known, "init_task": known["_text"]}) == {}


@pytest.mark.boot
@pytest.mark.parametrize("damage", ["none", "no names", "cut"])
def test_a_kernel_whose_kallsyms_is_damaged_is_refused_with_a_reason(damage: str) -> None:
    elf = unpacked("cloud-amd64")
    data = bytearray(elf.stream.getvalue())
    # The list of digits before the last third is that of the tokens.
    tokens = data.rfind(b"".join(b"%d\0" % digit for digit in range(10)), 0, len(data) // 2)
    if damage == "none":
        assert len(kallsyms.symbols(ELFFile(io.BytesIO(bytes(data))))) > 80_000
        return
    if damage == "no names":
        data[tokens - (3 << 20) : tokens - 4096] = bytes((3 << 20) - 4096)
    else:
        data[tokens : tokens + 20] = bytes(20)
    with pytest.raises(ValueError, match="kallsyms"):
        kallsyms.symbols(ELFFile(io.BytesIO(bytes(data))))


IMAGE, ALL_MEMORY = 0xFFFF_FFFF_8000_0000, 0xFFFF_8880_0000_0000
KERNEL = symbols.Symbols(
    64,
    {
        "early_top_pgt": IMAGE + 0x5000,
        "init_mm": IMAGE + 0x1000,
        "efi_mm": IMAGE + 0x1100,
        "poking_mm": IMAGE + 0x1200,
        "phys_base": IMAGE + 0x1300,
        "page_offset_base": IMAGE + 0x1308,
    },
)
SLIDE, PGD = 0x1200_0000, 0x48


def kernel_memory() -> Memory:
    """A kernel that was moved, in memory from 16 MiB on: its own table, one to patch code in, and none for EFI."""
    memory = Memory()
    memory.write(IMAGE + SLIDE + 0x1000, bytes(0x1000))
    memory.write(IMAGE + SLIDE + 0x1300, struct.pack("<qQ", 0x100_0000 - SLIDE, ALL_MEMORY))
    memory.write(IMAGE + SLIDE + 0x1000 + 0x48, struct.pack("<Q", IMAGE + SLIDE + 0x6000))
    memory.write(IMAGE + SLIDE + 0x1200, struct.pack("<Q", ALL_MEMORY + 0x7000))
    memory.write(ALL_MEMORY + 0x7048, struct.pack("<Q", ALL_MEMORY + 0x9000))
    return memory


def test_the_kernel_s_own_tables_are_found_by_its_symbols() -> None:
    read = kernel_memory().read
    assert kernelmms.early_root(read, KERNEL, SLIDE) == 0x100_5000
    assert dict(kernelmms.roots(read, KERNEL, SLIDE, PGD)) == {0x100_6000: "init_mm", 0x9000: "poking_mm"}
    assert list(kernelmms.roots(read, KERNEL, 0, PGD)) == []


@given(st.dictionaries(st.sampled_from([0x1048, 0x1148, 0x1200, 0x1300, 0x1308]), st.integers(0, (1 << 64) - 1)))
def test_a_hostile_kernel_s_tables_lie_where_tables_may(words: dict[int, int]) -> None:
    memory = kernel_memory()
    for offset, word in words.items():
        memory.write(IMAGE + SLIDE + offset, struct.pack("<Q", word))
    found = [root for root, _ in kernelmms.roots(memory.read, KERNEL, SLIDE, PGD)]
    assert all(0 <= root < 1 << 52 and root % 32 == 0 for root in found)
