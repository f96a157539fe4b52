"""A trace that someone made to do harm: a sentence, never a traceback, a hang, growth, or anything run or changed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analyzer.export import write
from analyzer.reports import script
from db import columns
from db.errors import TraceError
from db.queries import events
from db.trace import TraceReader, store_run
from db.writer import TraceWriter
from tests.conftest import Cli
from x86.event import Event, Kind, pack_words

RUN = {"model": "m", "parameters": "{}", "version": "v", "core": "c", "events": 0, "seconds": 0.0, "facts": "{}"}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.db"
    with TraceWriter(path) as writer:
        writer.describe(source="import", guest="t", title="t", vcpus=1, version="test")
        writer.append(
            [
                Event(Kind.PAGE, addr=0x1000, extra=pack_words([(0, 0x2067)])),
                Event(Kind.REGS, extra=(None, 0x20, 0x100)),
                Event(Kind.CR3, addr=0x1000, extra=(1, 2, 3, 4)),
                Event(Kind.WRITE, flags=8, addr=0x1008, value=0x3067),
                *(Event(Kind.ACCESS, addr=0x1000 * number) for number in range(3000)),
            ]
        )
        writer.add("mark", id=1, seq=0, name="reset", vcpu=0)
        writer.add("memory_check", id=1, seq=1, tables=0, entries=0, missing=0, different=0, leaves=0, leaves_different=0, detail="")
        writer.seal("import", "done")
    assert store_run(path, **RUN)
    return path


def change(path: Path, script: str, schema: bool = False) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(("PRAGMA writable_schema = ON;" if schema else "") + script)
    connection.commit()
    connection.close()


def change_types(path: Path, statement: str) -> None:
    """Run a statement on tables that take any type, and have them say STRICT again."""
    change(path, "UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '       ')", schema=True)
    change(path, statement)
    change(path, "UPDATE sqlite_schema SET sql = replace(sql, '       ', ' STRICT')", schema=True)


#: SQL that makes a trace into something else, and what is said of it.
FOREIGN = {
    "a trigger": ("CREATE TRIGGER gift AFTER INSERT ON run BEGIN DELETE FROM event; END", "has a trigger 'gift', which no trace has"),
    "a view": ("CREATE VIEW gift AS SELECT 1", "has a view 'gift'"),
    "a view that never ends": (
        "CREATE VIEW gift AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
        "has a view 'gift'",
    ),
    "a table": ("CREATE TABLE gift (x)", "has a table 'gift'"),
    "an index": ("CREATE INDEX gift ON event (addr)", "has an index 'gift'"),
    "a name with an escape sequence": ('CREATE TABLE "\x1b[31mred" (x)', r"has a table '\x1b[31mred'"),
    "statistics": ("ANALYZE", "has a table 'sqlite_stat1'"),
    "a view of ours with other SQL": (
        "DROP VIEW v_invlpg; CREATE VIEW v_invlpg AS SELECT load_extension('gift') AS va",
        "has a view 'v_invlpg' that is not the one of schema",
    ),
    "a table that is a view": (
        "DROP TABLE console; CREATE VIEW console AS SELECT 1 AS id, 1 AS seq, 'x' AS line",
        "has a view 'console' that is not",
    ),
    "another column": ("ALTER TABLE mark ADD COLUMN more TEXT", "has a table 'mark' that is not the one of schema"),
    "a generated column": ("ALTER TABLE mark ADD COLUMN more BLOB AS (zeroblob(1000000000))", "has a table 'mark' that is not"),
    "a missing table": ("DROP TABLE loss", "lacks the table 'loss'"),
    "a missing view": ("DROP VIEW v_access", "lacks the view 'v_access'"),
    "another application": ("PRAGMA application_id = 1", "is not a trace"),
    "no schema": ("PRAGMA user_version = 0", "has schema 0, which there never was"),
    "a negative schema": ("PRAGMA user_version = -1", "has schema -1, which there never was"),
    "no recording": ("DELETE FROM recording", "does not say what was recorded"),
    "a thousand million vCPUs": ("UPDATE recording SET vcpus = 1000000000", "it names 1000000000 vCPUs"),
    "no vCPU": ("UPDATE recording SET vcpus = 0", "it names 0 vCPUs"),
    "a recording without RAM": ("UPDATE recording SET source = 'record', ram_bytes = NULL", "None bytes of RAM"),
}

#: Statements that leave the schema right and rows wrong. The second says what is told of them where events are read.
WRONG_ROWS = {
    "a kind of no event": ("UPDATE event SET kind = 9 WHERE seq = 3", "event 3 is incomplete or of no known shape"),
    "a vCPU below zero": ("UPDATE event SET vcpu = -1 WHERE seq = 3", "event 3 is"),
    "a vCPU too many": ("UPDATE event SET vcpu = 64 WHERE seq = 3", "event 3 is"),
    "flags beyond all": ("UPDATE event SET flags = 1 << 40 WHERE seq = 3", "event 3 is"),
    "a store of 15 bytes": ("UPDATE event SET flags = 15 WHERE seq = 4", "event 4 is"),
    "a store beyond physical memory": ("UPDATE event SET addr = 1 << 60 WHERE seq = 4", "event 4 is"),
    "a page within a page": ("UPDATE event SET addr = 5 WHERE seq = 1", "event 1 is"),
    "a page without content": ("DELETE FROM content", "event 1 is"),
    "registers without values": ("DELETE FROM mode_registers", "event 2 is"),
    "content of half a word": ("UPDATE content SET words = x'0102030405'", "the content at event 1 is none of a page"),
    "content past the page": ("UPDATE content SET words = x'ff7f0000000000000000'", "the content at event 1 is none of a page"),
    "content of megabytes": ("UPDATE content SET words = zeroblob(50000000)", "the content at event 1 is none of a page"),
}

WRONG_TYPES = {
    "event": "UPDATE event SET kind = 'jump' WHERE seq = 7",
    "event with a real": "UPDATE event SET vcpu = 0.5 WHERE seq = 7",
    "event with nothing": "UPDATE event SET addr = x'00' WHERE seq = 7",
    "recording": "UPDATE recording SET vcpus = 'many'",
    "mark": "UPDATE mark SET seq = 'first'",
    "content": "UPDATE content SET words = 'words'",
    "run": "UPDATE run SET facts = x'00ff'",
    "check": "UPDATE memory_check SET missing = 'none'",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_no_trace_has_is_named(case: str, trace: Path) -> None:
    script, sentence = FOREIGN[case]
    change(trace, script)
    before = trace.read_bytes()
    with pytest.raises(TraceError) as error:
        TraceReader(trace)
    assert sentence in str(error.value)
    assert error.value.hint
    assert trace.read_bytes() == before


@pytest.mark.parametrize(
    "case", [case for case in FOREIGN if not case.startswith(("no ", "a thousand", "a recording")) or case == "no schema"]
)
def test_nothing_is_kept_in_what_is_no_trace(case: str, trace: Path) -> None:
    change(trace, FOREIGN[case][0])
    before = trace.read_bytes()
    assert not store_run(trace, **RUN)
    assert trace.read_bytes() == before


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_a_row_of_no_known_shape_is_named(case: str, trace: Path, cli: Cli) -> None:
    script, sentence = WRONG_ROWS[case]
    change(trace, script)
    for verb in ("replay", "export"):
        done = cli(verb, trace)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    verified = cli("verify", trace)
    assert verified.returncode in (1, 2)
    assert "Traceback" not in verified.stderr


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_a_value_of_another_type_is_named_even_where_tables_say_strict(case: str, trace: Path, cli: Cli) -> None:
    change_types(trace, WRONG_TYPES[case])
    for verb in ("replay", "report", "export"):
        done = cli(verb, trace)
        assert done.returncode == 2
        assert "is damaged" in done.stderr
    verified = cli("verify", trace)
    assert (verified.returncode, "FAILED  intact" in verified.stdout or "is damaged" in verified.stderr) == (
        1 if "FAILED" in verified.stdout else 2,
        True,
    )


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_reading_alone_notices_types_too(case: str, trace: Path) -> None:
    """What a file too large to be looked through whole depends on."""
    change_types(trace, WRONG_TYPES[case])
    with pytest.raises(TraceError), TraceReader(trace, check=False) as opened:
        list(opened.events())
        for table in ("recording", "mark", "run", "memory_check"):
            opened.rows(table)


#: Rows of another type or shape, which ``TraceReader.events`` refuses: whatever reads in bulk refuses them in its words.
BULK = {
    "text for a kind": "UPDATE event SET kind = 'jump' WHERE seq = 7",
    "text for an address": "UPDATE event SET addr = 'here' WHERE seq = 7",
    "a blob for an address": "UPDATE event SET addr = x'00' WHERE seq = 7",
    "a real for a value": "UPDATE event SET value = 1.5 WHERE seq = 7",
    "nothing for flags": "UPDATE event SET flags = x'' WHERE seq = 7",
    "a kind below zero": "UPDATE event SET kind = -1 WHERE seq = 7",
    "a kind of no event": "UPDATE event SET kind = 9 WHERE seq = 7",
    "a vCPU too many": "UPDATE event SET vcpu = 64 WHERE seq = 7",
    "text for a register": "UPDATE mode_registers SET cr0 = 'protected'",
    "text for words": "UPDATE content SET words = 'words'",
}

READERS: dict[str, Callable[[TraceReader], Iterator[object]]] = {
    "events": lambda trace: trace.events(),
    "columns": columns.batches,
    "csv": write.csv,
    "script": lambda trace: script.text(trace, events(1, trace.count())),
    "script jsonl": lambda trace: script.jsonl(trace, events(1, trace.count())),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", BULK)
def test_every_reader_refuses_a_wrong_row_in_the_same_words(case: str, reader: str, trace: Path) -> None:
    change_types(trace, BULK[case])
    said = []
    for read in (READERS["events"], READERS[reader]):
        with pytest.raises(TraceError) as error, TraceReader(trace, check=False) as opened:
            list(read(opened))
        said.append((str(error.value), error.value.hint))
    assert said[0] == said[1]


def pages_of(path: Path, kind: int) -> tuple[bytearray, int, list[int]]:
    data = bytearray(path.read_bytes())
    size = struct.unpack_from(">H", data, 16)[0]
    return data, size, [page for page in range(1, len(data) // size) if data[page * size] == kind]


def test_a_tree_tied_into_a_knot_ends(trace: Path) -> None:
    """Every pointer of the events' root page leads to one leaf: each of its rows comes again and again."""
    data, size, interior = pages_of(trace, 5)
    root = interior[-1] * size
    cells = struct.unpack_from(">H", data, root + 3)[0]
    assert cells > 2
    pointers = [struct.unpack_from(">H", data, root + 12 + 2 * cell)[0] for cell in range(cells)]
    for pointer in pointers:
        data[root + pointer : root + pointer + 4] = data[root + pointers[0] : root + pointers[0] + 4]
    trace.write_bytes(data)
    with pytest.raises(TraceError, match="is damaged"):
        TraceReader(trace)
    with pytest.raises(TraceError), TraceReader(trace, check=False) as opened:
        list(opened.events())


