"""How fast events get from the plugin's pipe into the committed file: events a second, and bytes an event in the sealed file.

The stream is one boot's, kept as the plugin wrote it, and is fed through a real pipe, over and over, to the recorder's own thread.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from bench.capture import kept_stream
from db.writer import TraceWriter
from tracer import guest
from tracer.ingest import Ingest
from tracer.plugin import RECORD
from x86.event import Kind

#: Events a second, at least; bytes an event, at most.
BAR, BYTES_BAR = 800_000, 24.0

_F_SETPIPE_SZ = 1031


def ingest(stream: Path, trace: Path) -> dict[str, float]:
    """Feed one stream through a pipe into a trace: events, seconds, CPU seconds of this process, bytes an event."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(read_end, _F_SETPIPE_SZ, 1 << 20)
    with TraceWriter(trace, force=True) as writer, os.fdopen(read_end, "rb", 0) as source, Path("/dev/null").open("rb") as nothing:
        writer.describe(source="record", guest="bench", title="a stream", vcpus=1, version="bench")
        reader = Ingest(writer, source, nothing)
        before = time.perf_counter(), _cpu()
        # Another process, as QEMU is one: its memory and its time are not ours.
        feeder = subprocess.Popen(["cat", stream], stdout=write_end)
        os.close(write_end)
        reader.start()
        feeder.wait()
        reader.finish()
        seconds, cpu = time.perf_counter() - before[0], _cpu() - before[1]
        if reader.failure is not None:
            raise reader.failure
        writer.seal("exit", "the stream ended")
        events = writer.events
    return {"events": events, "seconds": seconds, "cpu_seconds": cpu, "bytes_an_event": trace.stat().st_size / events}


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def repeat(stream: Path, times: int, longer: Path) -> None:
    """A longer stream: the same again and again, its events numbered on."""
    records = np.fromfile(stream, RECORD)
    main = records["kind"] <= Kind.INVLPG
    count = int(main.sum())
    with longer.open("wb") as out:
        for _ in range(times):
            out.write(records.tobytes())
            records["seq"][main] += np.uint32(count)


def main() -> int:
    """Measure and print; 3 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guest", default="cloud-amd64")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--times", type=int, default=1, help="how often the boot's stream is repeated")
    parser.add_argument("--once", nargs=2, type=Path, metavar=("STREAM", "TRACE"), help="feed this file into that trace, and no more")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.once:
        ingest(*given.once)
        return 0
    with tempfile.TemporaryDirectory() as name:
        stream, longer, trace = (Path(name) / part for part in ("stream", "longer", "ingest.db"))
        stream.write_bytes(kept_stream(guest.load(given.guest)))
        repeat(stream, given.times, longer)
        runs = [ingest(longer, trace) for _ in range(given.runs)]
    rate = statistics.median(run["events"] / run["seconds"] for run in runs)
    size = runs[-1]["bytes_an_event"]
    missed = rate < BAR or size > BYTES_BAR
    click.echo(f"{rate:,.0f} events/s (at least {BAR:,}), {size:.1f} bytes an event (at most {BYTES_BAR:g}){'  MISSED' if missed else ''}")
    if given.json:
        given.json.write_text(json.dumps({"events_a_second": rate, "bytes_an_event": size, "runs": runs}, indent=1) + "\n")
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
