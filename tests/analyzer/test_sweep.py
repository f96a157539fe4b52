"""Sweeps: the same numbers as single replays, whatever is interrupted, split or handed to other processes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analyzer import replay
from analyzer.model.parameters import parameters
from analyzer.replay import CORES
from db.trace import TraceReader
from tests.analyzer.test_cores import GUEST, write
from tests.conftest import Cli
from x86.event import Event, Kind

GRID = ("--pages", "32..128", "--flood", "0,3", "--model", "kvm-2.6.20,uncached")
UNITS = 12


@pytest.fixture
def traces(tmp_path: Path) -> list[Path]:
    """Two traces whose guests touch many pages, so that small caches evict."""
    touches = [Event(Kind.ACCESS, addr=(i * 7 % 90) << 21) for i in range(900)]
    return [write(tmp_path / "one.db", GUEST + touches), write(tmp_path / "two.db", touches[:300] + GUEST)]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def comparable(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


@pytest.mark.parametrize("core", CORES)
def test_each_result_is_that_of_a_single_replay(core: str, traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    done = cli("sweep", *traces, *GRID, "--core", core, "--format", "json", "-o", tmp_path / "s.jsonl")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == 2 * UNITS
    for result in results:
        chosen = parameters(result["model"], pages=result["parameters"]["pages"], flood=result["parameters"]["flood"])
        with TraceReader(tmp_path / result["trace"]) as trace:
            single = json.loads(json.dumps(replay.run(trace, result["model"], chosen, "test", core="reference")[0].facts))
        assert "get_page" in result["facts"]
        for section, told in result["facts"].items():
            assert told == (single[section] if not isinstance(told, dict) else {name: single[section][name] for name in told})


def test_what_is_kept_is_not_run_again_and_a_torn_line_is(traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    kept = tmp_path / "s.jsonl"
    cli("sweep", traces[0], *GRID, "-o", kept)
    whole = kept.read_bytes()
    again = cli("sweep", traces[0], *GRID, "-o", kept)
    assert again.returncode == 0
    assert kept.read_bytes() == whole
    kept.write_bytes(whole[:-100])
    cli("sweep", traces[0], *GRID, "-o", kept)
    assert kept.read_bytes().startswith(whole[:-100].rpartition(b"\n")[0])
    assert len(lines(kept)) == UNITS


def test_another_trace_of_the_same_name_is_another(traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    """Names, lengths and versions may be the same: what tells traces apart is what is in them."""
    for folder, source in zip(("a", "b"), traces, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.db").write_bytes(source.read_bytes())
    both = json.loads(cli("sweep", tmp_path / "a/t.db", tmp_path / "b/t.db", *GRID, "--format", "json", "-o", tmp_path / "s.jsonl").stdout)
    alone = [json.loads(cli("sweep", trace, *GRID, "--format", "json", "-o", tmp_path / "o.jsonl").stdout) for trace in traces]
    assert [result["facts"] for result in both] == [result["facts"] for results in alone for result in results]
    assert both[0]["facts"] != both[UNITS]["facts"]


@pytest.mark.parametrize("text", ["mine, without an end of line", '{"trace": 1}\nmine', "mine\n", "[]\n"])
def test_a_file_of_something_else_is_left_alone(text: str, traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    kept = tmp_path / "notes.txt"
    kept.write_text(text)
    done = cli("sweep", traces[0], *GRID, "-o", kept)
    assert done.returncode == 2
    assert "is no sweep" in done.stderr
    assert kept.read_text() == text


def test_traces_of_different_modes_share_a_csv(traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    off = write(tmp_path / "off.db", [Event(Kind.CR3, addr=0x5000), Event(Kind.ACCESS, addr=0x3000)])
    done = cli("sweep", off, traces[0], *GRID, "--format", "csv", "-o", tmp_path / "s.jsonl")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 2 * UNITS
    only = [name for name, value in rows[-1].items() if value and not rows[0][name]]
    assert any(name.startswith("long level") for name in only)


def test_an_interrupted_sweep_goes_on(cli: Cli, tmp_path: Path) -> None:
    trace = write(tmp_path / "t.db", GUEST + [Event(Kind.ACCESS, addr=(i * 7 % 9000) << 21) for i in range(60_000)])
    kept = tmp_path / "s.jsonl"
    grid = ("--pages", "32..4096", "--flood", "0..0,2,3", "-j", "1", "--core", "reference", "-o", str(kept))
    grid = tuple("0,2,3" if value == "0..0,2,3" else value for value in grid)
    program = Path(sys.executable).with_name("shadowtrace")
    sweep = subprocess.Popen([program, "sweep", trace, *grid], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not kept.exists() or not kept.read_bytes().count(b"\n"):
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    _, said = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, said
    before = kept.read_bytes()
    assert 0 < before.count(b"\n") < 24
    assert cli("sweep", trace, *grid[:-6], "-o", kept).returncode == 0
    assert kept.read_bytes().startswith(before)
    assert len(lines(kept)) == 24


def test_shards_together_are_the_whole(traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    cli("sweep", *traces, *GRID, "-o", tmp_path / "whole.jsonl")
    for i in (1, 2, 3):
        cli("sweep", *traces, *GRID, "--shard", f"{i}/3", "-o", tmp_path / f"{i}.jsonl")
    together = tmp_path / "together.jsonl"
    together.write_text("".join((tmp_path / f"{i}.jsonl").read_text() for i in (1, 2, 3)))
    assert comparable(together) == comparable(tmp_path / "whole.jsonl")


def test_workers_of_a_dask_cluster_give_the_same(traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    cli("sweep", *traces, *GRID, "-o", tmp_path / "here.jsonl")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            pids = set(client.run(os.getpid).values())
        assert len(pids) == 2
        assert os.getpid() not in pids
        done = cli("sweep", *traces, *GRID, "--dask", cluster.scheduler_address, "-o", tmp_path / "there.jsonl")
    assert done.returncode == 0, done.stderr
    assert comparable(tmp_path / "there.jsonl") == comparable(tmp_path / "here.jsonl")


def test_the_table_has_a_chart_and_csv_every_counter(traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    text = cli("sweep", traces[0], *GRID, "-o", tmp_path / "s.jsonl").stdout
    assert text.count("Misses by shadow pages: one.db") == 4
    assert "█" in text
    rows = list(csv.DictReader(io.StringIO(cli("sweep", traces[0], *GRID, "-o", tmp_path / "s.jsonl", "--format", "csv").stdout)))
    assert len(rows) == UNITS
    assert {row["parameter.pages"] for row in rows} == {"32", "64", "128"}
    assert all(int(row["get_page.lookups"]) == int(row["get_page.hits"]) + int(row["get_page.misses"]) for row in rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pages", "64..32"), "neither a number nor a range"),
        (("--pages", "0..8"), "neither a number nor a range"),
        (("--pages", "8"), "8 shadow pages are too few"),
        (("--model", "kvm-9"), "no model called 'kvm-9'"),
        (("--shard", "3/2"), "no shard"),
        (("--hash", "md5"), "no hash function"),
        (("--dask", "tcp://127.0.0.1:9"), "no dask scheduler"),
    ],
)
def test_a_wrong_grid_is_refused_with_a_sentence(options: tuple[str, ...], said: str, traces: list[Path], cli: Cli) -> None:
    done = cli("sweep", traces[0], *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_file_that_is_no_sweep_is_left_alone(traces: list[Path], cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine\n")
    for target in (other, traces[1]):
        before = target.read_bytes()
        assert cli("sweep", traces[0], "-o", target).returncode == 2
        assert target.read_bytes() == before