def test_a_tree_that_contains_itself_ends(trace: Path) -> None:
    data, size, interior = pages_of(trace, 5)
    root = interior[-1] * size
    data[root + 8 : root + 12] = struct.pack(">I", interior[-1] + 1)
    trace.write_bytes(data)
    with pytest.raises(TraceError), TraceReader(trace, check=False) as opened:
        list(opened.events())


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(part: float, trace: Path, cli: Cli) -> None:
    data = trace.read_bytes()
    trace.write_bytes(data[: int(len(data) * part)])
    for verb in ("report", "export", "verify"):
        done = cli(verb, trace)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        assert "damaged" in done.stderr or "FAILED  intact" in done.stdout


def test_facts_that_are_none_are_replayed_anew(trace: Path, cli: Cli) -> None:
    good = cli("report", trace, "--format", "json")
    assert good.returncode == 0, good.stderr
    for facts in ("nonsense", "[]", "{}", "[" * 100_000, '{"get_page": "x"}', '{"zaps": {"total": null}}'):
        connection = sqlite3.connect(trace)
        connection.execute("UPDATE run SET facts = ? WHERE id = (SELECT max(id) FROM run)", (facts,))
        connection.commit()
        connection.close()
        for form in ("json", "table"):
            done = cli("report", trace, "--format", form)
            assert done.returncode == 0, done.stderr
            assert "cr3 loads" in done.stdout or done.stdout == good.stdout


