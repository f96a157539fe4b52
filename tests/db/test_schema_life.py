"""A file of every schema there was can be read and upgraded; a newer one is refused with the name of who reads it."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path

import pytest

from db import models
from db.errors import TraceError, UsageError
from db.file.guarded import expected_schema
from db.file.upgrade import upgrade
from db.schema import SCHEMA_VERSION
from db.trace import TraceReader, store_run
from db.writer import TraceWriter
from tests.conftest import Cli

DATA = Path(__file__).resolve().parent.parent / "data"
OLDER = range(1, SCHEMA_VERSION)


def old_file(version: int, folder: Path) -> Path:
    path = folder / f"v{version}.db"
    path.write_bytes(gzip.decompress((DATA / f"trace-v{version}.db.gz").read_bytes()))
    return path


@pytest.mark.parametrize("version", OLDER)
def test_a_file_of_each_older_schema_is_kept_and_is_of_it(version: int, tmp_path: Path) -> None:
    connection = sqlite3.connect(old_file(version, tmp_path))
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    assert {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")} == set(expected_schema(version))
    assert connection.execute("SELECT count(*) > 100 FROM event").fetchone() == (1,)
    assert connection.execute("SELECT count(*) > 0 FROM run").fetchone() == (1,)


@pytest.mark.parametrize("version", OLDER)
def test_an_older_file_is_read_through_a_copy_and_stays_as_it_is(version: int, tmp_path: Path, cli: Cli) -> None:
    path = old_file(version, tmp_path)
    before = path.read_bytes()
    for verb in ("report", "verify", "export", "replay"):
        done = cli(verb, path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"has schema {version}: read through an upgraded copy") == 1
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("version", OLDER)
def test_an_upgraded_file_is_today_s_and_holds_all_that_was_there(version: int, tmp_path: Path, cli: Cli) -> None:
    old, new = old_file(version, tmp_path), tmp_path / "new.db"
    done = cli("upgrade", old, "-o", new)
    assert (done.returncode, done.stdout) == (0, f"{new}: schema {SCHEMA_VERSION}, was {version}\n")
    ours, theirs = sqlite3.connect(new), sqlite3.connect(old)
    assert ours.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    for name in models.metadata.tables:
        columns = [row[1] for row in theirs.execute(f"PRAGMA table_info({name})")]
        if columns:
            query = f"SELECT {', '.join(columns)} FROM {name} ORDER BY 1"
            assert ours.execute(query).fetchall() == theirs.execute(query).fetchall()
    with TraceReader(old) as before, TraceReader(new) as after:
        assert (before.upgraded_from, after.upgraded_from) == (version, None)
        assert list(before.events()) == list(after.events())
    report = cli("report", new)
    assert (report.returncode, report.stderr) == (0, "")
    assert report.stdout == cli("report", old).stdout


def test_there_is_nothing_to_upgrade_in_a_file_of_today(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.db") as writer:
        writer.describe(source="import", guest="t", title="t", vcpus=1, version="test")
    with pytest.raises(UsageError, match="already"):
        upgrade(tmp_path / "t.db", tmp_path / "u.db", False, "test")
    assert not (tmp_path / "u.db").exists()


def test_facts_are_not_kept_in_an_older_file(tmp_path: Path) -> None:
    path = old_file(1, tmp_path)
    before = path.read_bytes()
    assert not store_run(path, model="m", parameters="{}", version="v", core="c", events=0, seconds=0.0, facts="{}")
    assert path.read_bytes() == before


@pytest.mark.parametrize(("column", "writer"), [("version", "4.5.6"), ("upgraded_by", "7.8.9")])
def test_a_newer_file_is_refused_with_the_version_that_reads_it(column: str, writer: str, tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.db") as trace:
        trace.describe(source="import", guest="t", title="t", vcpus=1, version="0.0.1")
        trace.describe(**{column: writer})
        trace.seal("import", "done")
    connection = sqlite3.connect(tmp_path / "t.db")
    connection.executescript("PRAGMA user_version = 77; DROP VIEW v_access; ALTER TABLE event ADD COLUMN more TEXT; CREATE TABLE news (x)")
    connection.close()
    with pytest.raises(TraceError, match=f"has schema 77, .*shadowtrace {writer} wrote it") as error:
        TraceReader(tmp_path / "t.db")
    assert writer in error.value.hint


def test_an_older_file_that_someone_changed_is_refused(tmp_path: Path) -> None:
    path = old_file(1, tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TRIGGER gift AFTER INSERT ON run BEGIN DELETE FROM event; END")
    connection.close()
    with pytest.raises(TraceError, match="has a trigger 'gift', which no trace has"):
        TraceReader(path)


def test_an_older_file_with_values_of_other_types_is_refused(tmp_path: Path) -> None:
    path = old_file(1, tmp_path)
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '')")
    connection.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE event SET kind = 'jump' WHERE seq = 7")
    connection.commit()
    connection.executescript("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = sql || ' STRICT' WHERE type = 'table'")
    connection.close()
    with pytest.raises(TraceError, match=r"is damaged: non-INTEGER value in event\.kind"):
        TraceReader(path)


def test_an_old_recording_that_was_never_sealed_is_read_too(tmp_path: Path) -> None:
    """Its last batches are in the write-ahead log."""
    path = old_file(1, tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("UPDATE recording SET ended = NULL, ended_detail = NULL")
    connection.commit()
    for suffix in ("", "-wal"):
        (tmp_path / f"copy.db{suffix}").write_bytes(path.with_name(path.name + suffix).read_bytes())
    connection.close()
    with TraceReader(tmp_path / "copy.db") as trace:
        assert (trace.recording["ended"], trace.upgraded_from, trace.count()) == (None, 1, 133)
        assert len(list(trace.events())) == 133
