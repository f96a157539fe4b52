"""Asking a trace in SQL: what can be asked, what cannot, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from db.schema import VIEWS
from tests.conftest import Boot, Cli

ENDLESS = "WITH RECURSIVE x (a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM x) SELECT count(*) FROM x"

PROGRAM = Path(sys.executable).with_name("shadowtrace")


@pytest.fixture
def trace(tmp_path: Path, cli: Cli) -> Path:
    lines = ['{"ev":"cr3","value":"0x1000"}', '{"ev":"write","gpa":"0x2008","size":8,"value":"0x8000000000009067"}']
    (tmp_path / "e|\x1b[31m.jsonl").write_text("\n".join(lines) + "\n" + '{"ev":"page","gpa":"0x2000","words":{"1":"0x2"}}\n')
    assert cli("import", tmp_path / "e|\x1b[31m.jsonl", "-o", tmp_path / "t.db").returncode == 0
    return tmp_path / "t.db"


def test_every_format_says_the_same(trace: Path, cli: Cli) -> None:
    query = "SELECT seq, kind, guest, words, NULL AS empty FROM event LEFT JOIN content USING (seq), recording ORDER BY seq"
    expected = [
        {"seq": 1, "kind": 2, "guest": "e|\x1b[31m.jsonl", "words": None, "empty": None},
        {"seq": 2, "kind": 3, "guest": "e|\x1b[31m.jsonl", "words": None, "empty": None},
        {"seq": 3, "kind": 4, "guest": "e|\x1b[31m.jsonl", "words": "01000200000000000000", "empty": None},
    ]
    assert json.loads(cli("sql", trace, query, "--format", "json").stdout) == expected
    assert [json.loads(line) for line in cli("sql", trace, query, "--format", "jsonl").stdout.splitlines()] == expected
    rows = list(csv.reader(io.StringIO(cli("sql", trace, query, "--format", "csv").stdout)))
    assert rows[0] == ["seq", "kind", "guest", "words", "empty"]
    assert rows[3] == ["3", "4", "e|\\x1b[31m.jsonl", "01000200000000000000", ""]
    markdown = cli("sql", trace, query, "--format", "markdown").stdout.splitlines()
    assert markdown[1] == "| --- | --- | --- | --- | --- |"
    assert markdown[4] == "| 3 | 4 | e\\|\\x1b[31m.jsonl | 01000200000000000000 |  |"
    table = cli("sql", trace, query).stdout.splitlines()
    assert table[3].split() == ["3", "4", "e|\\x1b[31m.jsonl", "01000200000000000000"]


def test_an_empty_answer_in_every_format(trace: Path, cli: Cli) -> None:
    answers = {
        form: cli("sql", trace, "SELECT seq FROM event WHERE 0", "--format", form) for form in ("table", "csv", "json", "jsonl", "markdown")
    }
    assert all(done.returncode == 0 for done in answers.values())
    assert json.loads(answers["json"].stdout) == []
    assert answers["jsonl"].stdout == ""
    assert answers["csv"].stdout == "seq\n"


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM event",
        "UPDATE recording SET guest = 'x'",
        "INSERT INTO mark VALUES (1, 0, 'x', 0)",
        "DROP TABLE event",
        "CREATE TABLE x (a)",
        "CREATE TEMP TABLE x (a)",
        "ATTACH 'other.db' AS other",
        "VACUUM",
        "VACUUM INTO 'copy.db'",
        "PRAGMA user_version = 9",
        "PRAGMA query_only = OFF",
        "PRAGMA journal_mode = WAL",
        "SELECT load_extension('x')",
        "WITH x AS (SELECT 1) DELETE FROM event",
        "BEGIN IMMEDIATE",
    ],
)
def test_nothing_but_reading_is_allowed(query: str, trace: Path, cli: Cli) -> None:
    before = trace.read_bytes(), sorted(os.listdir(trace.parent))
    done = cli("sql", trace, query, cwd=trace.parent)
    assert done.returncode == 2, done.stdout
    assert "only reading is allowed" in done.stderr
    assert "Traceback" not in done.stderr
    assert (trace.read_bytes(), sorted(os.listdir(trace.parent))) == before


@pytest.mark.parametrize("query", ["SELEC", "SELECT * FROM nowhere", "SELECT 1; SELECT 2", "SELECT nothing FROM event", ";;"])
def test_wrong_sql_is_a_sentence(query: str, trace: Path, cli: Cli) -> None:
    done = cli("sql", trace, query)
    assert done.returncode == (0 if query == ";;" else 2)
    assert "Traceback" not in done.stderr


def test_a_view_of_each_kind_is_listed_and_answers(trace: Path, cli: Cli) -> None:
    listed = {row["name"]: row for row in json.loads(cli("sql", trace, "--list", "--format", "json").stdout)}
    for name, about, _ in VIEWS:
        assert listed[name]["what it holds"] == about
        assert listed[name]["columns"]
        assert cli("sql", trace, f"SELECT * FROM {name}").returncode == 0
    assert listed["event"]["columns"] == "seq, kind, vcpu, flags, addr, value"


def test_a_table_is_cut_and_says_so_and_a_pipe_is_not(trace: Path, cli: Cli) -> None:
    many = "WITH RECURSIVE x (a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM x LIMIT 1500) SELECT a FROM x"
    table = cli("sql", trace, many)
    assert len(table.stdout.splitlines()) == 1001
    assert "cut at 1,000 rows" in table.stderr
    assert len(cli("sql", trace, many, "--format", "csv").stdout.splitlines()) == 1501
    assert len(cli("sql", trace, many, "--limit", "0").stdout.splitlines()) == 1501
    one = cli("sql", trace, many, "--format", "jsonl", "--limit", "1")
    assert one.stdout == '{"a": 1}\n'


def test_a_query_past_its_time_is_a_limit_missed(trace: Path, cli: Cli) -> None:
    done = cli("sql", trace, ENDLESS, "--timeout", "0.2")
    assert done.returncode == 3
    assert "longer than 0.2 s" in done.stderr


def test_ctrl_c_stops_a_query(trace: Path) -> None:
    with subprocess.Popen([PROGRAM, "sql", trace, ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert stderr.strip() == "shadowtrace: interrupted"


def test_queries_come_from_standard_input_too(trace: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "sql", trace, "-", "--format", "csv"],
        input="SELECT count(*) AS n\nFROM event",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "n\n3\n"
    nothing = subprocess.run([PROGRAM, "sql", trace], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert nothing.returncode == 2
    assert "say what to ask" in nothing.stderr


def test_the_shell_answers_survives_mistakes_and_ctrl_c(trace: Path) -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "100"}
    with subprocess.Popen(
        [PROGRAM, "sql", trace], stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
    ) as process:
        os.close(child)
        read = ""

        def wait_for(text: str) -> None:
            nonlocal read
            deadline = time.monotonic() + 20
            while text not in read:
                assert time.monotonic() < deadline, read
                read += os.read(parent, 4096).decode()
            read = read[read.index(text) + len(text) :]

        wait_for("trace> ")
        os.write(parent, b"SELECT count(*) + 39\n")
        wait_for("...> ")
        os.write(parent, b"FROM event;\n")
        wait_for("42")
        wait_for("trace> ")
        os.write(parent, b"DELETE FROM event;\n")
        wait_for("only reading is allowed")
        wait_for("trace> ")
        os.write(parent, ENDLESS.encode() + b";\n")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        wait_for("interrupted")
        wait_for("trace> ")
        os.write(parent, b".list\n")
        wait_for("v_cr3_load")
        wait_for("trace> ")
        os.write(parent, b".quit\n")
        assert process.wait(timeout=10) == 0
    os.close(parent)


def test_ls_lists_traces_and_nothing_else(trace: Path, cli: Cli) -> None:
    (trace.parent / "other.db").write_text("no trace")
    assert cli("replay", trace).returncode == 0
    (one,) = json.loads(cli("ls", trace.parent, "--format", "json").stdout)
    assert (one["path"], one["events"], one["ended"], one["runs"]) == (str(trace), 3, "import", ["kvm-2.6.20"])
    table = cli("ls", cwd=trace.parent).stdout.splitlines()
    assert len(table) == 2
    assert "t.db" in table[1]
    assert "\x1b" not in table[1]
    named = cli("ls", trace.parent / "other.db")
    assert "is not a trace" in named.stdout
    absent = cli("ls", "nowhere")
    assert absent.returncode == 2
    assert "hint: " in absent.stderr


@pytest.mark.boot
def test_ls_of_a_real_boot(boot: Boot, cli: Cli) -> None:
    (one,) = json.loads(cli("ls", boot.trace, "--format", "json").stdout)
    assert (one["guest"], one["ended"], one["events"], one["lost"]) == ("cloud-amd64", "poweroff", boot.outcome.events, 0)
