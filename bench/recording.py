"""What recording costs: the measures of ``bench.capture`` and ``bench.ingest`` as rows of the page."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench import capture, ingest
from tracer import guest


def recording(folder: Path, boots: int) -> dict[str, float]:
    """CPU time of traced boots over plain TCG, and events a second from the plugin's pipe into the committed file."""
    result = {}
    for name in ("cloud-amd64", "686"):
        ratios = capture.measure(name, boots)["ratios"]
        assert isinstance(ratios, dict)
        result |= {f"capture_{name}_{variant}": ratio for variant, ratio in ratios.items()}
    stream = capture.kept_stream(guest.load("cloud-amd64"))
    runs = [ingest.ingest(stream, folder / "ingest.db") for _ in range(boots)]
    result["ingest_events_per_s"] = statistics.median(run["events"] / run["seconds"] for run in runs)
    return result