#: Verbs that show what the trace says of itself.
TELLING = [
    ("report",),
    ("replay",),
    ("stat",),
    ("ls",),
    ("script",),
    ("timeline",),
    ("annotate",),
    ("verify",),
    ("report", "--by", "phase"),
]


@pytest.mark.parametrize("verb", TELLING, ids=" ".join)
def test_no_text_of_a_trace_reaches_the_terminal_raw(verb: tuple[str, ...], trace: Path, cli: Cli) -> None:
    connection = sqlite3.connect(trace)
    for table in ("recording", "mark", "memory_check"):
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[2] == "TEXT" and row[1] != "source"]
        for name in names:
            connection.execute(f"UPDATE {table} SET {name} = ?", ("\x1b]0;PWNED\x07\r" + name,))
    connection.execute("UPDATE recording SET source = 'record', ram_bytes = 16777216")
    connection.commit()
    connection.close()
    done = cli(*verb, trace)
    assert done.returncode in (0, 1), done.stderr
    for text in (done.stdout, done.stderr):
        assert not {"\x1b", "\x07", "\r"} & set(text)
    assert verb[0] not in ("report", "stat") or len(verb) > 1 or "PWNED" in done.stdout


def test_a_log_beside_a_sealed_trace_is_read_by_both_cores(trace: Path, tmp_path: Path) -> None:
    """SQLite reads a write-ahead log wherever one lies, whatever the file's head says of its mode."""
    other = tmp_path / "other.db"
    shutil.copy(trace, other)
    connection = sqlite3.connect(other)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("UPDATE event SET addr = 0x7000 WHERE kind = 5")
    connection.commit()
    shutil.copy(f"{other}-wal", f"{trace}-wal")
    connection.close()
    with TraceReader(trace) as opened:
        one_by_one = [event.addr for event in opened.events((Kind.ACCESS,))]
        in_columns = [int(addr) for batch in columns.batches(opened) for addr in batch.addr[batch.kind == Kind.ACCESS]]
    assert one_by_one == in_columns == [0x7000] * 3000


