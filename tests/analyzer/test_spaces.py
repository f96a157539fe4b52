"""Address spaces, the pages they share, and where hits come from: on small guests worked out by hand."""

from __future__ import annotations

from analyzer.facts.collect import Facts, facts
from analyzer.facts.journal_columns import rows_of
from analyzer.facts.spaces import AddressSpace, spaces, to_neighbours
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from analyzer.trace.context import Root, Story
from tests.analyzer.test_mmu import LONG, PAE, READ, TWO_LEVEL, enter, long_guest, make, words32


def known(mmu: Mmu, *roots: Root) -> list[AddressSpace]:
    return spaces(rows_of(mmu.journal.finish()), Story(roots=roots)).all


def told(mmu: Mmu, *roots: Root) -> Facts:
    return facts(outcome(mmu), Story(roots=roots))


def two_programs(model: str = "kvm-2.6.20") -> Mmu:
    """Frames 1 and 5 are top tables over the same tables 2, 3 and 4; each has an entry 1 of its own, to 6 and 7.

    ====== =============================================================
    event  what
    ====== =============================================================
    1..6   ``long_guest``: four contents, cr3 without paging, paging on
    7..10  contents of 1, 5, 6 and 7
    11, 12 accesses to va 0 and to va 512 GiB, under frame 1
    13     cr3: frame 5
    14, 15 the same accesses
    16     cr3: frame 1
    ====== =============================================================
    """
    mmu = make(model)
    long_guest(mmu)
    mmu.page(1, [(0, 0x2067), (1, 0x6067)])
    mmu.page(5, [(0, 0x2067), (1, 0x7067)])
    mmu.page(6, [(0, 0x3067)])
    mmu.page(7, [(0, 0x3067)])
    mmu.access(0, 0, *READ)
    mmu.access(0, 1 << 39, *READ)
    mmu.cr3(0, 0x5000)
    mmu.access(0, 0, *READ)
    mmu.access(0, 1 << 39, *READ)
    mmu.cr3(0, 0x1000)
    return mmu


def test_each_space_has_what_was_done_in_it() -> None:
    """Under frame 1: the root, tables 2, 3, 4 and 6 are made, and 3 is found under 6; at the second load the root is found.

    Under frame 5: the root and 7 are made; 2 is found under the root and 3 under 7. Each access faults.
    """
    nothing, first, second = known(two_programs())
    assert (nothing.name, nothing.glevels, nothing.loads, nothing.made, nothing.hits) == ("no paging", 0, 2, 4, 4)
    assert (first.name, first.loads, first.lookups, first.hits, first.made, first.faults) == ("gfn 0x1", 2, 7, 2, 5, 2)
    assert (second.name, second.loads, second.lookups, second.hits, second.made, second.faults) == ("gfn 0x5", 1, 4, 2, 2, 2)
    assert (first.first_event, first.last_event, second.first_event, second.last_event) == (6, 16, 13, 15)


def test_pages_in_several_spaces_are_those_both_roots_lead_to() -> None:
    """2, 3 and 4 are in both; the root and 6 are the first's own, the root and 7 the second's."""
    end = told(two_programs())["space_sharing"]["end"]
    assert [
        (row["level"], row["pages"], row["in_none"], row["in_one_root"], row["in_several"], row["most_roots"]) for row in end["by_level"]
    ] == [
        (4, 2, 0, 2, 0, 1),
        (3, 3, 0, 2, 1, 2),
        (2, 1 + 4, 0, 4, 1, 2),
        (1, 1, 0, 0, 1, 2),
    ]
    assert [row["histogram"] for row in end["by_level"]] == [{"1": 2}, {"1": 2, "2": 1}, {"1": 4, "2": 1}, {"2": 1}]
    assert end["matrix"] == {"spaces": [0, 1, 2], "shared": [[4, 0, 0], [0, 5, 3], [0, 3, 5]]}
    assert [space["pages_now"] for space in told(two_programs())["spaces"]] == [4, 5, 5]


def test_the_peak_of_sharing_is_before_the_shared_table_dies() -> None:
    """Three stores to table 3, which has three parents, zap it (event 19): nothing has several parents then but 2.

    At the peak both 2 and 3 have several: 3 since event 12, under 2 and 6, and 2 since event 14, under both roots.
    """
    mmu = two_programs()
    for _ in range(3):
        mmu.write(0, 0x3008, 8, 0)
    sharing = told(mmu)["space_sharing"]
    assert (sharing["peak"]["event"], sharing["end"]["event"]) == (14, 19)
    level1 = {row["level"]: row for row in sharing["end"]["by_level"]}[1]
    assert (level1["in_none"], level1["in_several"]) == (1, 0)


def test_a_frame_is_one_space_after_another() -> None:
    """Frame 5 is sh's at its load of event 13, and a root of no name from event 17, loaded at event 17."""
    mmu = two_programs()
    mmu.cr3(0, 0x5000)
    mmu.access(0, 0, *READ)
    mmu.cr3(0, 0x1000)
    roots = (Root(0x1000, 4, "init"), Root(0x5000, 13, "sh"), Root(0x5000, 17))
    assert [(space.name, space.generation, space.loads) for space in known(mmu, *roots)] == [
        ("no paging", 0, 2),
        ("init", 0, 3),
        ("sh", 0, 1),
        ("gfn 0x5.1", 1, 1),
    ]
    # The frame is the second program's now: its roots count for it alone.
    pages = {space["name"]: space["pages_now"] for space in told(mmu, *roots)["spaces"]}
    assert (pages["sh"], pages["gfn 0x5.1"]) == (0, 5)


