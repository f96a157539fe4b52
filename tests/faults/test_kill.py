"""kill -9 of any part of a recording at any moment of a real boot: the file opens, and says what it lacks."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from db.check.verify import verify
from db.errors import TraceError
from db.trace import TraceReader
from tests.conftest import Cli
from tests.faults.figures import note
from tests.tracer.test_ends import descendants
from tracer import plugin

pytestmark = pytest.mark.boot

PROGRAM = Path(sys.executable).with_name("shadowtrace")
VICTIMS = ["shadowtrace", "qemu-system-x86", "gdb"]

#: Seconds after QEMU's start within which a kill may fall: before a million events are recorded.
SPAN = 3.0

#: Kills of each part where the moments are many.
MANY = int(os.environ.get("FAULTS_KILLS") or 50)

#: A report replays the whole trace, so of many kills only each so many-th is reported.
REPORTED = 5

#: The batch being written, the next one being gathered, what one read takes from the pipe, and the pipe itself, in events.
MOST_LOST = 65_536 + 3 * 43_690


@dataclass(frozen=True)
class Kill:
    """One kill: how long after QEMU's start, and what came of it."""

    moment: float
    status: int
    out: str
    err: str
    captured: int
    """Events that the plugin had counted when all was over."""


def control_of(pid: int) -> mmap.mmap | None:
    """The page in which the plugin of a recording counts, mapped by us too: it outlives both."""
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if "shadowtrace-control" in str(entry.readlink()):
                descriptor = os.open(entry, os.O_RDWR)
                try:
                    return mmap.mmap(descriptor, plugin.CONTROL_BYTES)
                finally:
                    os.close(descriptor)
    except OSError:
        pass
    return None


def killed(victim: str, moment: float, trace: Path) -> Kill:
    """Record a boot, kill a part of it after ``moment`` seconds, and wait until all is over."""
    command = [PROGRAM, "record", "cloud-amd64", "-o", trace, "--events", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        children: dict[str, int] = {}
        deadline = time.monotonic() + 120
        control = None
        while process.poll() is None and time.monotonic() < deadline:
            children = descendants(process.pid)
            control = control or control_of(process.pid)
            if control is not None and {"qemu-system-x86", "gdb"} <= set(children):
                break
            time.sleep(0.01)
        assert control is not None, process.communicate()
        time.sleep(moment)
        alive = process.poll() is None
        if alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid if victim == "shadowtrace" else children[victim], signal.SIGKILL)
        out, err = process.communicate(timeout=300)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in children.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(Path(f"/proc/{pid}").exists() for pid in children.values())
    return Kill(moment, process.returncode, out, err, plugin.read_control(control).events)


def held(victim: str, kill: Kill, trace: Path, cli: Cli | None) -> int:
    """Hold what a kill left to what is promised; the events lost."""
    assert "Traceback" not in kill.err
    try:
        with TraceReader(trace) as opened:
            count, ended = opened.count(), opened.recording["ended"]
            failing = {finding.check.name: finding.cases for finding in verify(opened) if finding.failures}
            losses = sum(row["count"] for row in opened.rows("loss"))
    except TraceError as error:
        # Killed before it could even say what it was going to record.
        assert victim == "shadowtrace"
        assert "does not say what was recorded" in str(error)
        assert kill.captured == 0
        return 0
    text = reported(trace, cli)
    lost = kill.captured - count
    if ended == "events":
        # It was over before the kill, perhaps all but the recorder's last words, or gdb is what was killed.
        assert (failing, losses) == ({}, 0)
        assert kill.status == 0 or (victim == "shadowtrace" and kill.status == -signal.SIGKILL)
        return 0
    if victim == "shadowtrace":
        assert (kill.status, ended) == (-signal.SIGKILL, None)
        assert set(failing) <= {"sealed"}, failing
        assert text is None or "NOT SEALED: the recorder was killed" in text
        assert 0 <= lost <= MOST_LOST
        return lost
    assert victim == "qemu-system-x86"
    assert (kill.status, ended) == (1, "crash")
    # What QEMU took with it is missing in the tables that its memory, which outlives it, shows: verify names them.
    assert set(failing) <= {"end-state", "memory-checks"}, failing
    assert losses == lost
    if text is not None:
        assert "crash: QEMU died with status -9" in text
        assert (f"LOST {lost:,} events" in text) == (lost > 0)
    return lost


def reported(trace: Path, cli: Cli | None) -> str | None:
    if cli is None:
        return None
    report = cli("report", trace)
    assert report.returncode == 0, report.stderr
    return report.stdout


def kill_many(victim: str, times: int, folder: Path, cli: Cli) -> None:
    chance = random.Random(f"{victim} {times}")
    losses, goes_on = [], 0
    for number in range(times):
        trace = folder / f"{number}.db"
        kill = killed(victim, chance.uniform(0, SPAN), trace)
        losses.append(held(victim, kill, trace, cli if number % REPORTED == 0 else None))
        if victim == "gdb":
            goes_on += "gdb was lost" in kill.out or "gdb was killed before" in kill.out
        for part in folder.glob(f"{number}.db*"):
            part.unlink()
        went_on = {"went_on": goes_on} if victim == "gdb" else {}
        note(f"kill {victim}", moments=number + 1, lost_most=max(losses), lost_median=int(statistics.median(losses)), **went_on)
    assert victim != "gdb" or goes_on > 0


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_few_kills(victim: str, tmp_path: Path, cli: Cli) -> None:
    kill_many(victim, 3, tmp_path, cli)


@pytest.mark.faults
@pytest.mark.parametrize("victim", VICTIMS)
def test_many_kills(victim: str, tmp_path: Path, cli: Cli) -> None:
    kill_many(victim, MANY, tmp_path, cli)
