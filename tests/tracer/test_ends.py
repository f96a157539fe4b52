"""However a recording ends, it leaves a sealed trace that says so."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from db.trace import TraceReader
from tests.conftest import Cli
from tracer import guest
from tracer.record import record
from tracer.request import Request

pytestmark = pytest.mark.boot


def rom(code: bytes) -> bytes:
    """A 64 KiB BIOS whose reset vector jumps to its start, where ``code`` is."""
    image = bytearray(b"\xf4" * 65536)
    image[: len(code)] = code
    image[0xFFF0:0xFFF5] = b"\xea\x00\x00\x00\xf0"
    return bytes(image)


SPIN = b"\xeb\xfe"
#: lidt of a limit of zero, then a breakpoint: no handler, no double-fault handler: triple fault.
TRIPLE_FAULT = b"\x2e\x0f\x01\x1e\x10\x00\xcc" + bytes(9) + bytes(6)
#: The keyboard controller's reset line.
REBOOT = b"\xb0\xfe\xe6\x64\xeb\xfe"


def bare(folder: Path, code: bytes) -> list[str]:
    (folder / "bios.rom").write_bytes(rom(code))
    return ["-M", "pc", "-m", "16M", "-nodefaults", "-display", "none", "-bios", str(folder / "bios.rom")]


def ended(trace: Path) -> tuple[str | None, int]:
    with TraceReader(trace) as opened:
        assert opened.recording["events"] == opened.count()
        return opened.recording["ended"], opened.recording["lost"]


@pytest.mark.parametrize("code", [TRIPLE_FAULT, REBOOT], ids=["triple fault", "reboot"])
def test_a_guest_that_resets_itself(code: bytes, tmp_path: Path) -> None:
    outcome = record(Request(tmp_path / "t.db", arguments=bare(tmp_path, code), seconds=30, version="test"))
    assert outcome.ended == "reset"
    assert ended(tmp_path / "t.db") == ("reset", 0)


def test_a_guest_that_hangs_is_stopped_after_the_time_given(tmp_path: Path) -> None:
    outcome = record(Request(tmp_path / "t.db", arguments=bare(tmp_path, SPIN), seconds=1, version="test"))
    assert outcome.ended == "for"
    assert ended(tmp_path / "t.db") == ("for", 0)


def test_until_a_symbol(tmp_path: Path) -> None:
    outcome = record(Request(tmp_path / "t.db", guest=guest.load("cloud-amd64"), until="start_kernel", version="test"))
    assert (outcome.ended, outcome.lost) == ("until", 0)
    assert outcome.verdict is not None
    assert (outcome.verdict.missing, outcome.verdict.different, outcome.verdict.leaves_different) == (0, 0, 0)
    with TraceReader(tmp_path / "t.db") as trace:
        marks = trace.rows("mark")
        assert (marks[-1]["name"], marks[-1]["seq"]) == ("start_kernel", trace.count())


def test_ctrl_c_seals_and_says_so(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("shadowtrace")
    command = [program, "record", "cloud-amd64", "-o", str(tmp_path / "t.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_events(tmp_path / "t.db", 100_000)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted by the user" in out
    assert "0 missing, 0 differ" in out
    assert ended(tmp_path / "t.db") == ("interrupted", 0)


def wait_for_events(trace: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if trace.exists():
            try:
                with TraceReader(trace) as opened:
                    if opened.count() >= count:
                        return
            except Exception:
                pass
        time.sleep(0.05)
    raise AssertionError("no events came")


def descendants(pid: int) -> dict[str, int]:
    """Processes below one, by name."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            except OSError:
                continue
            if int(rest.split()[1]) == pid:
                found[name] = int(entry.name)
    return found


@pytest.mark.parametrize("victim", ["qemu-system-x86", "gdb", "shadowtrace"])
def test_killing_a_part_loses_nothing_that_was_committed(victim: str, tmp_path: Path, cli: Cli) -> None:
    program = Path(sys.executable).with_name("shadowtrace")
    trace = tmp_path / "t.db"
    with subprocess.Popen(
        [program, "record", "cloud-amd64", "-o", str(trace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_events(trace, 100_000)
        children = descendants(process.pid)
        assert resource.prlimit(children["gdb"], resource.RLIMIT_CORE) == (0, 0), "a gdb that crashes leaves a core file"
        os.kill(process.pid if victim == "shadowtrace" else children[victim], signal.SIGKILL)
        out, _ = process.communicate(timeout=180)
    with TraceReader(trace) as opened:
        assert opened.count() >= 100_000
        how = opened.recording["ended"]
    if victim == "gdb":
        assert process.returncode == 0
        assert (how, "gdb was lost" in out) == ("poweroff", True)
    elif victim == "shadowtrace":
        assert how is None
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in children.values()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in children.values())
    else:
        assert (process.returncode, how) == (1, "crash")
    report = cli("report", trace)
    assert report.returncode == 0, report.stderr
    assert {"gdb": "poweroff", "shadowtrace": "NOT SEALED", "qemu-system-x86": "crash"}[victim] in report.stdout


def test_a_guest_whose_gdb_was_killed_enters_its_kernel_all_the_same(tmp_path: Path) -> None:
    """Where gdb was to stop it nobody would let it go on."""
    program = Path(sys.executable).with_name("shadowtrace")
    trace = tmp_path / "t.db"
    command = [program, "record", "cloud-amd64", "-o", str(trace), "--events", "200000", "--for", "120"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_events(trace, 1000)
        os.kill(descendants(process.pid)["gdb"], signal.SIGKILL)
        process.wait(timeout=180)
    with TraceReader(trace) as opened:
        assert opened.recording["ended"] == "events"
        assert [row["name"] for row in opened.rows("mark")] == ["reset"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_ends_the_recording_with_one_sentence(tmp_path: Path, cli: Cli) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr}")
    try:
        done = cli("record", "cloud-amd64", "-o", tmp_path / "t.db")
        assert done.returncode == 1
        assert "cannot be written" in done.stderr
        assert "full" in done.stderr
        assert "Traceback" not in done.stderr
        with TraceReader(tmp_path / "t.db") as trace:
            assert trace.count() > 10_000
            assert trace.recording["ended"] in (None, "storage")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
