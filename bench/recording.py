"""What recording costs: the measures of ``bench.capture`` and ``bench.ingest`` as rows of the page."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench import capture, ingest
from bench.measure import PROGRAM, cost
from tracer import guest


def recording(folder: Path, boots: int) -> dict[str, float]:
    """CPU time of traced boots over plain TCG, and events a second from the plugin's pipe into the committed file."""
    result = captures(boots)
    whole = cost(PROGRAM, "record", "cloud-amd64", "--engine", "gdb", "-o", folder / "gdb.db")
    result["capture_gdb_cpu_s"] = whole.cpu
    result["capture_gdb"] = whole.cpu / result["capture_cloud-amd64_plain_cpu_s"]
    runs = [ingest.ingest(stream_of_a_boot(folder), folder / "ingest.db") for _ in range(boots)]
    result["ingest_events_per_s"] = statistics.median(run["events"] / run["seconds"] for run in runs)
    return result


def captures(boots: int) -> dict[str, float]:
    """The plugin's share of that alone: a few minutes, where gdb takes a quarter of an hour."""
    result: dict[str, float] = {}
    for name in ("cloud-amd64", "686"):
        measured = capture.measure(name, boots)
        result |= {f"capture_{name}_{variant}": ratio for variant, ratio in measured.ratios.items()}
        result[f"capture_{name}_plain_cpu_s"] = statistics.median(measured.cpu_seconds["plain"])
    return result


def stream_of_a_boot(folder: Path) -> Path:
    """A file with what the plugin writes during a boot; made once."""
    path = folder / "stream"
    if not path.exists():
        path.write_bytes(capture.kept_stream(guest.load("cloud-amd64")))
    return path
