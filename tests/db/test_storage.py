"""Where traces are written: what SQLite cannot lock is refused, room is kept for sealing, nobody's folder is removed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from db.errors import StorageError
from db.file.locking import Reserve, check_place, file_system
from db.file.private import private_folder, remove_dead
from db.trace import TraceReader, store_run
from db.writer import TraceWriter
from x86.event import Event, Kind, pack_words

MOUNTS = r"""22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:20 / /proc rw - proc proc rw
40 22 0:35 / /mnt/me rw shared:7 - nfs4 server:/me rw,vers=4.2
41 40 0:36 / /mnt/me/local rw - tmpfs tmpfs rw
42 22 0:37 / /mnt/with\040space rw - fuse.sshfs me@server: rw
43 22 0:38 / /mnt/twice rw - cifs //server/share rw
44 43 0:39 / /mnt/twice rw - ext4 /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/home", "ext4"),
        ("/mnt/me", "nfs4"),
        ("/mnt/me/traces", "nfs4"),
        ("/mnt/meadow", "ext4"),
        ("/mnt/me/local/x", "tmpfs"),
        ("/mnt/with space/x", "fuse.sshfs"),
        ("/mnt/twice", "ext4"),
    ],
)
def test_the_file_system_of_a_folder_is_told(folder: str, kind: str) -> None:
    assert file_system(Path(folder), MOUNTS) == kind


def test_this_machine_s_own_mounts_are_understood() -> None:
    assert file_system(Path("/proc/self"), Path("/proc/self/mountinfo").read_text()) == "proc"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
def test_a_network_file_system_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"network file system \({kind}\)") as error:
        check_place(tmp_path, f"22 1 0:30 / / rw,relatime - {kind} server:/ rw\n")
    assert "local disk" in error.value.hint
    check_place(tmp_path, "22 1 0:30 / / rw,relatime - fuse.ntfs-3g /dev/sdb rw\n")


def begun(path: Path, **options: str) -> TraceWriter:
    writer = TraceWriter(path, **options)  # type: ignore[arg-type]
    writer.describe(source="import", guest="t", title="t", vcpus=1, version="test")
    return writer


@pytest.mark.parametrize(("sync", "level"), [("normal", 1), ("full", 2)])
def test_sync_is_sqlite_s_synchronous(sync: str, level: int, tmp_path: Path) -> None:
    with begun(tmp_path / "t.db", sync=sync) as writer:
        assert writer._connection.exec_driver_sql("PRAGMA synchronous").scalar() == level


def test_the_reserve_takes_room_and_has_no_name(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    reserve = Reserve(tmp_path)
    if not reserve.size:
        pytest.skip("this file system has no files without a name")
    assert list(tmp_path.iterdir()) == []
    assert reserve._descriptor is not None
    assert os.fstat(reserve._descriptor).st_blocks * 512 >= reserve.size
    assert reserve.size <= min(8 << 20, free.f_bavail * free.f_frsize // 8)
    reserve.release()
    assert reserve._descriptor is None


def test_a_batch_in_pieces_is_the_same_batch(tmp_path: Path) -> None:
    """As on a small disk: each event with what belongs to it."""
    events = [
        Event(Kind.PAGE, addr=4096 * number, extra=pack_words([(word, 1) for word in range(number % 500)]))
        if number % 3
        else Event(Kind.REGS, extra=(number, None, None))
        if number % 2
        else Event(Kind.CR3, addr=number, flags=1, extra=(1, 2, 3, number))
        for number in range(2000)
    ]
    with begun(tmp_path / "t.db") as writer:
        writer._reserve.size = 40_000
        writer.append(events)
        writer.seal("import", "done")
    with TraceReader(tmp_path / "t.db") as trace:
        assert list(trace.events()) == events


def test_a_file_that_is_moved_away_while_it_is_written_is_noticed(tmp_path: Path) -> None:
    with begun(tmp_path / "t.db") as writer:
        writer.append([Event(Kind.INVLPG)])
        (tmp_path / "t.db").rename(tmp_path / "u.db")
        with pytest.raises(StorageError, match="is gone"):
            writer.append([Event(Kind.INVLPG)])
        (tmp_path / "t.db").write_text("another")
        with pytest.raises(StorageError, match="was replaced"):
            writer.seal("import", "done")
    assert (tmp_path / "t.db").read_text() == "another"


READER = """
import sys
from pathlib import Path
from db.trace import TraceReader
with TraceReader(Path(sys.argv[1])) as trace:
    events = trace.events()
    next(events)
    print(trace.live, flush=True)
    sys.stdin.readline()
    print(1 + sum(1 for _ in events))
"""


def test_a_reader_does_not_keep_a_trace_from_being_sealed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.db"
    with begun(path) as writer:
        writer.append([Event(Kind.ACCESS, addr=number) for number in range(200_000)])
        reader = subprocess.Popen([sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "True\n"
        writer.append([Event(Kind.INVLPG)])
        writer.seal("import", "done")
    assert "keep the two together" in caplog.text
    assert path.with_name("t.db-wal").stat().st_size > 0
    with TraceReader(path) as trace:
        assert (trace.live, trace.recording["ended"], trace.count()) == (False, "import", 200_001)
    out, _ = reader.communicate("\n")
    assert out == "200000\n"
    assert store_run(path, model="m", parameters="{}", version="v", core="c", events=0, seconds=0.0, facts="{}")
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.db"]


def test_runs_stored_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with begun(path) as writer:
        writer.seal("import", "done")
    run = {"model": "m", "parameters": "{}", "version": "v", "core": "c", "events": 0, "seconds": 0.0, "facts": "{}"}
    kept: list[bool] = []
    threads = [threading.Thread(target=lambda: kept.append(store_run(path, **run))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept == [True] * 8
    with TraceReader(path) as trace:
        assert [row["id"] for row in trace.rows("run")] == list(range(1, 9))


def test_nothing_is_kept_in_a_trace_that_is_being_written(tmp_path: Path) -> None:
    run = {"model": "m", "parameters": "{}", "version": "v", "core": "c", "events": 0, "seconds": 0.0, "facts": "{}"}
    with begun(tmp_path / "t.db"):
        code = f"from pathlib import Path; from db.trace import store_run; print(store_run(Path({str(tmp_path / 't.db')!r}), **{run!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_private_folders_are_ours_alone_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with private_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        remove_dead()
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_the_killed_left_behind_goes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import os, socket, sys, tempfile; tempfile.tempdir = sys.argv[1]; from db.file.private import private_folder\n"
        "with private_folder() as folder:\n"
        "    for name in ('gdb', 'qmp'): socket.socket(socket.AF_UNIX).bind(str(folder / name))\n"
        "    print(folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert {entry.name for entry in left.iterdir()} == {"gdb", "qmp"}
    theirs = tmp_path / "shadowtrace-run-theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "thesis.txt").write_text("mine")
    loose = tmp_path / "shadowtrace-run-loose"
    loose.mkdir()
    loose.chmod(0o755)
    link = tmp_path / "shadowtrace-run-link"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    with private_folder():
        pass
    assert not left.exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {theirs.name, loose.name, link.name, "elsewhere"}


def test_folders_made_and_cleaned_at_once_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lost: list[Path] = []

    def use() -> None:
        for _ in range(50):
            with private_folder() as folder:
                time.sleep(0)
                if not folder.is_dir():
                    lost.append(folder)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert list(tmp_path.iterdir()) == []
