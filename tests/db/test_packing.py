"""Packed traces: small, and the same when they are unpacked."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from db.errors import ShadowtraceError, StorageError, UsageError
from db.exchange.packing import digest, pack, unpack
from db.trace import TraceReader
from tests.analyzer.test_cores import GUEST, damage, write
from tests.conftest import Boot, Cli

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.boot
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


Members = list[tuple[tarfile.TarInfo, bytes]]


def members(pack_file: Path) -> Members:
    with (
        pack_file.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        return [(member, found.read()) for member in tar if (found := tar.extractfile(member))]


def crafted(path: Path, parts: Members) -> Path:
    """A pack of these members, whatever their headers say they are and hold."""
    plain = b"".join(header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512) for header, content in parts)
    path.write_bytes(zstandard.ZstdCompressor().compress(plain))
    return path


def good(tmp_path: Path) -> Members:
    path = damage(write(tmp_path / "t.db", GUEST), "DELETE FROM event WHERE seq = 7")
    damage(path, "INSERT INTO store_origin VALUES (8, -4096)")
    pack(path, tmp_path / "t.pack", False)
    path.unlink()
    return members(tmp_path / "t.pack")


def renamed(name: str) -> Callable[[Members], None]:
    return lambda parts: setattr(parts[-1][0], "name", name)


def retyped(kind: bytes) -> Callable[[Members], None]:
    return lambda parts: setattr(parts[2][0], "type", kind)


def sized(place: int, size: int) -> Callable[[Members], None]:
    return lambda parts: setattr(parts[place][0], "size", size)


def said(**changes: object) -> Callable[[Members], None]:
    def change(parts: Members) -> None:
        header, content = parts[0]
        changed = json.dumps({**json.loads(content), **changes}).encode()
        header.size = len(changed)
        parts[0] = (header, changed)

    return change


def other(place: int, content: bytes) -> Callable[[Members], None]:
    def change(parts: Members) -> None:
        header, _ = parts[place]
        header.size = len(content)
        parts[place] = (header, content)

    return change


HARMS = {
    "another name": renamed("rest.db2"),
    "up and away": renamed("../../away.db"),
    "from the root": renamed("/tmp/away.db"),
    "a link": retyped(tarfile.SYMTYPE),
    "a folder": retyped(tarfile.DIRTYPE),
    "a sparse file": retyped(tarfile.GNUTYPE_SPARSE),
    "a long name": retyped(tarfile.GNUTYPE_LONGNAME),
    "headers of headers": retyped(tarfile.XHDTYPE),
    "one member twice": lambda parts: parts.insert(2, parts[1]),
    "a member less": lambda parts: parts.pop(5) and None,
    "another order": lambda parts: parts.reverse(),
    "no end": lambda parts: parts.pop() and None,
    "a size of nothing": sized(1, 0),
    "a size below nothing": sized(1, -1),
    "a huge column": sized(1, 1 << 60),
    "a huge pack.json": sized(0, 1 << 40),
    "huge origins": sized(-2, 1 << 50),
    "origins in halves": sized(-2, 8),
    "another format": said(format=2),
    "fewer events": said(events=1),
    "no events": said(events=0),
    "less than none": said(events=-1),
    "a fraction": said(events=len(GUEST) - 1.0),
    "true": said(events=True),
    "another digest": said(digest=1),
    "no JSON": other(0, b"{"),
    "deep JSON": other(0, b"[" * 512),
    "a list": other(0, b"[]"),
    "a kind that is none": other(1, b"\7" * (len(GUEST) - 1)),
    "one event twice": other(3, bytes(8 * (len(GUEST) - 1))),
    "no trace": other(-1, bytes(8192)),
    "half a trace": lambda parts: other(-1, parts[-1][1][:20000])(parts),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_pack_that_means_harm_is_refused_and_leaves_nothing(harm: str, tmp_path: Path) -> None:
    parts = good(tmp_path)
    HARMS[harm](parts)
    crafted(tmp_path / "bad.pack", parts)
    with pytest.raises(UsageError, match=r"bad\.pack"):
        unpack(tmp_path / "bad.pack", tmp_path / "again.db", False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.pack", "t.pack"]


@pytest.mark.parametrize("changes", [[said(events=1 << 50), sized(1, 1 << 50)], [sized(-1, 1 << 50)]], ids=["events", "the rest"])
def test_what_the_disk_has_no_room_for_is_refused_before_it_is_written(changes: list[Callable[[Members], None]], tmp_path: Path) -> None:
    parts = good(tmp_path)
    for change in changes:
        change(parts)
    with pytest.raises(StorageError, match="no room"):
        unpack(crafted(tmp_path / "bad.pack", parts), tmp_path / "again.db", False)


def test_a_pack_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    parts = good(tmp_path)
    plain = zstandard.ZstdDecompressor().stream_reader(crafted(tmp_path / "whole.pack", parts).read_bytes()).read()
    for end in range(0, len(plain), 509):
        (tmp_path / "cut.pack").write_bytes(zstandard.ZstdCompressor().compress(plain[:end]))
        with pytest.raises(ShadowtraceError):
            unpack(tmp_path / "cut.pack", tmp_path / "again.db", False)


_UNPACK = """
import resource, sys
from pathlib import Path
from db.errors import UsageError
from db.exchange.packing import unpack
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[2]), False)
except UsageError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("member", ["kind", "rest.db"])
def test_a_bomb_takes_no_memory(member: str, tmp_path: Path) -> None:
    """100 MB of one byte each, in a pack of a few KiB."""
    size = 100_000_000
    parts = good(tmp_path)
    if member == "kind":
        said(events=size)(parts)
    place = next(i for i, (header, _) in enumerate(parts) if header.name == member)
    parts[place][0].size = size
    with (tmp_path / "bomb.pack").open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as out:
        for header, content in parts[:place]:
            out.write(header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        out.write(parts[place][0].tobuf(tarfile.GNU_FORMAT))
        for _ in range(size // 1_000_000 + 1):
            out.write(b"\1" * 1_000_000)
    assert (tmp_path / "bomb.pack").stat().st_size < 30_000
    done = subprocess.run(
        [sys.executable, "-c", _UNPACK, tmp_path / "bomb.pack", tmp_path / "again.db"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50_000


def test_a_window_of_gigabytes_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, enable_ldm=True)
    plain = zstandard.ZstdDecompressor().stream_reader(crafted(tmp_path / "a.pack", good(tmp_path)).read_bytes()).read()
    with (tmp_path / "bad.pack").open("wb") as file, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file) as out:
        out.write(plain)
    with pytest.raises(UsageError):
        unpack(tmp_path / "bad.pack", tmp_path / "again.db", False)
