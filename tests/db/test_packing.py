"""Packed traces: small, and the same when they are unpacked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from db.errors import UsageError
from db.packing import digest, pack, unpack
from db.trace import TraceReader
from tests.analyzer.test_cores import GUEST, damage, write
from tests.conftest import Boot, Cli


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}


def digest_of(path: Path) -> str:
    with TraceReader(path) as trace:
        return digest(trace)


def test_what_is_unpacked_is_what_was_packed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.db", GUEST * 50)
    damage(path, "INSERT INTO store_origin VALUES (8, -4096), (19, 1)")
    packed = pack(path, tmp_path / "t.pack", False)
    assert unpack(tmp_path / "t.pack", tmp_path / "again.db", False) == packed.events == 50 * len(GUEST)
    assert rows(tmp_path / "again.db") == rows(path)
    assert digest_of(tmp_path / "again.db") == digest_of(path)


def test_a_real_boot_takes_less_than_four_bytes_an_event(boot: Boot, tmp_path: Path) -> None:
    packed = pack(boot.trace, tmp_path / "boot.pack", False)
    assert packed.bytes < 4 * packed.events
    unpack(tmp_path / "boot.pack", tmp_path / "boot.db", False)
    assert rows(tmp_path / "boot.db") == rows(boot.trace)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET addr = addr + 4096 WHERE seq = 7",
        "UPDATE event SET vcpu = 1 WHERE seq = 7",
        "UPDATE mode_registers SET cr4 = 0",
        "UPDATE pdptes SET entry3 = 5",
        "UPDATE content SET words = x'' WHERE seq = 1",
        "INSERT INTO store_origin VALUES (8, 1)",
    ],
)
def test_the_digest_tells_traces_apart(statement: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.db", GUEST)
    before = digest_of(path)
    assert digest_of(damage(path, statement)) != before


def test_gaps_in_the_order_are_kept(tmp_path: Path) -> None:
    path = damage(write(tmp_path / "t.db", GUEST), "DELETE FROM event WHERE seq = 7")
    pack(path, tmp_path / "t.pack", False)
    unpack(tmp_path / "t.pack", tmp_path / "again.db", False)
    assert rows(tmp_path / "again.db") == rows(path)


@pytest.mark.parametrize("place", [0, 10, 200, -20])
def test_a_damaged_pack_is_refused_and_leaves_nothing(place: int, tmp_path: Path) -> None:
    pack(write(tmp_path / "t.db", GUEST * 50), tmp_path / "t.pack", False)
    content = bytearray((tmp_path / "t.pack").read_bytes())
    content[place] ^= 0xFF
    (tmp_path / "t.pack").write_bytes(content)
    with pytest.raises(UsageError):
        unpack(tmp_path / "t.pack", tmp_path / "again.db", False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.db", "t.pack"]


def test_a_pack_whose_events_were_changed_is_refused(tmp_path: Path) -> None:
    pack(write(tmp_path / "t.db", GUEST), tmp_path / "t.pack", False)
    tar = zstandard.ZstdDecompressor().stream_reader((tmp_path / "t.pack").open("rb")).read()
    changed = (
        tar.replace(bytes.fromhex("089006"), bytes.fromhex("088006"))
        if b"\x08\x90\x06" in tar
        else tar.replace(b"\x67\x90", b"\x67\x80", 1)
    )
    assert changed != tar
    (tmp_path / "t.pack").write_bytes(zstandard.ZstdCompressor().compress(changed))
    with pytest.raises(UsageError):
        unpack(tmp_path / "t.pack", tmp_path / "again.db", False)


def test_the_verbs_refuse_what_they_must(tmp_path: Path, cli: Cli) -> None:
    path = write(tmp_path / "t.db", GUEST)
    assert cli("pack", path, "-o", tmp_path / "t.pack").returncode == 0
    assert cli("pack", path, "-o", tmp_path / "t.pack").returncode == 2
    assert cli("pack", path, "-o", tmp_path / "t.pack", "--force").returncode == 0
    assert cli("pack", path, "-o", path, "--force").returncode == 2
    assert cli("unpack", tmp_path / "t.pack", "-o", path).returncode == 2
    assert cli("unpack", path, "-o", tmp_path / "x.db").returncode == 2
    assert cli("unpack", tmp_path / "t.pack", "-o", tmp_path / "x.db").returncode == 0
    assert rows(tmp_path / "x.db") == rows(path)
