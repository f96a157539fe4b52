"""How fast events get from the plugin's pipe into the committed file: events a second, and bytes an event in the sealed file.

The stream is one boot's, kept as the plugin wrote it, and is fed through a real pipe, over and over, to the recorder's own thread.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np

from bench.capture import kept_stream
from db.event import Kind
from db.writer import TraceWriter
from tracer import guest
from tracer.ingest import Ingest
from tracer.plugin import RECORD

#: Events a second, at least; bytes an event, at most.
BAR, BYTES_BAR = 800_000, 24.0

_F_SETPIPE_SZ = 1031


def ingest(stream: bytes, trace: Path) -> dict[str, float]:
    """Feed one stream through a pipe into a trace: events, seconds, CPU seconds of this process, bytes an event."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(read_end, _F_SETPIPE_SZ, 1 << 20)
    feeder = threading.Thread(target=_feed, args=(write_end, stream), daemon=True)
    with TraceWriter(trace, force=True) as writer, os.fdopen(read_end, "rb", 0) as source, Path("/dev/null").open("rb") as nothing:
        writer.describe(source="record", guest="bench", title="a stream", vcpus=1, version="bench")
        reader = Ingest(writer, source, nothing)
        before = time.perf_counter(), _cpu()
        feeder.start()
        reader.start()
        feeder.join()
        reader.finish()
        seconds, cpu = time.perf_counter() - before[0], _cpu() - before[1]
        if reader.failure is not None:
            raise reader.failure
        writer.seal("exit", "the stream ended")
        events = writer.events
    return {"events": events, "seconds": seconds, "cpu_seconds": cpu, "bytes_an_event": trace.stat().st_size / events}


def _feed(descriptor: int, stream: bytes) -> None:
    with io.FileIO(descriptor, "w") as pipe:
        view = memoryview(stream)
        while view:
            view = view[pipe.write(view) or 0 :]


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def repeated(stream: bytes, times: int) -> bytes:
    """A longer stream: the same again and again, its events numbered on."""
    records = np.frombuffer(stream, RECORD)
    main = records["kind"] <= Kind.INVLPG
    count = int(main.sum())
    copies = []
    for number in range(times):
        copy = records.copy()
        copy["seq"][main] += np.uint32(number * count)
        copies.append(copy.tobytes())
    return b"".join(copies)


def main() -> int:
    """Measure and print; 3 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guest", default="cloud-amd64")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--times", type=int, default=1, help="how often the boot's stream is repeated")
    parser.add_argument("--stream", type=Path, help="a file with a stream, instead of booting the guest for one")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    stream = given.stream.read_bytes() if given.stream else kept_stream(guest.load(given.guest))
    stream = repeated(stream, given.times)
    with tempfile.TemporaryDirectory() as folder:
        runs = [ingest(stream, Path(folder) / "ingest.db") for _ in range(given.runs)]
    rate = statistics.median(run["events"] / run["seconds"] for run in runs)
    size = runs[-1]["bytes_an_event"]
    missed = rate < BAR or size > BYTES_BAR
    click.echo(f"{rate:,.0f} events/s (at least {BAR:,}), {size:.1f} bytes an event (at most {BYTES_BAR:g}){'  MISSED' if missed else ''}")
    if given.json:
        given.json.write_text(json.dumps({"events_a_second": rate, "bytes_an_event": size, "runs": runs}, indent=1) + "\n")
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
