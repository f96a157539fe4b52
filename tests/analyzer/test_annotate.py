"""Which code writes page tables: on stores worked out by hand, on a reference case against its counters, and on a boot."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from analyzer import replay
from analyzer.model.parameters import parameters
from analyzer.trace.writers import annotate
from db.exchange.importing import import_jsonl
from db.trace import TraceReader
from tests.conftest import Boot, Cli
from x86.event import signed

KERNEL = 0xFFFFFFFF81000000

#: A long-mode root, a table under it, and an access through both; then stores to the leaf table, which is shadowed from there on.
EVENTS = """\
{"ev":"page","gpa":"0x1000","words":{"0":"0x2067"}}
{"ev":"page","gpa":"0x2000","words":{"0":"0x3067"}}
{"ev":"page","gpa":"0x3000","words":{"0":"0x4067"}}
{"ev":"page","gpa":"0x4000","words":{"0":"0x9067"}}
{"ev":"regs","cr4":"0x20","efer":"0x100"}
{"ev":"cr3","value":"0x1000"}
{"ev":"regs","cr0":"0x80010011"}
{"ev":"access","va":"0x0","write":0,"user":0,"fetch":0}
{"ev":"write","gpa":"0x4008","size":8,"value":"0xa067"}
{"ev":"write","gpa":"0x8000","size":8,"value":"0x0"}
{"ev":"write","gpa":"0x4010","size":8,"value":"0xb067"}
{"ev":"write","gpa":"0x4018","size":8,"value":"0xc067"}
{"ev":"write","gpa":"0x4020","size":8,"value":"0xd067"}
"""

#: Event and instruction; event 13 has none.
ORIGINS = [(9, KERNEL + 0x10), (10, KERNEL + 0x10), (11, KERNEL + 0x14), (12, KERNEL + 0x100)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "e.jsonl").write_text(EVENTS)
    import_jsonl(tmp_path / "e.jsonl", tmp_path / "t.db", False, "test")
    with sqlite3.connect(tmp_path / "t.db") as connection:
        connection.executemany("INSERT INTO store_origin VALUES (?, ?)", [(seq, signed(pc)) for seq, pc in ORIGINS])
        connection.execute("INSERT INTO symbol VALUES (?, 32, ?)", (signed(KERNEL + 0x10), "set\x1b[31m_pte"))
    connection.close()
    return tmp_path / "t.db"


def test_each_store_is_counted_where_it_was_made(path: Path, cli: Cli) -> None:
    done = cli("annotate", path, "--format", "json")
    assert done.returncode == 0, done.stderr
    # Events 9, 11 and 12 go to the shadowed leaf table, in a row but for 10, which nothing shadows: the third floods and zaps it.
    assert json.loads(done.stdout) == [
        {"code": "set\x1b[31m_pte", "address": hex(KERNEL + 0x10), "stores": 3, "tables": 2, "emulated": 2, "floods": 0, "zaps": 0},
        {"code": "(no instruction seen)", "address": None, "stores": 1, "tables": 1, "emulated": 0, "floods": 0, "zaps": 0},
        {"code": hex(KERNEL + 0x100), "address": hex(KERNEL + 0x100), "stores": 1, "tables": 1, "emulated": 1, "floods": 1, "zaps": 1},
    ]


def test_by_instruction_and_sorted_by_what_it_costs(path: Path, cli: Cli) -> None:
    rows = json.loads(cli("annotate", path, "--by", "instruction", "--sort", "zaps", "--format", "json").stdout)
    assert [(row["address"], row["stores"], row["emulated"], row["zaps"]) for row in rows] == [
        (hex(KERNEL + 0x100), 1, 1, 1),
        (hex(KERNEL + 0x10), 2, 1, 0),
        (None, 1, 0, 0),
        (hex(KERNEL + 0x14), 1, 1, 0),
    ]
    assert rows[3]["code"].endswith("_pte+0x4")


def test_names_are_shown_escaped_and_a_narrow_terminal_loses_columns(path: Path, cli: Cli) -> None:
    wide = cli("annotate", path).stdout
    assert "\x1b" not in wide
    assert "set\\x1b[31m_pte" in wide
    assert "kvm-2.6.20: 3 emulated, 1 floods, 1 pages zapped" in wide
    narrow = cli("annotate", path, COLUMNS="50").stdout.splitlines()
    assert all(len(line) <= 50 for line in narrow[:-1])
    assert "address" not in narrow[0]


def test_without_a_replay_only_stores_are_counted(path: Path, cli: Cli) -> None:
    rows = json.loads(cli("annotate", path, "--no-replay", "--format", "json").stdout)
    assert [set(row) for row in rows] == [{"code", "address", "stores", "tables"}] * 3
    wrong = cli("annotate", path, "--no-replay", "--sort", "zaps")
    assert wrong.returncode == 2
    assert "hint: " in wrong.stderr


@pytest.mark.parametrize("by", ["function", "instruction"])
def test_the_query_gives_the_rows_of_the_table(by: str, path: Path, cli: Cli) -> None:
    query = cli("annotate", path, "--by", by, "--sql", "--limit", "0").stdout
    asked = json.loads(cli("sql", path, query, "--format", "json").stdout)
    shown = json.loads(cli("annotate", path, "--by", by, "--no-replay", "--format", "json").stdout)
    assert len(asked) > 2
    assert {tuple(row.values()) for row in asked} == {tuple(row.values()) for row in shown}
    assert [row["stores"] for row in asked] == [row["stores"] for row in shown]


@pytest.mark.parametrize("options", [["--sort", "zaps"], ["--model", "kvm-2.6.24"]])
def test_a_query_has_nothing_that_takes_a_replay(options: list[str], path: Path, cli: Cli) -> None:
    done = cli("annotate", path, "--sql", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "hint: " in done.stderr


@pytest.mark.parametrize("case", ["12_modes", "07_churn32", "17_fuzz_all"])
def test_the_sums_are_the_counters_of_the_replay(case: str, shared: Path, tmp_path: Path) -> None:
    import_jsonl(shared / "cases" / f"{case}.jsonl", tmp_path / "t.db", False, "test")
    with TraceReader(tmp_path / "t.db") as trace:
        run, outcome = replay.run(trace, "kvm-2.6.20", parameters("kvm-2.6.20"), "test")
        functions = annotate(trace, outcome.journal)
    zaps = run.facts["zaps"]
    assert sum(function.tally.zaps for function in functions) == zaps["misaligned"] + zaps["flood"] + zaps["misaligned_and_flood"] > 0
    assert sum(function.tally.stores for function in functions) == run.facts["events"]["write"]


@pytest.mark.boot
def test_a_real_boot_s_page_tables_are_written_by_the_functions_that_are_there_for_it(boot: Boot, cli: Cli) -> None:
    done = cli("annotate", boot.trace, "--no-replay", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = {row["code"]: row for row in json.loads(done.stdout)}
    assert rows["native_set_pte"]["stores"] > 10_000
    with TraceReader(boot.trace) as trace:
        (stores,) = next(trace.stream("SELECT count(*) FROM event WHERE kind = 3"))
    assert sum(row["stores"] for row in rows.values()) == stores
    assert rows.get("(no instruction seen)", {"stores": 0})["stores"] < stores / 100
