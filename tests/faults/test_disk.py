"""No room, no inodes, no permission, no file any more: the recording stops with one sentence, sealed with what fitted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from db.check.verify import verify
from db.trace import TraceReader
from tests.conftest import Cli
from tests.faults.figures import note
from tests.tracer.test_ends import wait_for_events

pytestmark = pytest.mark.boot

PROGRAM = Path(sys.executable).with_name("shadowtrace")
Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A small file system in memory, with these options of tmpfs's."""
    folder = tmp_path / "small"
    folder.mkdir()

    def small(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr}")
        return folder

    yield small
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("shadowtrace: ")]
    assert len(said) == 1, done.stderr
    assert all(word in said[0] for word in words), said
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", ["2m", pytest.param("5m", marks=pytest.mark.faults), pytest.param("14m", marks=pytest.mark.faults)])
def test_a_full_disk(size: str, mount: Mount, cli: Cli) -> None:
    folder = mount(f"size={size}")
    done = cli("record", "cloud-amd64", "-o", folder / "t.db")
    one_sentence(done, "t.db cannot be written", "full")
    assert [path.name for path in folder.iterdir()] == ["t.db"]
    with TraceReader(folder / "t.db") as trace:
        row, count = trace.recording, trace.count()
        assert (row["ended"], row["events"]) == ("storage", count)
        assert "full" in row["ended_detail"]
        assert count > 10_000
        (loss,) = trace.rows("loss")
        assert loss["count"] > 0
        assert loss["cause"] == "the file took no more"
        assert [finding.check.name for finding in verify(trace) if finding.failures] == []
    report = cli("report", folder / "t.db")
    assert report.returncode == 0, report.stderr
    assert f"LOST {loss['count']:,} events" in report.stdout
    used = (folder / "t.db").stat().st_size / (int(size[:-1]) << 20)
    assert used > 0.6
    note(f"full disk of {size}", used=f"{used:.0%}", kept=count, lost=loss["count"])


@pytest.mark.parametrize("inodes", [2, 3])
def test_no_inodes(inodes: int, mount: Mount, cli: Cli) -> None:
    """The root takes one, the file one; its log and the log's index would need two more."""
    folder = mount(f"size=8m,nr_inodes={inodes}")
    one_sentence(cli("record", "bare", "-o", folder / "t.db"), "t.db cannot be written")
    assert list(folder.iterdir()) == []


def test_as_many_inodes_as_it_takes_are_enough(mount: Mount, cli: Cli) -> None:
    folder = mount("size=8m,nr_inodes=4")
    done = cli("record", "bare", "-o", folder / "t.db")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["t.db"]


