"""Facts by role and frame: worked out by hand on small guests, and row by row on random ones."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.facts.collect import Facts, facts
from analyzer.facts.journal_columns import rows_of
from analyzer.facts.sharing import sharing
from analyzer.facts.tree import multi_parent
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from analyzer.model.parameters import parameters
from tests.analyzer.guests import Step, apply, start, steps
from tests.analyzer.rowbyrow import slow
from tests.analyzer.test_mmu import LONG, PAE, READ, TWO_LEVEL, enter, long_guest, make, two_level_guest, words32
from tests.analyzer.test_properties import VARIANTS


def told(mmu: Mmu) -> Facts:
    return facts(outcome(mmu))


def of(rows: list[Facts], **values: Any) -> Facts:
    (row,) = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return row


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))
@given(mode=st.sampled_from(["two-level", "pae", "long"]), events=steps(), vcpus=st.integers(1, 2))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_columns_come_to_what_rows_do(variant: dict[str, object], mode: str, events: list[Step], vcpus: int) -> None:
    mmu = Mmu(parameters(**variant), vcpus)
    for step in start(mode) + events:
        apply(mmu, step, vcpus)
    journal = outcome(mmu).journal
    fast, kept = sharing(journal), slow(journal)
    for role, ours in fast.roles.items():
        assert (ours.lookups, ours.hits, ours.live, ours.peak) == (kept.lookups[role], kept.hits[role], kept.live[role], kept.peak[role])
        assert ours.deaths == {cause: n for (which, cause), n in kept.deaths.items() if which == role}
        assert (ours.lifetime is None) == (role not in kept.lives)
        if ours.lifetime is not None:
            assert (ours.lifetime.median, ours.lifetime.max) == (median(kept.lives[role]), max(kept.lives[role]))
    assert set(fast.roles) == set(kept.lookups)
    assert fast.key == {part: kept.key[part] for part in fast.key}
    assert {way: spread.now for way, spread in fast.spread.items()} == {way: kept.spread[way] for way in fast.spread}
    assert {way: spread.peak for way, spread in fast.spread.items()} == {way: kept.spread_peak[way] for way in fast.spread}
    assert {n: s.peak for n, s in fast.pages_per_frame.items()} == {n: peak for n, peak in kept.per_frame_peak.items() if n > 1 and peak}
    assert fast.shadowed == sum(1 for roles in kept.frames.values() if roles)
    assert int(multi_parent(rows_of(journal))[1].max(initial=0)) == kept.several_parents_peak


def test_a_leaf_table_lives_from_its_fault_to_the_third_store() -> None:
    """Made at event 7, zapped by the third of three stores, event 10: it lived 3 events. Made again at 11, zapped at 17: 6 events.

    Between are two stores elsewhere (12, 13) and an access (14, mapped), so that the stores of 15, 16 and 17 are three in a row.
    """
    mmu = make()
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    for _ in range(3):
        mmu.write(0, 0x4008, 8, 0)
    mmu.access(0, 0, *READ)
    mmu.write(0, 0x3010, 8, 0)
    mmu.write(0, 0x3010, 8, 0)
    mmu.access(0, 0, *READ)
    for _ in range(3):
        mmu.write(0, 0x4008, 8, 0)
    leaf = of(told(mmu)["roles"], glevels=4, level=1)
    assert leaf["lifetime"] == {"median": 4.5, "mean": 4.5, "max": 6}
    assert (leaf["made"], leaf["live"], leaf["peak"], leaf["deaths"], leaf["stores"]) == (2, 0, 1, {"flood": 2}, 6)
    assert of(told(mmu)["roles"], glevels=4, level=2)["stores"] == 2
    assert of(told(mmu)["roles"], glevels=4, level=4)["lifetime"] is None


def test_a_zapped_table_leaves_its_child_an_orphan() -> None:
    """Three stores to the level-2 table, gfn 3, zap it; the leaf table under it, gfn 4, stays, without a parent and no root."""
    mmu = make()
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    for _ in range(3):
        mmu.write(0, 0x3008, 8, 0)
    end = told(mmu)
    assert {role["level"]: role["orphans"] for role in end["roles"] if role["glevels"] == 4} == {4: 0, 3: 0, 2: 0, 1: 1}
    assert sum(role["orphans"] for role in end["roles"]) == end["live"]["orphans"] == 1 + 4  # the four roots of the time without paging


def test_a_two_level_guest_s_directory_is_four_pages_and_its_table_two() -> None:
    """Directory gfn 1: four roots, one a quadrant. Table gfn 2: va 0 is in its first half, va 2 MiB in its second."""
    mmu = make()
    two_level_guest(mmu)
    for va in (0, 2 << 20):
        mmu.access(0, va, *READ)
    end = told(mmu)
    frames = end["frames"]
    # gfn 0 has the four roots of the time without paging.
    assert frames["by_pages"] == [{"pages": 2, "now": 1, "peak": 1}, {"pages": 3, "now": 0, "peak": 1}, {"pages": 4, "now": 2, "peak": 2}]
    assert frames["told_apart_by"]["quadrant"] == {"now": 3, "peak": 3}
    assert frames["told_apart_by"]["level"] == {"now": 0, "peak": 0}
    assert [(top["gfn"], top["pages"], top["told_apart_by"]) for top in frames["top"]] == [
        (0, 4, ["quadrant"]),
        (1, 4, ["quadrant"]),
        (2, 2, ["quadrant"]),
    ]
    # The roots were missed with 0 to 3 of their siblings there (3 of 4 misses count, twice), the table's second page with its first.
    assert end["key"] == {"level": 0, "quadrant": 3 + 3 + 1, "glevels": 0, "metaphysical": 0}


def test_a_pae_guest_s_directory_that_maps_itself_is_told_apart_by_level() -> None:
    """PDPTE 0 names gfn 2, whose entry 511 names gfn 2: va 511 x 2 MiB is translated with it as a leaf table."""
    mmu = make()
    mmu.page(1, [(0, 0x2001)])
    mmu.page(2, [(0, 0x9067), (511, 0x2067)])
    enter(mmu, PAE)
    mmu.access(0, 511 << 21, *READ)
    end = told(mmu)
    assert [(top["gfn"], top["told_apart_by"]) for top in end["frames"]["top"]] == [
        (0, ["quadrant", "glevels", "metaphysical"]),
        (2, ["level"]),
    ]
    assert end["key"]["level"] == 1
    # Three absent PDPTEs make one root of frame 0, made once and found twice.
    assert end["roots"]["of_frame_0"] == 3
    root = of(end["roles"], glevels=3, level=2)
    assert (root["lookups"], root["hits"], root["live"]) == (4, 2, 2)


def test_modes_are_told_apart_by_glevels() -> None:
    """The same frame 1 is the directory of a two-level guest and then the top table of a long-mode one."""
    mmu = make()
    two_level_guest(mmu)
    mmu.regs(0, 0x11, None, None)
    enter(mmu, LONG)
    apart = told(mmu)["frames"]["told_apart_by"]
    assert (apart["glevels"]["now"], apart["level"]["now"], apart["quadrant"]["now"]) == (1, 1, 2)


def test_a_4_mib_page_is_shadowed_by_two_metaphysical_pages_of_one_frame() -> None:
    """A 4 MiB page at frame 0x400: its two halves are quadrants 0 and 1 of a metaphysical key."""
    mmu = make()
    mmu.page(1, words32({0: 0x400083}))
    enter(mmu, TWO_LEVEL)
    mmu.access(0, 0, *READ)
    mmu.access(0, 2 << 20, *READ)
    big = [role for role in told(mmu)["roles"] if role["metaphysical"] and role["glevels"] == 2]
    assert [(role["level"], role["quadrant"], role["made"]) for role in big] == [(1, 0, 1), (1, 1, 1)]
    assert sharing(mmu.journal.finish()).spread["metaphysical"].now == 0


def test_parents_are_counted_and_the_kernel_s_half_is_known() -> None:
    """Frames 1 and 5 are top tables with an entry 256 to gfn 2 each; 1 has entry 0 to gfn 6 too: gfn 2 is the kernel's, with 2 parents."""
    mmu = make()
    long_guest(mmu)
    mmu.page(1, [(0, 0x6067), (256, 0x2067)])
    mmu.page(5, [(256, 0x2067)])
    mmu.page(6, [(0, 0x3067)])
    kernel = 0xFFFF_8000_0000_0000
    mmu.access(0, kernel, *READ)
    mmu.access(0, 0, *READ)
    mmu.cr3(0, 0x5000)
    mmu.access(0, kernel, *READ)
    end = told(mmu)
    top = [(page["gfn"], page["parents"], page["kernel_half"], page["spaces"]) for page in end["parents_top"]]
    # gfn 3, the level-2 table, hangs under gfn 2 (kernel) and gfn 6 (user): both halves lead to it.
    both = ("gfn 0x1", "gfn 0x5")
    assert top == [(2, 2, True, both), (3, 2, None, both)]
    assert of(end["parents"], level=3)["histogram"] == {"1": 1, "2": 1}
    assert of(end["parents"], level=3)["chains_half_empty"] == 1
    assert of(end["parents"], level=1)["histogram"] == {"1": 1}


