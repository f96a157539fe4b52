"""The way in for notebooks, and what is exported, against what the file holds."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import analyzer
from analyzer.export.csv_columns import COLUMNS
from db.errors import TraceError, UsageError
from db.exchange.importing import import_jsonl
from db.trace import TraceReader
from tests.conftest import Boot, Cli

ROOT = Path(__file__).resolve().parent.parent.parent

EVENTS = """\
{"ev":"regs","cr4":"0x20","efer":"0x100"}
{"ev":"page","gpa":"0x1000","words":{"3":"0x8000000000002067"}}
{"ev":"cr3","value":"0x1000","pdptes":["0x1001","0x0","0x0","0x8000000000000000"]}
{"ev":"write","gpa":"0x1008","size":4,"value":"0xffffffff"}
{"ev":"access","va":"0xffffffff81000000","write":1,"user":0,"fetch":0,"vcpu":1}
{"ev":"invlpg","va":"0x3000"}
"""

EMPTY: dict[str, object] = dict.fromkeys(COLUMNS)
EXPECTED = [
    EMPTY | {"seq": 1, "vcpu": 0, "kind": "regs", "cr4": 0x20, "efer": 0x100},
    EMPTY | {"seq": 2, "vcpu": 0, "kind": "page", "addr": 0x1000, "words": b"\x03\x00\x67\x20\x00\x00\x00\x00\x00\x80"},
    EMPTY | {"seq": 3, "vcpu": 0, "kind": "cr3", "addr": 0x1000, "pdpte0": 0x1001, "pdpte1": 0, "pdpte2": 0, "pdpte3": 1 << 63},
    EMPTY | {"seq": 4, "vcpu": 0, "kind": "write", "addr": 0x1008, "value": 0xFFFFFFFF, "size": 4, "seen": "exact"},
    EMPTY
    | {"seq": 5, "vcpu": 1, "kind": "access", "addr": 0xFFFFFFFF81000000, "write": True, "user": False, "fetch": False, "fault": False},
    EMPTY | {"seq": 6, "vcpu": 0, "kind": "invlpg", "addr": 0x3000},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "e.jsonl").write_text(EVENTS)
    import_jsonl(tmp_path / "e.jsonl", tmp_path / "t.db", False, "test")
    return tmp_path / "t.db"


def test_events_as_arrow_lose_nothing(path: Path) -> None:
    with analyzer.open(path) as trace:
        assert trace.events().to_pylist() == EXPECTED
        assert trace.events(kind=["cr3", "write"]).to_pylist() == EXPECTED[2:4]
        assert trace.events(kind="access", vcpu=1, first=2, last=5).to_pylist() == [EXPECTED[4]]
        assert trace.events(kind="access", vcpu=0).num_rows == 0
        assert trace.events(vcpu=0).schema == trace.events().schema


def test_events_as_pandas_keep_64_bits(path: Path) -> None:
    with analyzer.open(path) as trace:
        frame = trace.pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert int(frame["addr"][4]) == 0xFFFFFFFF81000000
    assert int(frame["value"].dropna().iloc[0]) == 0xFFFFFFFF
    assert frame["size"].count() == 1


def test_events_as_numpy(path: Path) -> None:
    with analyzer.open(str(path)) as trace:
        events = trace.numpy()
        assert events["seq"].tolist() == [1, 2, 3, 4, 5, 6]
        assert events["kind"].tolist() == [1, 4, 2, 3, 5, 6]
        assert events["addr"][4] == 0xFFFFFFFF81000000
        assert trace.numpy(kind="regs", last=0).dtype == events.dtype


def test_csv_and_parquet_have_the_same_columns(path: Path, cli: Cli, tmp_path: Path) -> None:
    from pyarrow import parquet

    assert cli("export", path, "--format", "parquet", "-o", tmp_path / "t.parquet").returncode == 0
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == EXPECTED
    rows = list(csv.DictReader(cli("export", path, "--format", "csv").stdout.splitlines()))

    def text(name: str, value: object) -> str:
        if value is None:
            return ""
        if isinstance(value, bytes):
            return value.hex()
        return (
            str(int(value))
            if isinstance(value, bool)
            else hex(value)
            if isinstance(value, int) and name not in ("seq", "vcpu", "size")
            else str(value)
        )

    assert rows == [{name: text(name, value) for name, value in event.items()} for event in EXPECTED]


def test_wrong_use_is_a_sentence(path: Path, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="there is no file"):
        analyzer.open(tmp_path / "absent.db")
    with analyzer.open(path) as trace:
        with pytest.raises(UsageError, match="no kind of event called 'jump'"):
            trace.events(kind="jump")
        with pytest.raises(UsageError, match="no mark called 'nowhere'"):
            trace.numpy(first="nowhere")
        with pytest.raises(UsageError, match="no model called 'xen'"):
            trace.replay("xen")
        with pytest.raises(UsageError, match="a parameter is unknown: colour"):
            trace.replay(colour=3)


def test_replay_and_sql(path: Path) -> None:
    with analyzer.open(path) as trace:
        run = trace.replay(pages=64)
        assert run.parameters["pages"] == 64
        assert run.facts["events"]["total"] == 6
        assert trace.sql("SELECT count(*) AS n FROM event") == [{"n": 6}]
        assert trace.marks == {}
        assert len(trace) == 6


def test_facts_that_are_lists_as_tables(path: Path) -> None:
    with analyzer.open(path) as trace:
        run = trace.replay()
        told = trace.fact_objects(run)
        assert told.get_page.hits == run.facts["get_page"]["hits"]
        assert json.loads(json.dumps(dataclasses.asdict(told))) == json.loads(json.dumps(run.facts))
        roles = trace.fact_frame(run, "roles")
        assert roles["made"].sum() == run.facts["get_page"]["misses"]
        assert roles.to_dict("list")["level"] == [role["level"] for role in run.facts["roles"]]
        buckets = trace.fact_table(run, "over_time.buckets")
        assert buckets.num_rows == len(run.facts["over_time"]["buckets"])
        with pytest.raises(UsageError, match="no fact called"):
            trace.fact_table(run, "get_page")


@pytest.mark.parametrize("form", ["parquet", "perfetto"])
def test_binary_formats_want_a_file_and_replace_no_trace(form: str, path: Path, cli: Cli) -> None:
    done = cli("export", path, "--format", form)
    assert done.returncode == 2
    assert "say where to" in done.stderr
    before = path.read_bytes()
    done = cli("export", path, "--format", form, "-o", path)
    assert done.returncode == 2
    assert "it is not replaced" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.boot
def test_a_real_boot_in_columns(boot: Boot) -> None:
    with analyzer.open(boot.trace) as trace, TraceReader(boot.trace) as reader:
        table = trace.events()
        assert table.num_rows == len(trace) == boot.outcome.events
        counts = {row["kind"]: row["n"] for row in trace.sql("SELECT kind, count(*) AS n FROM event GROUP BY kind")}
        kinds = table["kind"].combine_chunks().dictionary_decode().value_counts().to_pylist()
        assert sorted(entry["counts"] for entry in kinds) == sorted(counts.values())
        stores = trace.numpy(kind="write")
        writes = trace.events(kind="write")
        assert np.array_equal(writes["addr"].to_numpy(), stores["addr"])
        assert np.array_equal(writes["value"].to_numpy(), stores["value"])
        assert trace.marks["start_kernel"] == next(row["seq"] + 1 for row in reader.rows("mark") if row["name"] == "start_kernel")
        assert any(space.comm == "init" for space in trace.address_spaces)


@pytest.mark.boot
def test_the_example_of_the_docs_runs(boot: Boot) -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "example.py", boot.trace], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith(f"cloud-amd64, {boot.outcome.events:,} events>")
    assert any(line.startswith("with 64 shadow pages: ") for line in lines)
    assert lines[-4].split() == ["glevels", "level", "made", "hits"]
    assert (ROOT / "docs" / "api.md").read_text().count("example.py") >= 2
