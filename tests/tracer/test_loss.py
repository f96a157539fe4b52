"""A recorder that is too slow: the guest waits, or what is dropped is counted, to the last event."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from db.check.verify import verify
from db.errors import TraceError
from db.trace import TraceReader
from tests.tracer.metal import arguments
from tracer import gdb, plugin, qemu
from tracer.plugin import ControlPage, Gap, StreamParser
from tracer.qemu import Capture, Machine

pytestmark = pytest.mark.boot


def read_slowly(folder: Path, capture: Capture) -> tuple[ControlPage, int, list[Gap]]:
    """A guest that stores a million times, and a reader that takes a tenth of a pipe at a time, and a rest after each."""
    parser = StreamParser()
    events, gaps = 0, []
    with Machine(qemu.find_qemu(None), arguments("storm", folder, "-m", "16M"), capture, plugin.build()) as machine:
        with gdb.Session(machine.gdb_socket) as session:
            session.resume()
            while True:
                ready, _, _ = select.select([machine.stream], [], [], 30)
                data = os.read(machine.stream.fileno(), 100_000) if ready else b""
                if not data:
                    break
                batch = parser.feed(data)
                events += len(batch.columns[0])
                gaps += batch.gaps
                time.sleep(0.005)
        control = machine.control()
        gaps += parser.gap_at_end(control.by_vcpu)
    return control, events, gaps


def test_the_guest_waits_for_a_slow_recorder(tmp_path: Path) -> None:
    control, events, gaps = read_slowly(tmp_path, Capture(touch_entries=0))
    assert control.events > 200_000
    assert (control.dropped, gaps) == (0, [])
    assert events == control.events == sum(control.by_vcpu)


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    control, events, gaps = read_slowly(tmp_path, Capture(touch_entries=0, drop_when_behind=True))
    assert control.closed
    assert control.dropped > 1000
    assert sum(gap.missing for gap in gaps) == control.dropped
    assert events + control.dropped == control.events == control.by_vcpu[0]
    ends = [0, *(gap.first + gap.missing for gap in gaps)]
    assert all(gap.first >= end for gap, end in zip(gaps, ends, strict=False))


def test_a_recorder_that_is_held_up(tmp_path: Path) -> None:
    """SIGSTOP makes it late, in the middle of a boot. Each gap stands in the trace, and --strict-loss makes it a failure."""
    trace = tmp_path / "late.db"
    program = Path(sys.executable).with_name("shadowtrace")
    command = [program, "record", "cloud-amd64", "-o", trace, "--drop-when-behind", "--strict-loss", "--events", "900000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not _has_events(trace, 100_000):
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 3, said
    with TraceReader(trace) as opened:
        losses = opened.rows("loss")
        events = opened.count()
        assert opened.recording["ended"] == "events"
        assert opened.recording["lost"] == sum(row["count"] for row in losses) > 1000
        findings = {finding.check.name: finding for finding in verify(opened)}
    assert not findings["losses"].failures
    assert [row["last"] - row["first"] + 1 for row in losses] == [row["count"] for row in losses]
    # The vCPU's own numbers go on over file and gaps alike: what is before a gap is what is in the file and in earlier gaps.
    before = 0
    for row in losses:
        assert row["first"] == row["seq"] + before
        before += row["count"]
    assert losses[-1]["last"] < events + before
    assert {row["cause"] for row in losses} == {"the recorder was behind, and events were dropped"}
    report = subprocess.run([program, "report", trace, "--format", "json"], capture_output=True, text=True, check=True)
    assert json.loads(report.stdout)["trace"]["lost"] == before


def _has_events(trace: Path, many: int) -> bool:
    try:
        with TraceReader(trace, live=True) as opened:
            return opened.count() >= many
    except TraceError:
        return False
