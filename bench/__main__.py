"""Measure, print a table, write JSON and docs/performance.md: ``python -m bench [TRACE]``. Without a trace one is recorded."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import page, reading, replays
from bench.ingest import repeat
from bench.measure import PROGRAM, cost, lengthen
from bench.recording import captures, recording, stream_of_a_boot
from bench.steps import steps
from db.trace import TraceReader

_LONG = 20_000_000


def main() -> None:
    """Measure everything that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path, help="a trace of a real boot; recorded where it is left out")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file to write", default=Path("docs/performance.json"))
    parser.add_argument("--long", type=int, default=_LONG, help="events of the long trace")
    parser.add_argument("--only", choices=["replays", "recording", "capture"], help="leave out the rest, and keep its numbers")
    parser.add_argument("--boots", type=int, default=5, help="boots of each kind that are measured")
    chosen = parser.parse_args()
    result = json.loads(chosen.output.read_text()) if chosen.only and chosen.output.exists() else {}
    result |= {"machine": machine(), "when": datetime.now(UTC).strftime("%Y-%m-%d")}
    with tempfile.TemporaryDirectory(prefix="shadowtrace-bench-") as name:
        folder = Path(name)
        if chosen.only in (None, "replays"):
            result |= measure_replays(chosen.trace or record(folder), folder, chosen.long)
        if chosen.only in (None, "recording"):
            result |= recording(folder, chosen.boots)
        if chosen.only == "capture":
            result |= captures(chosen.boots)
    chosen.output.write_text(json.dumps(result, indent=1) + "\n")
    chosen.output.with_suffix(".md").write_text(page.page(result))
    print(page.table(result))  # noqa: T201 - it is what the script is for


def machine() -> str:
    """The processor, how many of it, and what runs on it."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0] if names else platform.machine()}, Python {platform.python_version()}"


def record(folder: Path) -> Path:
    """A boot of Debian's cloud kernel."""
    cost(PROGRAM, "record", "cloud-amd64", "-o", folder / "boot.db")
    return folder / "boot.db"


def measure_replays(source: Path, folder: Path, long: int) -> dict[str, Any]:
    """Everything about traces that are there."""
    path = folder / "trace.db"
    events = lengthen(source, path, 1)
    lengthen(source, folder / "tiny.db", 1)
    with TraceReader(path) as trace:
        guest = trace.recording["guest"]
    result: dict[str, Any] = {"guest": guest, "events": events}
    result |= replays.cores(path)
    result |= reading.ways(path, events)
    result |= replays.commands(path, events, folder)
    result |= replays.compiling(folder)
    stream = stream_of_a_boot(folder)
    result["steps"] = steps(path, stream, folder)
    result["long_events"] = lengthen(source, folder / "long.db", long)
    repeat(stream, -(-long // events), folder / "long-stream")
    result["long_steps"] = steps(folder / "long.db", folder / "long-stream", folder)
    result["long_replay_peak_mib"] = result["long_steps"]["fast"]["peak_mib"]
    return result


if __name__ == "__main__":
    main()