def test_numbers_of_nine_bytes_are_read_by_both_cores(trace: Path, cli: Cli) -> None:
    change(trace, f"UPDATE event SET seq = {(1 << 62) + 5} WHERE seq = (SELECT max(seq) FROM event)")
    told = [cli("replay", trace, "--core", core, "--format", "json") for core in ("reference", "fast")]
    assert [done.returncode for done in told] == [0, 0]
    assert told[0].stdout == told[1].stdout


def test_a_mark_beyond_all_events(trace: Path, cli: Cli) -> None:
    change(trace, f"UPDATE mark SET seq = {(1 << 63) - 1}")
    for option in ("--from", "--to"):
        done = cli("script", trace, option, "reset")
        assert done.returncode in (0, 2), done.stderr
        assert "defect" not in done.stderr


@pytest.mark.parametrize("facts", ["{}", "[]", "x", "1", "[" * 100_000, '{"get_page": 1}'])
def test_a_live_run_that_is_none(facts: str, trace: Path, cli: Cli) -> None:
    connection = sqlite3.connect(trace)
    connection.execute("UPDATE run SET facts = ?", (facts,))
    connection.execute("UPDATE recording SET source = 'kvmmmu'")
    connection.commit()
    connection.close()
    for done in (cli("report", trace), cli("report", trace, "--format", "json"), cli("diff", trace, trace)):
        assert done.returncode == 2, done.stdout
        assert "of a live KVM" in done.stderr


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"facts": {}, "run": []}', '{"facts": {}, "run": {"parameters": 5}}', '{"a": {"b": 1}, "parameters": 5}']
)
def test_json_that_is_no_run_s(text: str, trace: Path, cli: Cli) -> None:
    (trace.parent / "f.json").write_text(text)
    done = cli("diff", trace.parent / "f.json", trace)
    assert done.returncode in (0, 2)
    assert "defect" not in done.stderr


@pytest.mark.parametrize("text", ["1e308", "1" + "0" * 400, "NaN", '[{"glevels": [], "hits": 1}]'])
def test_facts_beyond_all_numbers(text: str, trace: Path, cli: Cli) -> None:
    (trace.parent / "f.json").write_text(f'{{"facts": {{"zaps": {{"total": {text}}}, "roles": {text}}}}}')
    done = cli("diff", trace.parent / "f.json", trace)
    assert done.returncode == 0, done.stderr


def test_a_kept_yardstick_that_is_none_is_replayed_anew(trace: Path, cli: Cli) -> None:
    good = cli("report", trace)
    assert "What it saved" in good.stdout
    connection = sqlite3.connect(trace)
    for number, text in connection.execute("SELECT id, facts FROM run WHERE model = 'uncached'").fetchall():
        connection.execute("UPDATE run SET facts = ? WHERE id = ?", (json.dumps(json.loads(text) | {"fills": []}), number))
    connection.commit()
    connection.close()
    assert cli("report", trace).stdout == good.stdout


def test_annotate_takes_no_memory_for_numbers(trace: Path, cli: Cli) -> None:
    change(trace, f"UPDATE event SET seq = {1 << 40} WHERE seq = (SELECT max(seq) FROM event)")
    assert cli("annotate", trace).returncode == 0


