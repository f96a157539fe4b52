"""What each step costs as a process of its own, on a boot's trace and on a long one: CPU time and peak memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.measure import PROGRAM, Cost, cost
from db.columns import batches
from db.trace import TraceReader

#: Each step, and what it is.
STEPS = {
    "ingest": "ingest: from the plugin's pipe into the committed, sealed file",
    "load": "load: from the file into columns",
    "fast": "`replay` on the fast core",
    "reference": "`replay` on the readable core",
    "report": "`report` of the kept run",
}


def steps(path: Path, stream: Path, folder: Path) -> dict[str, dict[str, float]]:
    """The cost of every step for a trace; ``stream`` is what its plugin wrote. ``AssertionError`` where the cores differ."""
    result = {"ingest": _figures(cost(sys.executable, "-m", "bench.ingest", "--once", stream, folder / "ingested.db"))}
    result["load"] = _figures(cost(sys.executable, "-m", "bench.steps", path))
    told: list[Any] = []
    for core in ("reference", "fast"):
        run = cost(PROGRAM, "replay", path, "--core", core, "--format", "json")
        result[core] = _figures(run)
        told.append(json.loads(run.output))
    if told[0] != told[1]:
        raise AssertionError("the cores differ")
    cost(PROGRAM, "report", path)
    result["report"] = _figures(cost(PROGRAM, "report", path))
    return result


def _figures(run: Cost) -> dict[str, float]:
    return {"cpu_s": round(run.cpu, 2), "wall_s": round(run.wall, 2), "peak_mib": round(run.peak_mib)}


def main() -> None:
    """Load a trace's columns, batch by batch."""
    with TraceReader(Path(sys.argv[1])) as trace:
        for _ in batches(trace):
            pass


if __name__ == "__main__":
    main()
