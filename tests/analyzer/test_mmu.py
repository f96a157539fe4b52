"""The MMU around the cache, on guests small enough to work out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from analyzer.facts.sharing import sharing
from analyzer.model.audit import audit
from analyzer.model.machine import Mmu
from analyzer.model.parameters import parameters
from analyzer.model.role import pack

LONG = {"cr0": 0x80010011, "cr4": 0x30, "efer": 0x500}
PAE = {"cr0": 0x80010011, "cr4": 0x30, "efer": 0}
TWO_LEVEL = {"cr0": 0x80010011, "cr4": 0x10, "efer": 0}

READ = (False, False, False)
WRITE = (True, False, False)
USER_WRITE = (True, True, False)


def make(model: str = "kvm-2.6.20", vcpus: int = 1, **changes: Any) -> Mmu:
    return Mmu(parameters(model, **changes), vcpus)


def enter(mmu: Mmu, mode: dict[str, int], cr3: int = 0x1000, vcpu: int = 0) -> None:
    mmu.cr3(vcpu, cr3)
    mmu.regs(vcpu, mode["cr0"], mode["cr4"], mode["efer"])


def words32(entries: dict[int, int]) -> list[tuple[int, int]]:
    """32-bit entries as 8-byte words."""
    words: dict[int, int] = {}
    for index, entry in entries.items():
        words[index // 2] = words.get(index // 2, 0) | entry << 32 * (index % 2)
    return sorted(words.items())


def long_guest(mmu: Mmu, leaf: int = 0x9067) -> None:
    """One page of each level, 1 to 4 as gfn 4 to 1, mapping va 0 to ``leaf``."""
    for gfn in (1, 2, 3):
        mmu.page(gfn, [(0, (gfn + 1) << 12 | 0x67)])
    mmu.page(4, [(0, leaf)])
    enter(mmu, LONG)


def two_level_guest(mmu: Mmu) -> None:
    """A directory (gfn 1) whose entries 0 and 256 point to one table (gfn 2), which maps its page 0 and 512."""
    mmu.page(1, words32({0: 0x2067, 1: 0x3067, 256: 0x2067}))
    mmu.page(2, words32({0: 0x9067, 512: 0xA067}))
    mmu.page(3, words32({0: 0xB067, 512: 0xC067}))
    enter(mmu, TWO_LEVEL)


def hits(mmu: Mmu, role: int) -> int:
    return sharing(mmu.journal.finish()).roles[role].hits


def test_a_machine_starts_with_four_metaphysical_roots() -> None:
    mmu = make()
    assert mmu.counters.get_page_misses == 4
    assert [page.role for page in mmu.cache.active.values()] == [pack(0, 2, quadrant, 1) for quadrant in range(4)]


def test_a_first_access_faults_and_the_second_does_not() -> None:
    mmu = make()
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    mmu.access(0, 8, *READ)
    assert (mmu.counters.access_shadow_fixed, mmu.counters.access_mapped) == (1, 1)
    assert [page.role for page in mmu.cache.active.values()][4:] == [pack(4, level, 0, 0) for level in (4, 3, 2, 1)]
    audit(mmu)


def test_a_clean_page_is_read_only_until_its_first_store() -> None:
    mmu = make()
    long_guest(mmu, 0x9027)
    mmu.access(0, 0, *READ)
    mmu.access(0, 0, *WRITE)
    assert mmu.memory.read(0x4000, 8) == 0x9067
    assert mmu.counters.access_shadow_fixed == 2


def test_a_cr3_load_finds_its_root_and_everything_under_it() -> None:
    mmu = make()
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    mmu.page(5, [(0, 0x2067)])
    mmu.cr3(0, 0x5000)
    mmu.access(0, 0, *READ)
    found = mmu.cache.lookup_page(2)
    assert found is not None
    assert len(found.parents()) == 2
    mmu.cr3(0, 0x1000)
    mmu.access(0, 0, *READ)
    assert mmu.counters.access_mapped == 1
    assert hits(mmu, 0x44) == 1


def test_a_two_level_directory_has_four_shadow_pages_and_a_table_two() -> None:
    mmu = make()
    two_level_guest(mmu)
    for va in (0, 2 << 20):
        mmu.access(0, va, *READ)
    assert [page.role for page in mmu.cache.active.values() if page.gfn == 1] == [pack(2, 2, quadrant, 0) for quadrant in range(4)]
    assert [page.role for page in mmu.cache.active.values() if page.gfn == 2] == [pack(2, 1, quadrant, 0) for quadrant in range(2)]
    mmu.access(0, 1 << 30, *READ)
    shared = mmu.cache.lookup_page(2)
    assert shared is not None
    assert {len(page.parents()) for page in mmu.cache.shadows(2)} == {1, 2}


def test_a_store_to_a_table_clears_its_entry_in_both_quadrants_unless_quadrants_are_tested() -> None:
    for changes, left in (({}, 0), ({"quadrant_test": True}, 1)):
        mmu = make(**changes)
        two_level_guest(mmu)
        for va in (0, 2 << 20):
            mmu.access(0, va, *READ)
        mmu.write(0, 0x2000, 4, 0)
        assert sum(bool(page.entries[0]) for page in mmu.cache.shadows(2)) == left


def directory_entries(mmu: Mmu, store: int) -> list[list[int]]:
    """Which entries of the four directory pages are left after a store to directory entry ``store``."""
    for va in (0, 2 << 20, 4 << 20, 6 << 20):
        mmu.access(0, va, *READ)
    mmu.write(0, 0x1000 + 4 * store, 4, 0)
    pages = sorted(mmu.cache.shadows(1), key=lambda page: page.role)
    return [[index for index, entry in enumerate(page.entries) if entry] for page in pages]


def test_2_6_20_clears_the_wrong_entry_for_a_directory_store_and_2_6_21_the_right_two() -> None:
    for model, left in (("kvm-2.6.20", [0, 2, 3]), ("kvm-2.6.21", [0, 1])):
        mmu = make(model)
        two_level_guest(mmu)
        assert directory_entries(mmu, 1) == [left, [], [], []]


def test_the_third_store_in_a_row_zaps_and_the_next_one_to_the_frame_too() -> None:
    for flood, zaps in ((3, 1), (0, 0), (1, 1), (5, 0)):
        mmu = make(flood=flood)
        long_guest(mmu)
        mmu.access(0, 0, *READ)
        for _ in range(3):
            mmu.write(0, 0x4008, 8, 0)
        assert mmu.counters.zaps_flood == zaps
    mmu = make()
    long_guest(mmu)
    for _ in range(2):
        mmu.access(0, 0, *READ)
        for _ in range(3):
            mmu.write(0, 0x4008, 8, 0)
    assert mmu.counters.zaps_flood == 2
    assert mmu.counters.writes_protected == 4


def test_faults_reset_the_flood_counter_where_that_is_chosen() -> None:
    for reset, zaps in ((False, 1), (True, 0)):
        mmu = make(flood_reset_by_faults=reset)
        long_guest(mmu)
        mmu.access(0, 0, *READ)
        for page in range(3):
            mmu.write(0, 0x4100, 8, 0)
            mmu.access(0, (page + 1) << 12, *READ)
        assert mmu.counters.zaps_flood == zaps


@pytest.mark.parametrize(("gpa", "size", "small", "misaligned"), [(0x4004, 8, False, 1), (0x4004, 2, False, 0), (0x4004, 2, True, 1)])
def test_a_store_across_two_entries_zaps(gpa: int, size: int, small: bool, misaligned: int) -> None:
    mmu = make(small_store_misaligned=small)
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    mmu.write(0, gpa, size, 0)
    assert mmu.counters.zaps_misaligned == misaligned


def test_a_store_across_two_pages_is_two_stores() -> None:
    mmu = make()
    long_guest(mmu)
    mmu.write(0, 0x4FFC, 8, 0x1122334455667788)
    assert mmu.counters.writes_split == 1
    assert mmu.memory.read(0x4FFC, 4) == 0x55667788
    assert mmu.memory.read(0x5000, 4) == 0x11223344


def test_a_supervisor_s_store_to_a_table_is_emulated_a_user_s_unshadows_it() -> None:
    mmu = make()
    long_guest(mmu, 0x4067)
    mmu.access(0, 0, *WRITE)
    assert mmu.counters.access_write_to_shadowed == 1
    mmu = make()
    long_guest(mmu)
    mmu.page(4, [(0, 0x9067), (1, 0x8067)])
    mmu.page(8, [(0, 0xA067)])
    mmu.page(3, [(0, 0x4067), (1, 0x8067)])
    mmu.access(0, 2 << 20, *READ)
    assert mmu.cache.lookup_page(8) is not None
    mmu.access(0, 0x1000, *USER_WRITE)
    assert mmu.cache.lookup_page(8) is None
    assert mmu.counters.zaps_user_fault == 1
    assert mmu.counters.access_shadow_fixed == 2
    audit(mmu)


def test_invlpg_does_nothing_with_a_cache_and_drops_the_leaf_without() -> None:
    for model, mapped in (("kvm-2.6.20", 1), ("uncached", 0)):
        mmu = make(model)
        long_guest(mmu)
        mmu.access(0, 0, *READ)
        mmu.invlpg(0, 0)
        mmu.access(0, 0, *READ)
        assert mmu.counters.access_mapped == mapped


def test_without_a_cache_every_root_load_starts_from_nothing() -> None:
    mmu = make("uncached")
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    made = mmu.counters.get_page_misses
    mmu.cr3(0, 0x1000)
    mmu.access(0, 0, *READ)
    assert mmu.counters.get_page_misses == made + 4
    assert mmu.counters.get_page_hits == 0
    assert len(mmu.cache.active) == 4


def test_kept_roots_need_no_lookup() -> None:
    mmu = make(keep_roots=1)
    long_guest(mmu)
    mmu.cr3(0, 0x5000)
    lookups, reused = mmu.counters.get_page_lookups, mmu.counters.roots_reused
    mmu.cr3(0, 0x1000)
    mmu.cr3(0, 0x5000)
    assert mmu.counters.get_page_lookups == lookups
    assert mmu.counters.roots_reused == reused + 2
    audit(mmu)


def test_pae_takes_four_roots_of_absent_pdptes_too_unless_told_to_skip_them() -> None:
    for skip, frames in ((False, [2, 3, 0, 0]), (True, [2, 3, None, None])):
        mmu = make(skip_absent_pdptes=skip)
        mmu.page(1, [(0, 0x2001), (1, 0x3001)])
        enter(mmu, PAE)
        roots = mmu.contexts[0].roots
        assert roots is not None
        assert [page and page.gfn for page in roots.pages] == frames
        audit(mmu)


def test_pdptes_come_with_the_load_where_it_has_them_and_bad_ones_refuse_it() -> None:
    mmu = make()
    mmu.page(1, [(0, 0x2001)])
    enter(mmu, PAE)
    mmu.cr3(0, 0x7000, (0x6001, 0, 0, 0))
    assert mmu.contexts[0].pdptrs == (0x6001, 0, 0, 0)
    mmu.cr3(0, 0x7000, (0x6003, 0, 0, 0))
    assert mmu.counters.mode_gp_injected == 1


def test_reserved_bits_are_masked_or_refused() -> None:
    for strict, refused in ((False, 0), (True, 1)):
        mmu = make(strict=strict)
        mmu.regs(0, None, 0x40020, None)
        assert mmu.counters.mode_gp_injected == refused
        assert mmu.contexts[0].cr4 == (0 if strict else 0x20)


def test_an_application_processor_comes_up_through_every_mode_while_the_first_runs_in_long_mode() -> None:
    """The use that the patch names: one cache, pages of all modes at once, found by whoever comes."""
    mmu = make(vcpus=2)
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    mmu.page(0x10, words32({0: 0x83}))
    mmu.page(0x20, [(0, 0x21001)])
    mmu.page(0x21, [(0, 0x83)])
    before = hits(mmu, pack(0, 2, 0, 1))
    mmu.access(1, 0x7000, *READ)
    assert mmu.contexts[1].root_level == 0
    enter(mmu, TWO_LEVEL, 0x10000, vcpu=1)
    mmu.access(1, 0x7000, *READ)
    mmu.regs(1, 0x11, None, None)
    assert hits(mmu, pack(0, 2, 0, 1)) > before
    enter(mmu, PAE, 0x20000, vcpu=1)
    mmu.access(1, 0x7000, *READ)
    mmu.regs(1, 0x11, None, None)
    enter(mmu, LONG, 0x1000, vcpu=1)
    faults = mmu.counters.access_faults
    mmu.access(1, 0, *READ)
    assert mmu.counters.access_faults == faults
    assert {page.role & 15 for page in mmu.cache.active.values()} == {0, 2, 3, 4}
    root = mmu.cache.lookup_page(1)
    assert root is not None
    assert root.root_count == 2
    audit(mmu)


def test_flood_counters_are_a_vcpu_s_own() -> None:
    mmu = make(vcpus=2)
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    for vcpu in (0, 1, 0, 1):
        mmu.write(vcpu, 0x4008, 8, 0)
    assert mmu.counters.zaps_flood == 0


class TestCorners:
    """What 2.6.20 could not survive."""

    def test_a_root_is_needed_and_no_page_is_free(self) -> None:
        mmu = make(pages=29)
        for number in range(200):
            mmu.cr3(0, (number + 1) << 12)
            mmu.regs(0, 0x80010011 if number % 2 else 0x11, 0x10, 0)
            audit(mmu)
        assert mmu.counters.corner_roots_without_free_page > 0
        assert mmu.counters.corner_out_of_pages == 0

    def test_a_user_store_to_a_root_in_use(self) -> None:
        mmu = make()
        long_guest(mmu, 0x1067)
        mmu.access(0, 0, *USER_WRITE)
        assert mmu.counters.corner_user_store_to_root == 1
        assert mmu.counters.zaps_root_kept == 1
        audit(mmu)

    def test_a_user_store_that_zaps_the_table_of_its_own_leaf(self) -> None:
        mmu = make()
        long_guest(mmu, 0x4067)
        mmu.access(0, 0, *USER_WRITE)
        assert mmu.counters.corner_leaf_zapped_by_store == 1
        assert mmu.counters.access_unresolved == 1
        audit(mmu)

    def test_an_entry_that_lost_w_with_wp_clear(self) -> None:
        mmu = make()
        long_guest(mmu, 0x9065)
        mmu.regs(0, 0x80000011, None, None)
        mmu.access(0, 0, *WRITE)
        mmu.access(0, 0, False, True, False)
        mmu.access(0, 0, *WRITE)
        mmu.access(0, 0, False, True, False)
        mmu.page(3, [(0, 0x4067), (1, 0x9067)])
        mmu.page(9, [(0, 0xA067)])
        mmu.access(0, 2 << 20, *READ)
        assert mmu.counters.corner_stale_rmap > 0
        audit(mmu)

    def test_a_root_outside_ram(self) -> None:
        mmu = make(ram_pages=0x100)
        mmu.page(1, [(0, 0x500000)])
        enter(mmu, PAE)
        assert mmu.counters.corner_root_outside_ram == 1
        audit(mmu)

    def test_every_page_is_a_root_in_use(self) -> None:
        mmu = make(pages=41, keep_roots=0, vcpus=4)
        for vcpu in range(4):
            enter(mmu, TWO_LEVEL, (vcpu + 1) << 12, vcpu)
        for number in range(100):
            mmu.cr3(number % 4, (number + 1) << 12)
            mmu.access(number % 4, number << 22, *READ)
            audit(mmu)


@pytest.mark.parametrize(
    "changes",
    [
        {"pages": 28},
        {"pages": 40, "keep_roots": 3},
        {"buckets": 0},
        {"hash": "sha1"},
        {"hash": "hash_64", "buckets": 100},
        {"flood": -1},
        {"min_free": 0},
        {"min_free": 3},
        {"refill": 3},
        {"pages": 1 << 21},
    ],
)
def test_parameters_that_admit_no_run_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make(**changes)


def test_a_store_through_a_leaf_older_than_the_guest_s_entry_is_counted() -> None:
    """The wrong entry that 2.6.20 clears leaves a stale leaf, which later gets W though its frame is shadowed by then."""
    for model, stale in (("kvm-2.6.20", 1), ("kvm-2.6.21", 0)):
        mmu = make(model)
        mmu.page(1, words32({1: 0x3067}))
        mmu.page(3, words32({0: 0x5007}))
        mmu.page(4, words32({0: 0x7007}))
        enter(mmu, TWO_LEVEL)
        mmu.access(0, 4 << 20, False, True, False)
        mmu.write(0, 0x1004, 4, 0x4067)
        mmu.cr3(0, 0x5000)
        mmu.cr3(0, 0x1000)
        mmu.access(0, 4 << 20, *USER_WRITE)
        assert mmu.counters.corner_stale_leaf_written == stale
        audit(mmu)


def test_without_a_cache_no_vcpu_starves_another() -> None:
    mmu = make("uncached", vcpus=2, pages=64)
    for gfn in (1, 2, 3):
        mmu.page(gfn, [(index, (gfn + 1) << 12 | 0x67) for index in range(128)])
    mmu.page(4, [(0, 0x10067)])
    for vcpu in (0, 1):
        enter(mmu, LONG, vcpu=vcpu)
    for index in range(60):
        mmu.access(0, index << 39, *READ)
        mmu.access(1, index << 39, *READ)
        audit(mmu)
    assert mmu.counters.corner_out_of_pages == 0
    assert mmu.counters.access_unresolved == 0


def test_an_access_under_a_pdpte_that_was_absent_at_the_load_has_no_root() -> None:
    mmu = make("kvm-2.6.24")
    enter(mmu, PAE)
    mmu.contexts[0].pdptrs = (0x2001, 0, 0, 0)
    mmu.page(2, [(0, 0x83)])
    mmu.access(0, 0, *READ)
    assert (mmu.counters.corner_no_root, mmu.counters.corner_out_of_pages, mmu.counters.access_unresolved) == (1, 0, 1)