def test_a_limit_on_a_file_s_size(tmp_path: Path) -> None:
    """It refuses more in the middle of a write, as a quota does. Guest RAM is a file too, so an import has to show it."""
    (tmp_path / "e.jsonl").write_text('{"ev":"access","va":"0x1000"}\n' * 200_000)
    program = f"ulimit -f 1024; exec {PROGRAM} import -o {tmp_path / 't.db'} {tmp_path / 'e.jsonl'}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False, timeout=300)
    one_sentence(done, "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["e.jsonl"]


@pytest.fixture
def quota_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder under a quota of 4 MiB of btrfs's own, which binds root too."""
    folder, disk = tmp_path / "quota", tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("there is no mkfs.btrfs here: Debian package btrfs-progs")
    with disk.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "--quiet", disk], capture_output=True, check=True)
    done = subprocess.run(["mount", "-o", "loop", disk, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    try:
        subprocess.run(["btrfs", "quota", "enable", folder], check=True)
        subprocess.run(["btrfs", "qgroup", "limit", "4M", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_quota(quota_folder: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "e.jsonl").write_text('{"ev":"access","va":"0x1000"}\n' * 1_000_000)
    one_sentence(cli("import", "-o", quota_folder / "t.db", tmp_path / "e.jsonl"), "cannot be written")
    assert list(quota_folder.iterdir()) == []


def test_a_quota_ends_a_recording_sealed(quota_folder: Path, cli: Cli) -> None:
    one_sentence(cli("record", "cloud-amd64", "-o", quota_folder / "t.db"), "t.db cannot be written")
    assert [path.name for path in quota_folder.iterdir()] == ["t.db"]
    with TraceReader(quota_folder / "t.db") as trace:
        assert (trace.recording["ended"], trace.recording["events"]) == ("storage", trace.count())
        assert [loss["cause"] for loss in trace.rows("loss")] == ["the file took no more"]
        assert [finding.check.name for finding in verify(trace) if finding.failures] == []


def test_a_real_network_file_system_is_refused(tmp_path: Path, cli: Cli) -> None:
    """sshfs, its server at the other end of a pipe."""
    server, there, here = Path("/usr/lib/openssh/sftp-server"), tmp_path / "there", tmp_path / "here"
    if shutil.which("sshfs") is None or not server.exists():
        pytest.skip("there is no sshfs here: Debian packages sshfs, openssh-sftp-server")
    there.mkdir()
    here.mkdir()
    connect = tmp_path / "connect"
    connect.write_text(f"#!/bin/sh\nexec {server}\n")
    connect.chmod(0o755)
    done = subprocess.run(["sshfs", "-o", f"ssh_command={connect}", f"none:{there}", here], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    try:
        one_sentence(cli("record", "bare", "-o", here / "t.db"), "network file system (fuse.sshfs)")
        assert list(there.iterdir()) == []
    finally:
        subprocess.run(["umount", here], check=True)


def test_a_read_only_folder(mount: Mount, cli: Cli) -> None:
    folder = mount("size=8m")
    assert cli("record", "bare", "-o", folder / "good.db").returncode == 0
    remount(folder, "ro")
    one_sentence(cli("record", "bare", "-o", folder / "t.db"), "t.db cannot be written", "Read-only file system")
    assert [path.name for path in folder.iterdir()] == ["good.db"]
    for verb in ("report", "verify", "export", "replay"):
        done = cli(verb, folder / "good.db")
        assert done.returncode == 0, done.stderr


def test_a_recording_that_was_killed_is_read_in_a_read_only_folder(mount: Mount, cli: Cli) -> None:
    """What its log holds cannot be read in place there: SQLite wants to make an index beside it."""
    folder = mount("size=64m")
    with subprocess.Popen(
        [PROGRAM, "record", "cloud-amd64", "-o", folder / "t.db"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_events(folder / "t.db", 50_000)
        process.kill()
    (folder / "t.db-shm").unlink(missing_ok=True)
    assert (folder / "t.db-wal").stat().st_size > 0
    remount(folder, "ro")
    done = cli("verify", folder / "t.db")
    assert (done.returncode, done.stdout.count("FAILED")) == (1, 1), done.stdout + done.stderr
    assert "FAILED  sealed" in done.stdout
    with TraceReader(folder / "t.db") as trace:
        assert trace.count() >= 50_000


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_file_that_vanishes(how: str, tmp_path: Path) -> None:
    trace = tmp_path / "t.db"
    with subprocess.Popen(
        [PROGRAM, "record", "cloud-amd64", "-o", trace], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_events(trace, 20_000)
        if how == "deleted":
            trace.unlink()
        else:
            trace.rename(tmp_path / "elsewhere.db")
            if how == "replaced":
                trace.write_text("another")
        started = time.monotonic()
        out, err = process.communicate(timeout=120)
    assert time.monotonic() - started < 60
    one_sentence(subprocess.CompletedProcess([], process.returncode, out, err), "was replaced" if how == "replaced" else "is gone")
    if how == "replaced":
        assert trace.read_text() == "another"
    if how == "moved":
        trace.with_name("t.db-wal").rename(tmp_path / "elsewhere.db-wal")
        with TraceReader(tmp_path / "elsewhere.db") as moved:
            assert moved.count() >= 20_000


def test_verbs_that_write_on_a_full_disk(mount: Mount, cli: Cli, tmp_path: Path) -> None:
    events = tmp_path / "e.jsonl"
    events.write_text('{"ev":"access","va":"0x1000"}\n' * 200_000)
    good = tmp_path / "good.db"
    assert cli("import", events, "-o", good).returncode == 0
    folder = mount("size=1m")
    one_sentence(cli("import", events, "-o", folder / "t.db"), "cannot be written")
    assert list(folder.iterdir()) == []
    one_sentence(cli("export", good, "-o", folder / "e.jsonl"), "cannot be written")
    assert list(folder.iterdir()) == []