def test_of_generations_that_begin_together_the_last_counts() -> None:
    roots = (Root(0x5000, 13, "sh"), Root(0x5000, 13, "ls"))
    assert [(space.name, space.generation) for space in known(two_programs(), *roots)][2:] == [("ls", 1)]


def test_a_vcpu_has_its_own_space() -> None:
    mmu = make(vcpus=2)
    long_guest(mmu)
    mmu.page(5, [(0, 0x2067)])
    enter(mmu, LONG, 0x5000, vcpu=1)
    mmu.access(1, 0, *READ)
    assert [space.name for space in known(mmu, Root(0x5000, 8, "sh"))] == ["no paging", "gfn 0x1", "sh"]


def test_a_pae_guest_s_four_directories_are_one_space() -> None:
    """cr3 = 0x1000 with directories 2 and 3 for the first two GiB, cr3 = 0x5000 with 2 and 4: directory 2 is part of both."""
    mmu = make()
    mmu.page(1, [(0, 0x2001), (1, 0x3001)])
    mmu.page(5, [(0, 0x2001), (1, 0x4001)])
    for gfn in (2, 3, 4):
        mmu.page(gfn, [(0, 0x9067)])
    mmu.page(9, [(0, 0xA067)])
    enter(mmu, PAE)
    for va in (0, 1 << 30):
        mmu.access(0, va, *READ)
    mmu.cr3(0, 0x5000)
    for va in (0, 1 << 30):
        mmu.access(0, va, *READ)
    end = told(mmu)
    # Pages: directory 0 (of the absent two), 2, 3, 4 and table 9. In the first space 0, 2, 3 and 9, in the second 0, 2, 4 and 9.
    assert [space["pages_now"] for space in end["spaces"][1:]] == [4, 4]
    assert end["space_sharing"]["end"]["matrix"]["shared"][1] == [0, 4, 3]
    # Of the second load's roots, directories 2 and 0 (twice) were made in the first space; 0 was found once there, at its second place.
    assert {name: end["origin"]["roots"][name] for name in ("same_root", "other_root")} == {"same_root": 1 + 4, "other_root": 3}


def test_pae_pointers_in_one_page_are_roots_of_their_own() -> None:
    """Two sets of PDPTEs, 32 bytes apart: the frame in cr3 is the same, the address spaces are two."""
    mmu = make()
    mmu.page(1, [(0, 0x2001), (4, 0x3001)])
    for gfn in (2, 3):
        mmu.page(gfn, [(0, 0x9067)])
    mmu.page(9, [(0, 0xA067)])
    enter(mmu, PAE)
    mmu.access(0, 0, *READ)
    mmu.cr3(0, 0x1020)
    mmu.access(0, 0, *READ)
    mmu.cr3(0, 0x1008)
    spaces = known(mmu, Root(0x1000, 1, "init"), Root(0x1020, 8, "sh"))
    # cr3's lowest five bits are no part of the address.
    assert [(space.name, space.root, space.loads) for space in spaces] == [("no paging", 0, 2), ("init", 0x1000, 2), ("sh", 0x1020, 1)]
    assert [space.name for space in known(mmu)] == ["no paging", "gfn 0x1", "gfn 0x1+0x20"]


def test_hits_tell_who_made_the_page_and_how_old_it_is() -> None:
    """Tables: 3 found under 6 at event 12 and made at 11 (its own space, 1 event); 2 at 14 and 3 at 15, made at 11 by the other's.

    Roots: at event 16 root 1, made at event 6: 10 events, so up to 16; and at event 6 the four without paging, of event 0: up to 8.
    """
    origin = told(two_programs())["origin"]
    names = ("same_root", "other_root", "other_vcpu", "other_mode")
    assert [origin["tables"][name] for name in names] == [1, 2, 0, 0]
    assert origin["tables"]["age"] == ({"up_to": 1, "hits": 1}, {"up_to": 4, "hits": 2})
    assert [origin["roots"][name] for name in names] == [4 + 1, 0, 0, 0]
    assert origin["roots"]["age"] == ({"up_to": 8, "hits": 4}, {"up_to": 16, "hits": 1})


def test_what_another_vcpu_made_is_its_origin_whatever_the_space() -> None:
    """vCPU 1 loads the root that vCPU 0 made; on its way it finds the four roots of the time without paging, twice.

    vCPU 1 found those at its creation already: 4 + 4, and vCPU 0 its own 4 when it set CR4.
    """
    mmu = make(vcpus=2)
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    enter(mmu, LONG, 0x1000, vcpu=1)
    mmu.access(1, 0, *READ)
    roots = told(mmu)["origin"]["roots"]
    assert (roots["other_vcpu"], roots["same_root"], roots["other_mode"]) == (4 + 4 + 1, 4, 0)


def test_page_table_isolation_goes_to_the_frame_beside() -> None:
    """From 6 to 7 and back, twice: the first load comes from frame 1."""
    mmu = make()
    long_guest(mmu)
    for gfn in (6, 7, 6, 7):
        mmu.cr3(0, gfn << 12)
    rows = rows_of(mmu.journal.finish())
    assert to_neighbours(rows) == 3
    assert told(mmu)["roots"]["to_neighbours"] == 3


def test_without_paging_cr3_is_of_no_account() -> None:
    mmu = make()
    mmu.cr3(0, 0x7000)
    mmu.regs(0, None, 0x10, None)
    mmu.page(1, words32({0: 0x83}))
    enter(mmu, TWO_LEVEL)
    assert [(space.glevels, space.root, space.loads) for space in known(mmu)] == [(0, 0, 2), (2, 0x1000, 1)]