@pytest.mark.parametrize("verb", ["stat", "report", "replay"])
def test_megabytes_of_a_title_are_cut(verb: str, trace: Path, cli: Cli) -> None:
    change(trace, "UPDATE recording SET title = replace(hex(zeroblob(2000000)), '00', 'ab ')")
    done = cli(verb, trace, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert 10_000 < len(done.stdout) < 100_000


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(trace: Path, cli: Cli) -> None:
    os.mkfifo(trace.parent / "pipe")
    for arguments in (("import", trace.parent / "pipe", "-o", trace.parent / "x.db"), ("sweep", trace, "-o", trace.parent / "pipe")):
        done = cli(*arguments)
        assert done.returncode == 2, done.stderr
    for log in (trace.parent / "pipe", Path("/dev/zero")):
        done = cli("diff", "--capture", trace, "--log", log)
        assert done.returncode == 2, done.stderr
        assert "is no file" in done.stderr


def test_reading_changes_nothing_and_asks_nothing_of_the_folder(trace: Path) -> None:
    before = trace.read_bytes()
    with TraceReader(trace) as opened:
        list(opened.events())
        for statement in ("DELETE FROM event", "ATTACH 'x.db' AS x", "PRAGMA journal_mode = WAL", "SELECT load_extension('x')"):
            with pytest.raises(TraceError):
                opened._connection.row(statement)
        with pytest.raises(TraceError, match="more work"):
            opened.number("SELECT count(*) FROM event a, event b, event c, event d")
    assert trace.read_bytes() == before
    assert [path.name for path in trace.parent.iterdir()] == [trace.name]


def test_memory_stays_within_a_small_multiple_of_the_file(trace: Path) -> None:
    """Content rows by the ten thousand, each of a page of its own: the model keeps 4 KiB for each, a reader not even that."""
    connection = sqlite3.connect(trace)
    top = 20_000
    connection.executemany(
        "INSERT INTO event VALUES (?, 4, 0, 0, ?, 0)", [(4000 + number, 0x100000 + 4096 * number) for number in range(top)]
    )
    connection.executemany("INSERT INTO content VALUES (?, x'')", [(4000 + number,) for number in range(top)])
    connection.commit()
    connection.close()
    code = f"from pathlib import Path; from db.trace import TraceReader; t = TraceReader(Path({str(trace)!r})); print(sum(1 for _ in t.events()))"
    limit = 400 << 20
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 3004 + top


def test_a_change_that_was_never_finished_is_rolled_back_in_a_copy(trace: Path) -> None:
    """A report that was killed while it kept its facts leaves a journal: the trace before is what counts."""
    with TraceReader(trace) as opened:
        runs = len(opened.rows("run"))
    code = (
        "import sqlite3, os, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_spill = 1'); c.execute('PRAGMA cache_size = 2');"
        "c.execute('DELETE FROM run'); c.execute('UPDATE event SET kind = 9'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, trace], check=False)
    journal = trace.with_name("t.db-journal")
    assert journal.stat().st_size > 0
    before, beside = trace.read_bytes(), journal.read_bytes()
    with TraceReader(trace) as opened:
        assert len(opened.rows("run")) == runs
        assert len(list(opened.events())) == 3004
    assert (trace.read_bytes(), journal.read_bytes()) == (before, beside)
    assert store_run(trace, **RUN)
    assert not journal.exists()


def test_a_journal_that_names_another_file_is_refused(trace: Path, tmp_path: Path) -> None:
    """SQLite would look for that file, and delete it where it finds nothing that speaks against it."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    name = str(victim).encode()
    body = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 0, 1, 512, 4096) + bytes(484)
    tail = struct.pack(">I", 1) + name + struct.pack(">II", len(name), sum(name)) + bytes.fromhex("d9d505f920a163d7")
    trace.with_name("t.db-journal").write_bytes(body + tail)
    with pytest.raises(TraceError, match="names another journal"):
        TraceReader(trace)
    assert victim.read_text() == "mine"


def test_a_file_that_may_not_be_read_and_one_that_is_locked(trace: Path) -> None:
    locked = sqlite3.connect(trace)
    locked.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    with pytest.raises(TraceError, match="is locked by another program"):
        TraceReader(trace)
    assert time.monotonic() - started < 30
    locked.close()


def test_quick_check_is_whole_for_small_files_and_bounded_for_large_ones(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that only the whole check sees: verify names it however large the file is."""
    change_types(trace, WRONG_TYPES["event"])
    copy = Path(shutil.copy(trace, trace.with_name("copy.db")))
    with pytest.raises(TraceError):
        TraceReader(copy)
    monkeypatch.setattr("db.file.guarded.CHECKED_BYTES", 0)
    with TraceReader(copy) as opened:
        assert "non-INTEGER value in event.kind" in opened.damage()[0]
