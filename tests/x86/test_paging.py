"""Walks of tables worked out by hand, for every mode."""

from __future__ import annotations

import struct

import pytest

from x86.paging import Leaf, Table, canonical, child_gfn, is_big_page, leaves, pdptes, tables
from x86.registers import CR4_PSE, Mode, paging_mode

Pages = dict[int, dict[int, int]]


def memory_of(pages: Pages, entry_bytes: int = 8):  # type: ignore[no-untyped-def]
    def read(gfn: int) -> bytes | None:
        if gfn not in pages:
            return None
        page = bytearray(4096)
        for index, entry in pages[gfn].items():
            struct.pack_into("<I" if entry_bytes == 4 else "<Q", page, index * entry_bytes, entry)
        return bytes(page)

    return read


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "mode"),
    [
        (0x11, 0x20, 0x500, Mode.NONE),
        (0x80000011, 0, 0, Mode.TWO_LEVEL),
        (0x80000011, 0x20, 0x100, Mode.PAE),
        (0x80000011, 0x20, 0x500, Mode.LONG),
        (0x80000011, 0x1020, 0x500, Mode.LA57),
    ],
)
def test_paging_mode(cr0: int, cr4: int, efer: int, mode: Mode) -> None:
    assert paging_mode(cr0, cr4, efer) is mode


def test_two_level_walk_with_a_big_page_and_pse36() -> None:
    memory = memory_of({1: {0: 0x2067, 768: 0x400083 | 1 << 13}, 2: {3: 0x5067}}, 4)
    assert list(leaves(memory, 0x1000, Mode.TWO_LEVEL, CR4_PSE)) == [
        Leaf(0x3000, 0x5000, 4096, 0x5067),
        Leaf(0xC0000000, 0x1_0040_0000, 4 << 20, 0x400083 | 1 << 13),
    ]
    assert tables(memory, 0x1000, Mode.TWO_LEVEL, CR4_PSE) == {Table(1, 2, 4), Table(2, 1, 4)}


def test_without_pse_bit_7_of_a_directory_entry_means_nothing() -> None:
    assert not is_big_page(0x83, 2, Mode.TWO_LEVEL, 0)
    assert is_big_page(0x83, 2, Mode.PAE, 0)
    assert is_big_page(0x83, 3, Mode.LONG, 0)
    assert not is_big_page(0x83, 4, Mode.LONG, 0)


def test_pae_walks_the_registers_it_is_given_and_else_the_32_bytes_at_cr3() -> None:
    pages = {1: {4: 0x2001, 7: 0x3001}, 2: {1: 0x4067}, 3: {0: 0x200083}, 4: {5: 0x9067 | 1 << 63}}
    memory = memory_of(pages)
    assert pdptes(memory, 0x1020) == (0x2001, 0, 0, 0x3001)
    found = list(leaves(memory, 0x1020, Mode.PAE, 0))
    assert found == [Leaf(0x205000, 0x9000, 4096, 0x9067 | 1 << 63), Leaf(0xC0000000, 0x200000, 2 << 20, 0x200083)]
    assert list(leaves(memory, 0x1020, Mode.PAE, 0, (0, 0, 0, 0))) == []


def test_long_mode_addresses_are_canonical() -> None:
    memory = memory_of({1: {511: 0x2067}, 2: {510: 0x3067}, 3: {0: 0xE3}})
    assert [leaf.va for leaf in leaves(memory, 0x1000, Mode.LONG, 0x20)] == [0xFFFF_FFFF_8000_0000]
    assert canonical(1 << 47, Mode.LONG) == 0xFFFF_8000_0000_0000
    assert canonical(1 << 47, Mode.LA57) == 1 << 47


def test_a_table_that_maps_itself_is_found_at_each_level_once() -> None:
    memory = memory_of({1: {0: 0x1067}})
    assert tables(memory, 0x1000, Mode.LONG, 0x20) == {Table(1, level, 8) for level in (1, 2, 3, 4)}


def test_a_table_outside_ram_leads_nowhere() -> None:
    memory = memory_of({1: {0: 0xFF000067}})
    assert tables(memory, 0x1000, Mode.LONG, 0x20) == {Table(1, 4, 8)}
    assert list(leaves(memory, 0x1000, Mode.LONG, 0x20)) == []


def test_an_entry_s_frame_ends_at_bit_51() -> None:
    assert child_gfn(0xFFF0_0000_0000_1067, 8) == 1
    assert child_gfn(0xFFFFF067, 4) == 0xFFFFF
