"""The journal: its rows on a guest worked out by hand, and on random guests that it tells how everything ended."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.model.journal import AS_ROOT, CAUSES, FLOODED, NO_PAGE, ROOT_SHIFT, Fault, Journal, What
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from analyzer.model.parameters import parameters
from analyzer.model.role import pack
from tests.analyzer.guests import Step, apply, start, steps
from tests.analyzer.test_mmu import READ, WRITE, long_guest, make
from tests.analyzer.test_properties import VARIANTS


def plain(journal: Journal) -> list[tuple[int, int, int, int, int]]:
    """(event, what, cause, page, other) of each row."""
    columns = (journal.rows[name].tolist() for name in ("event", "what", "cause", "page", "other"))
    return list(zip(*columns, strict=True))


def test_a_machine_s_creation_makes_four_roots() -> None:
    journal = make().journal.finish()
    assert plain(journal) == [(0, What.ROOTS_LOADED, 0, 0, 0), *((0, What.ALLOC, AS_ROOT, birth, NO_PAGE) for birth in range(4))]
    assert journal.births["role"].tolist() == [pack(0, 2, quadrant, 1) for quadrant in range(4)]


def test_a_fault_makes_and_links_each_level_and_three_stores_zap_a_table() -> None:
    mmu = make()
    long_guest(mmu)
    before = len(mmu.journal.finish().rows)
    first = mmu.counters.events_total + 1
    mmu.access(0, 0, *READ)
    for _ in range(3):
        mmu.write(0, 0x4008, 8, 0)
    mmu.access(0, 0, *WRITE)
    root, table3, table2, table1, again = 4, 5, 6, 7, 8
    assert plain(mmu.journal.finish())[before:] == [
        (first, What.ALLOC, 0, table3, root),
        (first, What.LINKED, 0, table3, root),
        (first, What.ALLOC, 0, table2, root),
        (first, What.LINKED, 0, table2, table3),
        (first, What.ALLOC, 0, table1, root),
        (first, What.LINKED, 0, table1, table2),
        (first, What.FAULT, Fault.SHADOW_FIXED, table1, NO_PAGE),
        (first + 1, What.STORE, 0, table1, 1),
        (first + 2, What.STORE, 0, table1, 1),
        (first + 3, What.STORE, FLOODED, table1, 1),
        (first + 3, What.UNLINKED, 0, table1, table2),
        (first + 3, What.ZAP_FREED, CAUSES.index("flood"), table1, NO_PAGE),
        (first + 4, What.ALLOC, 0, again, root),
        (first + 4, What.LINKED, 0, again, table2),
        (first + 4, What.FAULT, Fault.SHADOW_FIXED, again, NO_PAGE),
    ]


def test_a_cr3_load_says_which_root_and_finds_it() -> None:
    mmu = make()
    long_guest(mmu)
    before = len(mmu.journal.finish().rows)
    mmu.cr3(0, 0x1000)
    event = mmu.counters.events_total
    assert plain(mmu.journal.finish())[before:] == [
        (event, What.ROOTS_LOADED, 4, 0x1000 >> ROOT_SHIFT, 0),
        (event, What.HIT, AS_ROOT, 4, NO_PAGE),
    ]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))
@given(mode=st.sampled_from(["two-level", "pae", "long"]), events=steps(), vcpus=st.integers(1, 2))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_journal_tells_how_it_ended(variant: dict[str, object], mode: str, events: list[Step], vcpus: int) -> None:
    mmu = Mmu(parameters(**variant), vcpus)
    for step in start(mode) + events:
        apply(mmu, step, vcpus)
    end = outcome(mmu)
    alive: set[int] = set()
    parents: Counter[int] = Counter()
    for _, what, _, page, _ in plain(end.journal):
        if what == What.ALLOC:
            alive.add(page)
        elif what == What.ZAP_FREED:
            alive.remove(page)
        elif what == What.LINKED:
            parents[page] += 1
        elif what == What.UNLINKED:
            parents[page] -= 1
    assert {page.birth: page.parents for page in end.pages} == {birth: parents[birth] for birth in alive}
    assert [(page.gfn, page.role) for page in end.pages] == [tuple(end.journal.births[page.birth]) for page in end.pages]
    faults = Counter(cause for _, what, cause, _, _ in plain(end.journal) if what == What.FAULT)
    counters = end.counters
    expected = (counters.access_shadow_fixed, counters.access_guest_faults, counters.access_write_to_shadowed)
    assert tuple(faults[answer] for answer in Fault) == (*expected, counters.access_mmio, counters.access_unresolved)
