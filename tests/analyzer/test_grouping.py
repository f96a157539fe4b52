"""Groups of look-ups, deaths, faults and stores, on a small guest and against the counters of random ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.facts.collect import facts
from analyzer.facts.group_counts import COUNTS, MORE, Group, with_uncached
from analyzer.facts.grouping import KEYS, ROLE_KEYS, grouped, unknown
from analyzer.model.machine import Mmu
from analyzer.model.outcome import Outcome, outcome
from analyzer.model.parameters import parameters
from analyzer.trace.context import Root, Story
from tests.analyzer.guests import Step, apply, start, steps
from tests.analyzer.test_mmu import READ, long_guest, make
from tests.analyzer.test_overtime import MARKS
from tests.analyzer.test_spaces import two_programs
from x86.registers import Mode


def end() -> Outcome:
    """``two_programs``, and three stores to table 4, the leaf table: the third zaps it."""
    mmu = two_programs()
    for _ in range(3):
        mmu.write(0, 0x4008, 8, 0)
    return outcome(mmu)


def short(groups: list[Group], *columns: str) -> list[tuple[object, ...]]:
    return [tuple(group[column] for column in columns) for group in groups]


def test_groups_by_level_and_mode() -> None:
    """Without paging 4 roots made and found. In long mode roots 1 and 5, the first found once; tables 2, 6, 7; 3; 4."""
    groups = grouped(end(), MARKS, ("mode", "level"))
    assert short(groups, "mode", "level", "lookups", "hits", "made", "died", "alive", "stores") == [
        ("no paging", 2, 8, 4, 4, 0, 4, 0),
        ("long", 1, 1, 0, 1, 1, 0, 3),
        ("long", 2, 3, 2, 1, 0, 1, 0),
        ("long", 3, 4, 1, 3, 0, 3, 0),
        ("long", 4, 3, 1, 2, 0, 2, 0),
    ]
    assert groups[2]["hit_percent"] == 66.7


def test_what_became_of_the_pages_of_a_group() -> None:
    """Table 3 is found under 6 and 7 with one page in its bucket, and has three parents in the end; 2 is found under 5.

    Table 4 lives from event 11 to 19. The four roots without paging are of frame 0: each but the first is made beside another, in a
    bucket that holds those before, and found with all four there: (0 + 1 + 2 + 3 + 4 x 4) / 8 = 2.75.
    """
    groups = grouped(end(), MARKS, ("mode", "level"))
    assert short(groups, "mode", "level", "peak", "life", "beside", "shared", "parents", "chain") == [
        ("no paging", 2, 4, None, 3, 0, 0, 2.8),
        ("long", 1, 1, 8.0, 0, 0, 1, 0.0),
        ("long", 2, 1, None, 0, 1, 3, 0.7),
        ("long", 3, 3, None, 0, 1, 2, 0.2),
        ("long", 4, 2, None, 0, 0, 0, 0.3),
    ]
    # Whoever finds a page did not make it.
    assert short(grouped(end(), MARKS, ("origin",)), "peak", "life", "parents") == [(0, None, 0), (0, None, 0)]


def test_a_page_that_died_was_made_beside_another_all_the_same() -> None:
    """Frame 4 is a leaf table, then by entry 1 of table 2 one of level 2 as well. Three stores zap both pages."""
    mmu = make()
    long_guest(mmu)
    mmu.page(2, [(0, 0x3067), (1, 0x4067)])
    mmu.page(9, [(0, 0xA067)])
    mmu.access(0, 0, *READ)
    mmu.access(0, 1 << 30, *READ)
    for _ in range(3):
        mmu.write(0, 0x4100, 8, 0)
    groups = grouped(outcome(mmu), MARKS, ("gfn",), [("gfn", "0x4")])
    assert short(groups, "made", "died", "beside") == [(2, 2, 1)]


def test_a_page_counts_for_the_group_it_was_made_in() -> None:
    """Root 1 is made at event 6, tables 2, 3, 4 and 6 up to 12: what becomes of these later, more parents or death, counts there."""
    groups = {group["phase"]: group for group in grouped(end(), MARKS, ("phase",))}
    assert {name: (group["made"], group["died"], group["shared"], group["life"]) for name, group in groups.items()} == {
        "start": (5, 0, 0, None),
        "kernel entry": (4, 0, 2, 8.0),
        "first user process": (2, 1, 0, None),
    }


def test_a_replay_without_a_cache_counts_beside() -> None:
    """Each cr3 load makes its root anew, each access a way of three tables: 1 + 3 + 3, 1 + 3 + 3, 1."""
    without = outcome(two_programs("uncached"))
    (group,) = with_uncached(grouped(end(), MARKS, ("mode",), [("mode", "long")]), grouped(without, MARKS, ("mode",)), ("mode",))
    assert (group["made"], group["made_uncached"], group["faults"], group["faults_uncached"]) == (7, 15, 4, 4)
    (none,) = with_uncached(grouped(end(), MARKS, ("cause",)), [], ("cause",))
    assert none["made_uncached"] == 0


def test_only_keeps_what_is_called_so() -> None:
    groups = grouped(end(), MARKS, ("level",), [("mode", "long"), ("phase", "first user process")])
    assert short(groups, "level", "lookups", "hits") == [(1, 0, 0), (2, 1, 1), (3, 2, 1), (4, 2, 1)]
    assert grouped(end(), MARKS, ("level",), [("mode", "PAE")]) == []


def test_each_key_leaves_out_what_has_no_answer_to_it() -> None:
    assert short(grouped(end(), MARKS, ("cause",)), "cause", "died", "lookups") == [("flood", 1, 0)]
    assert short(grouped(end(), MARKS, ("origin",)), "origin", "hits", "made") == [("other_root", 2, 0), ("same_root", 6, 0)]
    assert short(grouped(end(), MARKS, ("answer",)), "answer", "faults") == [("shadow_fixed", 4)]
    assert short(grouped(end(), MARKS, ("kind",)), "kind", "lookups") == [("table", 8), ("root", 11)]


def test_programs_of_one_name_are_one_process_and_two_spaces() -> None:
    names = Story(roots=(Root(0x1000, 5, "sh"), Root(0x5000, 5), Root(0x5000, 13, "sh")))
    assert short(grouped(end(), names, ("process",)), "process", "faults") == [("no paging", 0), ("sh", 4)]
    assert short(grouped(end(), names, ("space",)), "space", "faults") == [("no paging", 0), ("sh @0x1.0", 2), ("sh @0x5.1", 2)]


def test_rows_are_sorted_by_a_count_or_a_key_and_cut() -> None:
    def sorted_by(key: str, limit: int | None = None, by: tuple[str, ...] = ROLE_KEYS) -> list[object]:
        return [group[key] for group in grouped(end(), MARKS, by, sort=key, limit=limit)]

    assert sorted_by("lookups", 3) == [4, 3, 3]
    assert sorted_by("mode")[:2] == ["no paging", "no paging"]
    assert grouped(end(), MARKS, ROLE_KEYS, [("mode", "PAE")], "lookups", 5) == []


def test_keys_sort_by_their_values_numbers_the_greatest_first() -> None:
    mmu = two_programs()
    for gfn in (0x9, 0x1000, 0x20):
        mmu.cr3(0, gfn << 12)
    frames = [group["gfn"] for group in grouped(outcome(mmu), MARKS, ("gfn",), sort="gfn")]
    assert frames[:4] == ["0x1000", "0x20", "0x9", "0x7"]
    levels = [group["level"] for group in grouped(end(), MARKS, ("mode", "level"), sort="level")]
    assert levels == [4, 3, 2, 2, 1]
    phases = [group["phase"] for group in grouped(end(), MARKS, ("mode", "phase"), sort="phase")]
    assert list(dict.fromkeys(phases)) == [group["phase"] for group in grouped(end(), MARKS, ("phase",))]


def test_a_slice_of_time_counts_what_its_bucket_over_time_counts() -> None:
    left = end()
    buckets = facts(left, MARKS)["over_time"]["buckets"]
    groups = {group["time"]: group for group in grouped(left, MARKS, ("time",))}
    assert len(groups) > 3
    for bucket in buckets:
        group = groups.get(bucket["first"], dict.fromkeys(COUNTS, 0))
        same = ("lookups", "hits", "made", "faults", "stores")
        assert {name: group[name] for name in same} == {name: bucket[name] for name in same}
        assert group["died"] + group["emptied"] == bucket["zapped"]


def test_a_condition_that_nothing_fits_is_told_with_what_there_is() -> None:
    assert unknown(end(), MARKS, [("level", "4"), ("mode", "PAE")]) == ("mode", "PAE", ["no paging", "long"])
    assert unknown(end(), MARKS, [("mode", "long")]) is None


@pytest.mark.parametrize("model", ["kvm-2.6.20", "uncached"])
@given(mode=st.sampled_from(["two-level", "pae", "long"]), events=steps(), vcpus=st.integers(1, 2))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_groups_add_up_whatever_the_key(model: str, mode: str, events: list[Step], vcpus: int) -> None:
    mmu = Mmu(parameters(model, pages=64), vcpus)
    for step in start(mode) + events:
        apply(mmu, step, vcpus)
    left = outcome(mmu)
    told = facts(left, MARKS)
    whole = {
        "hits": told["get_page"]["hits"],
        "made": told["get_page"]["misses"],
        "died": told["zaps"]["freed"],
        "emptied": told["zaps"]["root_kept"],
        "alive": told["live"]["total"],
        "faults": told["access"]["faults"],
        "stores": told["writes"]["protected"],
    }
    partial = {
        "kind": ("hits", "made", "alive"),
        "cause": ("died", "emptied"),
        "origin": ("hits",),
        "age": ("hits",),
        "answer": ("faults",),
    }
    of_pages = ("hits", "made", "died", "emptied", "alive", "stores")
    for key in KEYS:
        groups = grouped(left, MARKS, (key,))
        counts = partial.get(key, tuple(whole) if key in ("mode", "phase", "process", "space", "vcpu", "time") else of_pages)
        assert {count: sum(group[count] for group in groups) for count in counts} == {count: whole[count] for count in counts}
        assert len({group[key] for group in groups}) == len(groups)
    by_role = grouped(left, MARKS, ROLE_KEYS)
    for role in told["roles"]:
        mine = (Mode(role["glevels"]).label, role["level"], role["quadrant"], "meta" if role["metaphysical"] else "")
        (group,) = [group for group in by_role if tuple(group[key] for key in ROLE_KEYS) == mine]
        assert (group["lookups"], group["hits"], group["alive"], group["stores"]) == (
            role["lookups"],
            role["hits"],
            role["live"],
            role["stores"],
        )
        assert (group["peak"], group["life"]) == (role["peak"], role["lifetime"] and role["lifetime"]["median"])
    assert all(set(group) == {*ROLE_KEYS, *COUNTS, *MORE} for group in by_role)
