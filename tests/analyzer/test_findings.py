"""What is worth a look: each rule on a replay that it speaks of, and on one just as long of which it must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from analyzer.facts.collect import facts
from analyzer.facts.findings import RULES, command
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from tests.analyzer.test_mmu import LONG, PAE, READ, TWO_LEVEL, enter, long_guest, make, two_level_guest, words32
from tests.conftest import Cli


def rules(mmu: Mmu) -> set[str]:
    return {finding["rule"] for finding in facts(outcome(mmu))["findings"]}


def stored_between_accesses(stores: int, frames: int, **changes: int) -> Mmu:
    """1,200 times: an access through one of ``frames`` leaf tables, then ``stores`` stores to it."""
    mmu = make(**changes)
    long_guest(mmu)
    mmu.page(3, [(i, (0x10 + i) << 12 | 0x67) for i in range(frames)])
    for i in range(frames):
        mmu.page(0x10 + i, [(0, 0x9067)])
    for turn in range(1200):
        gfn = 0x10 + turn % frames
        mmu.access(0, (gfn - 0x10) << 21, *READ)
        for _ in range(stores):
            mmu.write(0, gfn << 12, 8, 0x9067)
    return mmu


def big_pages(pages: int, small: int) -> Mmu:
    """A guest that touches so many 2 MiB pages, and so many leaf tables."""
    mmu = make()
    long_guest(mmu)
    mmu.page(3, [(i, i << 21 | 0xE7) for i in range(pages)] + [(pages + i, (0x40 + i) << 12 | 0x67) for i in range(small)])
    for i in range(small):
        mmu.page(0x40 + i, [(0, 0x9067)])
    for i in range(pages + small):
        mmu.access(0, i << 21, *READ)
    return mmu


def twice_linked(tables: int, parents: int) -> Mmu:
    """So many leaf tables, each linked from the entries of so many level-2 tables."""
    mmu = make()
    long_guest(mmu)
    mmu.page(2, [(i, (0x10 + i) << 12 | 0x67) for i in range(parents)])
    for i in range(parents):
        mmu.page(0x10 + i, [(j, (0x100 + j) << 12 | 0x67) for j in range(tables)])
    for j in range(tables):
        mmu.page(0x100 + j, [(0, 0x9067)])
    for i in range(parents):
        for j in range(tables):
            mmu.access(0, i << 30 | j << 21, *READ)
    return mmu


def many_tables(pages: int) -> Mmu:
    """240 leaf tables, one after the other, in a cache of ``pages`` pages."""
    mmu = make(pages=pages)
    long_guest(mmu)
    mmu.page(3, [(i, (0x100 + i) << 12 | 0x67) for i in range(240)])
    for i in range(240):
        mmu.page(0x100 + i, [(0, 0x9067)])
        mmu.access(0, i << 21, *READ)
    return mmu


def zapped_above(stores: int) -> Mmu:
    """30 leaf tables under one table, which is then stored to so often in a row."""
    mmu = make()
    long_guest(mmu)
    mmu.page(3, [(i, (0x100 + i) << 12 | 0x67) for i in range(30)])
    for i in range(30):
        mmu.page(0x100 + i, [(0, 0x9067)])
        mmu.access(0, i << 21, *READ)
    for _ in range(stores):
        mmu.write(0, 0x3FF8, 8, 0)
    return mmu


def directory_stores(model: str) -> Mmu:
    """200 stores to a two-level directory, each after one to its table, so that none is the third in a row."""
    mmu = make(model)
    two_level_guest(mmu)
    mmu.access(0, 0, *READ)
    for _ in range(200):
        mmu.write(0, 0x2FFC, 4, 0)
        mmu.write(0, 0x1FF8, 4, 0)
    return mmu


def pae_loads(directories: int) -> Mmu:
    """200 cr3 loads of a PAE guest with so many page directories."""
    mmu = make()
    mmu.page(1, [(i, (2 + i) << 12 | 1) for i in range(directories)])
    enter(mmu, PAE)
    for _ in range(200):
        mmu.cr3(0, 0x1000)
    return mmu


def pae_pointers(bad: int) -> Mmu:
    """200 cr3 loads of a PAE guest, so many of them with a pointer that has the accessed bit."""
    mmu = pae_loads(4)
    for turn in range(200):
        mmu.cr3(0, 0x1000, (0x2021 if turn < bad else 0x2001, 0, 0, 0))
    return mmu


def alternating(first: int, second: int, **changes: int) -> Mmu:
    """1,200 cr3 loads, of one frame and another by turns."""
    mmu = make(**changes)
    enter(mmu, LONG)
    for turn in range(1200):
        mmu.cr3(0, (second if turn % 2 else first) << 12)
    return mmu


def contents_again(changed: int) -> Mmu:
    """40 times the content of a table that is shadowed, of which so many are another."""
    mmu = make()
    long_guest(mmu)
    mmu.access(0, 0, *READ)
    for turn in range(40):
        mmu.page(4, [(0, 0x9067), (1, turn if turn < changed else max(changed - 1, 0))])
    return mmu


SPEAKS: dict[str, Callable[[], Mmu]] = {
    "loads-refused": lambda: pae_pointers(10),
    "leaves-flooded": lambda: stored_between_accesses(3, 8),
    "one-frame": lambda: stored_between_accesses(3, 1),
    "bucket-crowded": lambda: big_pages(20, 10),
    "chains-half-empty": lambda: twice_linked(80, 2),
    "pages-too-few": lambda: many_tables(64),
    "orphans": lambda: zapped_above(3),
    "directories-stale": lambda: directory_stores("kvm-2.6.20"),
    "pdptes-absent": lambda: pae_loads(2),
    "isolation": lambda: alternating(6, 7),
    "contents-late": lambda: contents_again(20),
}
SILENT: dict[str, Callable[[], Mmu]] = {
    "loads-refused": lambda: pae_pointers(9),
    "leaves-flooded": lambda: stored_between_accesses(3, 8, flood=0),
    "one-frame": lambda: stored_between_accesses(3, 8),
    "bucket-crowded": lambda: big_pages(8, 20),
    "chains-half-empty": lambda: twice_linked(80, 3),
    "pages-too-few": lambda: many_tables(256),
    "orphans": lambda: zapped_above(2),
    "directories-stale": lambda: directory_stores("kvm-2.6.21"),
    "pdptes-absent": lambda: pae_loads(4),
    "isolation": lambda: alternating(6, 8),
    "contents-late": lambda: contents_again(5),
}


def test_every_rule_is_tested() -> None:
    assert list(SPEAKS) == list(SILENT) == [rule.name for rule in RULES]


@pytest.mark.parametrize("rule", SPEAKS)
def test_a_rule_speaks_where_its_threshold_is_met_and_not_elsewhere(rule: str) -> None:
    assert rule in rules(SPEAKS[rule]())
    assert rule not in rules(SILENT[rule]())


def test_roots_that_stay_in_use_need_no_advice() -> None:
    assert "isolation" not in rules(alternating(6, 7, keep_roots=3))


def test_nothing_is_said_of_a_boring_guest() -> None:
    """A hundred pages touched under two roots, a few stores: nothing stands out."""
    mmu = make()
    long_guest(mmu)
    mmu.page(5, [(0, 0x2067)])
    mmu.page(4, [(i, (0x100 + i) << 12 | 0x67) for i in range(100)])
    for turn in range(10):
        mmu.cr3(0, 0x5000 if turn % 2 else 0x1000)
        for i in range(100):
            mmu.access(0, i << 12, *READ)
        mmu.write(0, 0x4008, 8, 0x101067)
    assert rules(mmu) == set()


def test_a_two_level_guest_with_a_big_page_is_boring_too() -> None:
    mmu = make()
    mmu.page(1, words32({0: 0x83, 1: 0x2067}))
    enter(mmu, TWO_LEVEL)
    for va in (0, 2 << 20, 4 << 20):
        mmu.access(0, va, *READ)
    assert rules(mmu) == set()


def test_numbers_of_a_sentence_are_those_of_the_facts() -> None:
    told = facts(outcome(many_tables(64)))
    (finding,) = [finding for finding in told["findings"] if finding["rule"] == "pages-too-few"]
    assert finding["numbers"] == {
        "pages": 64,
        "evicted": told["evictions"]["zaps"],
        "made": told["get_page"]["misses"],
        # Four roots without paging, three tables, 240 leaf tables; and the 25 pages that eviction keeps free.
        "enough": 4 + 3 + 240 + 25,
    }
    assert f"eviction zapped {told['evictions']['zaps']:,} while {told['get_page']['misses']:,} were made" in finding["sentence"]
    assert finding["command"] == "shadowtrace report TRACE --pages 256"


def test_a_command_is_quoted_for_a_shell() -> None:
    assert command("shadowtrace report TRACE --flood 10", "my boot;.db", "x") == "shadowtrace report 'my boot;.db' --flood 10"


@pytest.mark.parametrize("rule", [rule for rule in SPEAKS if rule != "contents-late"])
def test_a_finding_s_command_runs(rule: str, cli: Cli, tmp_path: Path) -> None:
    events = '{"ev":"page","gpa":"0x1000","words":{"0":"0x2067"}}\n{"ev":"cr3","value":"0x1000"}\n'
    (tmp_path / "e.jsonl").write_text(events)
    assert cli("import", tmp_path / "e.jsonl", "-o", tmp_path / "TRACE").returncode == 0
    (finding,) = [finding for finding in facts(outcome(SPEAKS[rule]()))["findings"] if finding["rule"] == rule]
    done = cli(*finding["command"].split()[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