def test_the_last_gib_is_a_two_level_kernel_s() -> None:
    mmu = make()
    mmu.page(1, words32({0: 0x2067, 768: 0x3067, 769: 0x3067}))
    mmu.page(2, words32({0: 0x9067}))
    mmu.page(3, words32({0: 0x9067}))
    enter(mmu, TWO_LEVEL)
    for va in (0, 0xC000_0000, 0xC040_0000):
        mmu.access(0, va, *READ)
    (page,) = told(mmu)["parents_top"]
    assert (page["gfn"], page["parents"], page["kernel_half"]) == (3, 2, True)


def test_chains_of_the_hash_add_up_and_the_worst_is_explained() -> None:
    """Big pages at frames 0, 512 and 1024 share bucket 0 with the four roots without paging: seven pages, all metaphysical."""
    mmu = make()
    mmu.page(1, [(0, 0x2067)])
    mmu.page(2, [(0, 0x3067)])
    mmu.page(3, [(i, i << 21 | 0xE7) for i in range(3)])
    enter(mmu, LONG)
    for i in range(3):
        mmu.access(0, i << 21, *READ)
    table = told(mmu)["hash"]
    assert table["chains"] == [{"length": 0, "buckets": 252}, {"length": 1, "buckets": 3}, {"length": 7, "buckets": 1}]
    (worst,) = table["worst"]
    assert (worst["bucket"], worst["pages"], worst["frames"], worst["metaphysical"]) == (0, 7, 3, 7)
    assert worst["why"].startswith("keys that are multiples of 512")


def test_a_bucket_with_quadrants_says_so() -> None:
    mmu = make()
    two_level_guest(mmu)
    worst = {bucket["bucket"]: bucket["why"] for bucket in told(mmu)["hash"]["worst"]}
    assert worst[1].startswith("few frames")


def test_the_frame_whose_page_is_made_most_is_named() -> None:
    mmu = make(flood=1)
    long_guest(mmu)
    for _ in range(4):
        mmu.access(0, 0, *READ)
        mmu.write(0, 0x4000, 8, 0x9067)
    end = told(mmu)
    assert end["frames"]["most_made"][0] == {"gfn": 0, "made": 4, "levels": [2], "names": ["no paging"]}
    assert end["frames"]["most_made"][1] == {"gfn": 4, "made": 4, "levels": [1], "names": ["gfn 0x1"]}
    assert (end["live"]["keys_ever"], end["live"]["peak"]) == (4 + 4, 8)
