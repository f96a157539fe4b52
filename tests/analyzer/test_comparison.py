"""Comparing runs: names, changes, order and limits, worked out by hand; then the command on cases and on a boot."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from analyzer.facts.comparison import Difference, compare, numbers
from analyzer.limits import broken, limit
from db.errors import UsageError
from db.exchange.importing import import_jsonl
from tests.conftest import Boot, Cli

LEFT = {
    "zaps": {"total": 100, "flood": 0, "gone": 5, "same": 7},
    "roles": [
        {"glevels": 4, "level": 1, "quadrant": 0, "metaphysical": 0, "hits": 10, "deaths": {"flood": 4}},
        {"glevels": 2, "level": 1, "quadrant": 1, "metaphysical": 1, "hits": 1},
    ],
    "frames": {"by_pages": [{"pages": 2, "now": 3, "peak": 4}], "top": [{"gfn": 16, "pages": 4, "names": ["init"]}]},
    "memory": {"crc32": 123},
    "text": "no number",
    "flag": True,
}
RIGHT = {
    "zaps": {"total": 150, "flood": 2, "new": 9, "same": 7},
    "roles": [{"glevels": 4, "level": 1, "quadrant": 0, "metaphysical": 0, "hits": 30, "deaths": {"flood": 4}}],
    "frames": {"by_pages": [{"pages": 2, "now": 0, "peak": 4}]},
    "memory": {"crc32": 456},
}


def test_every_number_has_a_name() -> None:
    assert dict(numbers(LEFT)) == {
        "zaps.total": 100,
        "zaps.flood": 0,
        "zaps.gone": 5,
        "zaps.same": 7,
        "roles[long level=1].hits": 10,
        "roles[long level=1].deaths.flood": 4,
        "roles[32-bit level=1 quadrant=1 metaphysical=1].hits": 1,
        "frames.by_pages[pages=2].now": 3,
        "frames.by_pages[pages=2].peak": 4,
        "frames.top[gfn=0x10].pages": 4,
    }


def test_a_number_is_listed_once_and_only_if_it_is_a_quantity() -> None:
    role = {"glevels": 4, "level": 1, "quadrant": 0, "metaphysical": 0}
    space = {"glevels": 4, "gfn": 16, "generation": 1, "name": "init", "loads": 3, "first_event": 5, "last_event": 9}
    facts = {
        "form": 7,
        "get_page": {"hits": 2, "by_role": [{**role, "hits": 2}]},
        "roles": [{**role, "hits": 2}],
        "spaces": [{**space, "pages_now": 4}, {**space, "generation": 0, "pages_now": 6}],
        "processes": [{"name": "init", "spaces": 2, "loads": 6}],
        "phases": [{"name": "start", "first": 1, "last": 9, "cr3": 6}],
        "hash": {"worst": [{"bucket": 16, "pages": 4, "frames": 2}]},
        "parents_top": [{"gfn": 17, **role, "birth": 100, "parents": 2}],
        "space_sharing": {"peak": {"event": 8, "by_level": [{"level": 1, "in_several": 1}]}},
        "findings": [{"rule": "one-frame", "numbers": {"gfn": 16, "made": 8}}],
    }
    assert dict(numbers(facts)) == {
        "get_page.hits": 2,
        "roles[long level=1].hits": 2,
        "spaces[gfn=0x10 long generation=1].pages_now": 4,
        "spaces[gfn=0x10 long].pages_now": 6,
        "processes[name=init].spaces": 2,
        "processes[name=init].loads": 6,
        "phases[name=start].cr3": 6,
        "hash.worst[bucket=16].pages": 4,
        "hash.worst[bucket=16].frames": 2,
        "parents_top[gfn=0x11 long level=1].parents": 2,
        "space_sharing.peak.by_level[level=1].in_several": 1,
    }
    # A run that has nothing but the sums by role, as sweeps and other programs write them, is told by these.
    assert dict(numbers({"get_page": facts["get_page"]})) == {"get_page.hits": 2, "get_page.by_role[long level=1].hits": 2}


def test_changes_absolute_and_relative_with_blanks() -> None:
    found = {one.name: (one.left, one.right, one.absolute, one.relative) for one in compare(LEFT, RIGHT)}
    assert found["zaps.total"] == (100, 150, 50, 0.5)
    assert found["zaps.flood"] == (0, 2, 2, None)
    assert found["zaps.gone"] == (5, None, None, None)
    assert found["zaps.new"] == (None, 9, None, None)
    assert found["zaps.same"] == (7, 7, 0, 0.0)
    assert found["frames.by_pages[pages=2].now"] == (3, 0, -3, -1.0)
    assert len(found) == 11


def test_what_matters_most_comes_first() -> None:
    # change squared over the greater value: total 2500/150, hits 400/30, now 3, flood 2; then what one side lacks: new 9, gone 5, the
    # frame 4, the role that went 1.
    assert [one.name for one in compare(LEFT, RIGHT)][:8] == [
        "zaps.total",
        "roles[long level=1].hits",
        "frames.by_pages[pages=2].now",
        "zaps.flood",
        "zaps.new",
        "zaps.gone",
        "frames.top[gfn=0x10].pages",
        "roles[32-bit level=1 quadrant=1 metaphysical=1].hits",
    ]


def test_slices_over_time_come_after_all_other_differences() -> None:
    slices = [{"over_time": {"buckets": [{"first": 1, "faults": faults}]}, "zaps": {"total": 1 + (faults > 9)}} for faults in (9, 9000)]
    found = compare({**slices[0], "gone": {"of": 5}, "same": {"of": 7}}, {**slices[1], "same": {"of": 7}})
    assert [one.name for one in found] == ["zaps.total", "gone.of", "over_time.buckets[first=1].faults", "same.of"]
    assert broken([limit("over_time.buckets[first=1].faults>+1")], found)


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("zaps.total>+40%", True),
        ("zaps.total>+50%", False),
        ("zaps.total>=+50%", True),
        ("total>+49", True),
        ("total>+50", False),
        ("total>149", True),
        ("total>150", False),
        ("total<=150%", True),
        ("total<150%", False),
        ("total == 150", True),
        ("total!=+0", True),
        ("same!=+0", False),
        ("now<-2", True),
        ("now<-3", False),
        ("now<-99.5%", True),
        ("flood>+1000%", True),
        ("flood>+1", True),
        ("new>+1", False),
        ("new>8", True),
        ("gone>0", False),
        ("roles[long level=1].hits>+100%", True),
    ],
)
def test_limits(text: str, missed: bool) -> None:
    found = compare(LEFT, RIGHT)
    text = text.replace("now", "frames.by_pages[pages=2].now")
    assert bool(broken([limit(text)], found)) is missed


@pytest.mark.parametrize("text", ["misses", ">5", "misses>", "misses>five", "misses>+5%%", "misses=>5", "", "misses>+-5"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no limit"):
        limit(text)


def test_a_limit_names_one_fact() -> None:
    two = [Difference("a.hits", 1, 2), Difference("b.hits", 1, 2)]
    with pytest.raises(UsageError, match=r"may be any of a\.hits, b\.hits"):
        broken([limit("hits>1")], two)
    with pytest.raises(UsageError, match="no fact is called 'its'"):
        broken([limit("its>1")], two)
    assert broken([limit("b.hits>1")], two)


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    for name in ("12_modes", "24_tiny_a"):
        import_jsonl(shared / "cases" / f"{name}.jsonl", tmp_path / f"{name}.db", False, "test")
    return tmp_path


def test_one_trace_under_two_models_is_what_replays_say(folder: Path, cli: Cli) -> None:
    facts = [
        json.loads(cli("replay", folder / "12_modes.db", "--model", model, "--format", "json").stdout)
        for model in ("kvm-2.6.20", "uncached")
    ]
    done = cli("diff", folder / "12_modes.db", "--model", "kvm-2.6.20", "--model", "uncached", "--format", "json", "--all")
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    assert (compared["left"]["model"], compared["right"]["model"]) == ("kvm-2.6.20", "uncached")
    found = {one["name"]: (one["left"], one["right"]) for one in compared["differences"]}
    for section in ("zaps", "access", "writes"):
        for key, value in facts[0][section].items():
            assert found[f"{section}.{key}"] == (value, facts[1][section][key])


def test_parameters_in_pairs(folder: Path, cli: Cli) -> None:
    done = cli("diff", "12_modes.db", "--pages", "64", "--flood", "0", "--flood", "3", "--no-quadrant-test", "--quadrant-test", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "left   12_modes.db · kvm-2.6.20 · flood 0 · quadrant_test False"
    assert lines[1] == "right  12_modes.db · kvm-2.6.20 · flood 3 · quadrant_test True"
    assert any(line.startswith("zaps.flood ") for line in lines)


def test_facts_as_json_from_a_file_and_from_a_pipe(folder: Path, cli: Cli) -> None:
    program = Path(sys.executable).with_name("shadowtrace")
    (folder / "facts.json").write_text(cli("report", folder / "24_tiny_a.db", "--format", "json").stdout)
    pipe = f"{program} replay 24_tiny_a.db --format json | {program} diff - facts.json --fail-on 'lookups!=+0' --format csv"
    done = subprocess.run(pipe, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # A report also tells what the cache saved; nothing else differs.
    assert all(row["fact"].startswith("saved.") and not row["left"] for row in csv.DictReader(io.StringIO(done.stdout)))


def test_a_missed_limit_is_exit_code_3(folder: Path, cli: Cli) -> None:
    done = cli("diff", folder / "24_tiny_a.db", folder / "12_modes.db", "--fail-on", "misses>+5%", "--fail-on", "hits<1", "--format", "csv")
    assert done.returncode == 3
    assert done.stderr.startswith("limit missed: misses>+5%: get_page.misses 10 -> 98 (+88, +880.0%)")
    assert len(done.stderr.splitlines()) == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {"fact": "get_page.misses", "left": "10", "right": "98", "absolute": "88", "relative": "8.8"} in rows
    assert cli("diff", folder / "24_tiny_a.db", folder / "12_modes.db", "--fail-on", "misses>+5000%").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["12_modes.db"], "say what to compare it with"),
        (["12_modes.db", "absent.json"], "there is no file absent.json"),
        (["12_modes.db", "broken.json"], "neither a trace nor JSON"),
        (["12_modes.db", "empty.json"], "holds no facts"),
        (["-", "-"], "standard input has one run only"),
        (["12_modes.db", "--pages", "64", "--pages", "128", "--pages", "256"], "--pages is given 3 times"),
        (["12_modes.db", "24_tiny_a.db", "--model", "xen"], "no model called 'xen'"),
        (["12_modes.db", "24_tiny_a.db", "--fail-on", "misses"], "is no limit"),
    ],
)
def test_wrong_use_is_a_sentence(arguments: list[str], sentence: str, folder: Path, cli: Cli) -> None:
    (folder / "broken.json").write_text("{")
    (folder / "empty.json").write_text("{}")
    done = cli("diff", *arguments, cwd=folder)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_against_a_live_kvm(shared: Path, cli: Cli, tmp_path: Path) -> None:
    log = shared / "kvmmmu" / "walk64.trace.gz"
    assert cli("import", log, "-o", tmp_path / "kvm.db", "--kernel", "6.1").returncode == 0
    assert cli("import", shared / "guests" / "walk64" / "events.jsonl", "-o", tmp_path / "walk64.db").returncode == 0
    done = cli("diff", tmp_path / "walk64.db", tmp_path / "kvm.db", "--format", "json", "--all")
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    assert compared["left"]["model"] == "kvm-2.6.20"
    assert compared["right"]["model"].startswith("kvm-6.1")
    found = {one["name"]: one for one in compared["differences"]}
    assert found["get_page.misses"]["left"] > 0
    assert found["get_page.misses"]["right"] > 0
    assert found["kvm_stat.tlb_flush"]["right"] is None
    unequal = [one for one in compared["differences"] if one["left"] != one["right"]]
    alone = [one["left"] is None or one["right"] is None for one in unequal]
    assert alone == sorted(alone)
    assert 10 < alone.index(True) < len(alone)
    shown = cli("diff", tmp_path / "walk64.db", tmp_path / "kvm.db").stdout
    assert "of them facts of one side alone" in shown


@pytest.mark.boot
def test_the_cache_of_a_real_boot_against_none(boot: Boot, cli: Cli) -> None:
    done = cli("diff", boot.trace, "--pages", "256", "--pages", "64", "--format", "markdown", "--fail-on", "faults>+10%")
    assert done.returncode == 3, done.stderr
    assert "limit missed: faults>+10%: access.faults" in done.stderr
    assert done.stdout.startswith("| fact | left | right | absolute | relative |\n")
