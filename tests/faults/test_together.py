"""Recordings, reports and builds at the same time; sockets nobody else can reach; twice the same in, twice the same out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from db.digest import digest
from db.trace import TraceReader
from tests.conftest import Cli
from tests.tracer.test_ends import descendants, wait_for_events
from tracer import guest, images, plugin, resources

pytestmark = pytest.mark.boot

PROGRAM = Path(sys.executable).with_name("shadowtrace")


def recording(trace: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [PROGRAM, "record", "-o", trace, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_recordings_and_reports_of_one_of_them(tmp_path: Path, cli: Cli) -> None:
    one, other = (recording(tmp_path / name, "--events", "300000", "cloud-amd64") for name in ("one.db", "other.db"))
    wait_for_events(tmp_path / "one.db", 10_000)
    live = [subprocess.Popen([PROGRAM, "report", tmp_path / "one.db"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    shown = [report.communicate(timeout=300)[0] for report in live]
    for process in (one, other):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "0 missing, 0 differ" in out
    for text in shown:
        assert "STILL BEING RECORDED: this is up to here" in text or "events: 300" in text
    for name in ("one.db", "other.db"):
        verified = cli("verify", tmp_path / name)
        assert verified.returncode == 0, verified.stdout
    sealed = [subprocess.Popen([PROGRAM, "report", tmp_path / "one.db"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (report.communicate(timeout=300)[0] for report in sealed)
    assert first == second
    assert "NOT SEALED" not in first


def test_sockets_lie_in_a_private_folder_and_nothing_listens_on_a_network(tmp_path: Path) -> None:
    process = recording(tmp_path / "t.db", "--for", "8", "cloud-amd64")
    try:
        wait_for_events(tmp_path / "t.db", 1000)
        qemu = descendants(process.pid)["qemu-system-x86"]
        inodes = {
            str(entry.readlink())[8:-1]
            for pid in (process.pid, *descendants(process.pid).values())
            for entry in Path(f"/proc/{pid}/fd").iterdir()
            if str(entry.readlink()).startswith("socket:[")
        }
        for table in ("tcp", "tcp6", "udp", "udp6", "raw", "packet"):
            path = Path(f"/proc/{qemu}/net/{table}")
            rows = path.read_text().splitlines()[1:] if path.exists() else []
            assert not [row for row in rows if inodes & set(row.split())], table
        named = [row.split() for row in Path(f"/proc/{qemu}/net/unix").read_text().splitlines()[1:]]
        paths = {Path(row[7]) for row in named if len(row) > 7 and row[6] in inodes and row[7].startswith("/")}
        assert {path.name for path in paths} == {"gdb", "qmp"}
        (folder,) = {path.parent for path in paths}
        assert folder.stat().st_mode & 0o777 == 0o700
        argv = Path(f"/proc/{qemu}/cmdline").read_bytes().split(b"\0")
        assert b"-nic" in argv
        assert argv[argv.index(b"-nic") + 1] == b"none"
        assert b"-sandbox" in argv
    finally:
        process.communicate(timeout=120)
    assert not folder.exists()


def test_a_changed_image_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bare = guest.load("bare")
    firmware = bare.images().paths["firmware"]
    good = firmware.read_bytes()
    firmware.write_bytes(good[:-1] + b"x")
    assert images._kept(resources.cache("guests") / "bare", images._recipe(bare.sources)) is None
    assert bare.images().paths["firmware"].read_bytes() == good


def test_the_plugin_is_built_twice_at_once(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tracer import plugin; print(plugin.build(Path(sys.argv[1])))"
    builds = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    built = {build.communicate(timeout=300)[0].strip() for build in builds}
    assert [build.returncode for build in builds] == [0] * 4
    assert built == {str(plugin.build(tmp_path))}
    assert [str(path) for path in tmp_path.iterdir()] == list(built)


@pytest.mark.parametrize("verb", [["report", "--format", "json"], ["replay", "--format", "json"], ["report"]])
def test_the_same_trace_gives_the_same_bytes(verb: list[str], tmp_path: Path, cli: Cli) -> None:
    assert cli("record", "bare", "-o", tmp_path / "t.db").returncode == 0
    outs = set()
    for seed in ("0", "1", "4711"):
        copy = tmp_path / seed / "t.db"
        copy.parent.mkdir()
        copy.write_bytes((tmp_path / "t.db").read_bytes())
        done = cli(verb[0], copy.name, *verb[1:], cwd=copy.parent, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        outs.add(done.stdout)
        if "json" in verb:
            assert "seconds" not in json.dumps(list(json.loads(done.stdout)))
    assert len(outs) == 1


@pytest.mark.parametrize("name", ["bare", "cloud-amd64"])
def test_deterministic_recordings_are_the_same_twice(name: str, tmp_path: Path, cli: Cli) -> None:
    digests = set()
    for number in range(2):
        done = cli("record", name, "--deterministic", "--events", "120000", "-o", tmp_path / f"{number}.db")
        assert done.returncode == 0, done.stderr
        with TraceReader(tmp_path / f"{number}.db") as trace:
            digests.add(first_events(trace, 100_000) if name != "bare" else digest(trace))
    assert len(digests) == 1


def first_events(trace: TraceReader, count: int) -> int:
    """What the first events are: where a recording stops by itself it may stop a few events later the other time."""
    events = trace.events()
    return hash(tuple(next(events) for _ in range(count)))
