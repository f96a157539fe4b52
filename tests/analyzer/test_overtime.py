"""Phases and slices of a replay, on small guests, and that they add up."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.facts.collect import facts
from analyzer.facts.savings import Costs, exits, saved
from analyzer.facts.sharing import PARTS
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from analyzer.model.parameters import parameters
from analyzer.trace.context import Mark, Story
from tests.analyzer.guests import Step, apply, start, steps
from tests.analyzer.rowbyrow import slow
from tests.analyzer.test_mmu import LONG, READ, enter, long_guest, make, two_level_guest
from tests.analyzer.test_spaces import two_programs

MARKS = Story(marks=(Mark("kernel entry", 7, 2), Mark("first user process", 13, 2)))


def test_phases_are_from_mark_to_mark() -> None:
    """Of ``two_programs``, whose 16 events its docstring lists: 1..6, 7..12 and 13..16.

    The first has the creation too: 2 loads of roots without paging, then that of frame 1 is the third; 4 roots made, 4 found and 1 made.
    The second makes 2, 3, 4 and 6 and finds 3. The third loads twice, makes root 5 and 7, finds 2, 3 and root 1.
    """
    phases = facts(outcome(two_programs()), MARKS)["phases"]
    assert [(p["name"], p["first"], p["last"]) for p in phases] == [
        ("start", 1, 6),
        ("kernel entry", 7, 12),
        ("first user process", 13, 16),
    ]
    assert [(p["cr3"], p["lookups"], p["hits"], p["made"]) for p in phases] == [(3, 9, 4, 5), (0, 5, 1, 4), (2, 5, 3, 2)]
    assert [(p["accesses"], p["faults"]) for p in phases] == [(0, 0), (2, 2), (2, 2)]
    assert [p["live_end"] for p in phases] == [5, 9, 11]


def test_a_phase_tells_its_zaps_by_cause() -> None:
    mmu = make()
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    for _ in range(3):
        mmu.write(0, 0x4008, 8, 0)
    mmu.access(0, 0, *READ)
    mmu.write(0, 0x4001, 8, 0)
    last = facts(outcome(mmu), Story(marks=(Mark("reset", 1, 1), Mark("later", 11, 1))))["phases"]
    assert [(p["zaps"], p["stores"]) for p in last] == [({"flood": 1}, 3), ({"misaligned_and_flood": 1}, 1)]


def test_marks_at_one_place_make_an_empty_phase() -> None:
    marks = Story(marks=(Mark("reset", 1, 0), Mark("a", 7, 0), Mark("b", 7, 4)))
    phases = facts(outcome(two_programs()), marks)["phases"]
    assert [(p["name"], p["last"] - p["first"] + 1, p["lookups"]) for p in phases] == [("reset", 6, 9), ("a", 0, 0), ("b", 10, 10)]


def test_a_short_replay_has_a_slice_for_each_event() -> None:
    told = facts(outcome(two_programs()))["over_time"]
    buckets = told["buckets"]
    assert told["bucket_events"] == 1
    assert [bucket["first"] for bucket in buckets] == list(range(1, 17))
    # The creation's four roots count to the first.
    assert [bucket["made"] for bucket in buckets] == [4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 3, 1, 1, 0, 1, 0]
    assert buckets[-1]["live"] == {"1": 1, "2": 5, "3": 3, "4": 2}
    # 2 and 3 have several parents; frame 0 has four pages.
    assert (buckets[10]["multi_parent"], buckets[-1]["multi_parent"], buckets[-1]["several_pages"]) == (0, 2, 1)


def test_a_slice_tells_frames_with_several_pages_apart() -> None:
    """Directory gfn 1: four roots at event 5, one a quadrant. Table gfn 2: va 0 is in its first half, event 6, va 2 MiB in its second, 7.

    Paging goes off (8), and at event 10 gfn 1 is the top table of long mode too: its fifth page. gfn 0 has the four roots without paging
    all along.
    """
    mmu = make()
    two_level_guest(mmu)
    for va in (0, 2 << 20):
        mmu.access(0, va, *READ)
    mmu.regs(0, 0x11, None, None)
    enter(mmu, LONG)
    buckets = facts(outcome(mmu))["over_time"]["buckets"]
    none = {"level": 0, "quadrant": 0, "glevels": 0, "metaphysical": 0}
    told = [(bucket["told_apart_by"], bucket["by_pages"]) for bucket in buckets]
    assert told[:4] == [(none | {"quadrant": 1}, {"2": 0, "3": 0, "4": 1, "5": 0})] * 4
    assert told[4:6] == [(none | {"quadrant": 2}, {"2": 0, "3": 0, "4": 2, "5": 0})] * 2
    assert told[6:9] == [(none | {"quadrant": 3}, {"2": 1, "3": 0, "4": 2, "5": 0})] * 3
    assert told[9:] == [({"level": 1, "quadrant": 3, "glevels": 1, "metaphysical": 0}, {"2": 1, "3": 0, "4": 1, "5": 1})]
    assert [bucket["several_pages"] for bucket in buckets] == [1] * 4 + [2] * 2 + [3] * 4


@given(mode=st.sampled_from(["two-level", "pae", "long"]), events=steps(), vcpus=st.integers(1, 2))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_slices_of_one_event_tell_frames_apart_as_row_by_row(mode: str, events: list[Step], vcpus: int) -> None:
    mmu = Mmu(parameters("kvm-2.6.20", pages=64), vcpus)
    for step in start(mode) + events:
        apply(mmu, step, vcpus)
    end = outcome(mmu)
    told, kept = facts(end)["over_time"], slow(end.journal).over_time
    assert told["bucket_events"] == 1
    spread: Counter[str] = Counter()
    per_frame: Counter[int] = Counter()
    for bucket in told["buckets"]:
        spread, per_frame = kept.get(bucket["first"], kept.get(0, (spread, per_frame)) if bucket["first"] == 1 else (spread, per_frame))
        assert {**bucket["told_apart_by"], "several": bucket["several_pages"]} == {way: spread[way] for way in (*PARTS, "several")}
        assert {n: frames for n, frames in bucket["by_pages"].items() if frames} == {
            str(n): frames for n, frames in sorted(per_frame.items()) if n > 1 and frames
        }


@given(mode=st.sampled_from(["two-level", "pae", "long"]), events=steps(), vcpus=st.integers(1, 2))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_phases_and_slices_add_up_to_the_counters(mode: str, events: list[Step], vcpus: int) -> None:
    mmu = Mmu(parameters("kvm-2.6.20", pages=64), vcpus)
    for step in start(mode) + events:
        apply(mmu, step, vcpus)
    told = facts(outcome(mmu), Story(marks=(Mark("reset", 1, 0), Mark("middle", 8, 0))))
    assert json.dumps(told) == json.dumps(facts(outcome(mmu), Story(marks=(Mark("reset", 1, 0), Mark("middle", 8, 0)))))
    for parts in (told["phases"], told["over_time"]["buckets"]):
        total = {name: sum(part[name] for part in parts) for name in ("faults", "lookups", "hits", "made", "stores")}
        assert total == {
            "faults": told["access"]["faults"],
            "lookups": told["get_page"]["hits"] + told["get_page"]["misses"],
            "hits": told["get_page"]["hits"],
            "made": told["get_page"]["misses"],
            "stores": told["writes"]["protected"],
        }
    assert sum(sum(phase["zaps"].values()) for phase in told["phases"]) == told["zaps"]["total"]
    assert told["phases"][-1]["live_end"] == told["live"]["total"] == sum(told["over_time"]["buckets"][-1]["live"].values())
    assert sum(row["lookups"] for row in told["processes"]) == sum(row["lookups"] for row in told["spaces"])
    assert (
        sum(told["origin"][which][name] for which in ("roots", "tables") for name in ("same_root", "other_root", "other_vcpu"))
        == (told["get_page"]["hits"])
    )
    assert sum(row["pages"] for row in told["space_sharing"]["end"]["by_level"]) == told["live"]["total"]


def test_what_the_cache_saved_is_the_difference_to_a_run_without() -> None:
    """A program is loaded three times and touches one page each time.

    With the cache: 1 fault, root and tables 3, 2 and 1 made, one leaf and three links filled. Without: that at each load.
    """
    runs = []
    for model in ("kvm-2.6.20", "uncached"):
        mmu = make(model)
        long_guest(mmu)
        for _ in range(3):
            mmu.access(0, 0, *READ)
            mmu.cr3(0, 0x1000)
        mmu.invlpg(0, 0)
        runs.append(facts(outcome(mmu)))
    worth = saved(*runs, Costs(exit=1000, fault=100, fill=10))
    assert (worth.faults.cached, worth.faults.uncached) == (1, 3)
    assert (worth.entries_filled.cached, worth.entries_filled.uncached) == (4, 12)
    # Four cr3 loads, one of them without paging, and INVLPG, which exits without a cache only.
    assert (worth.exits.cached, worth.exits.uncached) == (1 + 4, 3 + 4 + 1)
    assert (worth.faults.per_cr3_cached, worth.faults.per_cr3_uncached) == (0.25, 0.75)
    assert (worth.cycles.cached, worth.cycles.uncached) == (5 * 1000 + 100 + 40, 8 * 1000 + 300 + 120)
    assert asdict(worth)["cycles"]["exit"] == 1000


@pytest.mark.parametrize("also_an_access", [False, True])
def test_a_store_to_a_table_exits_once_whether_or_not_the_trace_has_it_as_an_access(also_an_access: bool) -> None:
    """The table, gfn 4, maps itself at va 0x4000: the access faults as a store to a shadowed frame, and the store is emulated."""
    mmu = make()
    long_guest(mmu)
    mmu.page(4, [(0, 0x9067), (4, 0x4067)])
    mmu.access(0, 0, *READ)
    mmu.access(0, 0x4000, *READ)
    if also_an_access:
        mmu.access(0, 0x4008, True, False, False)
    mmu.write(0, 0x4008, 8, 0)
    # Two faults of reads, one store, one cr3 load.
    assert exits(facts(outcome(mmu)), False) == 4
