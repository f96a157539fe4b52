"""What replaying costs, on both cores, from a loaded trace and from a cold file; sweeps, packs, start-up."""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path

from analyzer.facts.collect import facts
from analyzer.model.kernel import Kernel
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from analyzer.model.parameters import Parameters, parameters
from analyzer.replay import feed, replay
from bench.measure import PROGRAM, Cost, cost, costs, shorten
from db.columns import batches
from db.trace import TraceReader

_TIMES = 3
_COLD_EVENTS = 1_600_000


def cores(path: Path) -> dict[str, float]:
    """Events a second of both cores on a loaded trace, of loading it, of drawing the facts; CPU time, medians."""
    model = parameters("kvm-2.6.20")
    loads, runs, tellings = [], [], []
    with TraceReader(path) as trace:
        for _ in range(_TIMES + 1):
            start = time.process_time()
            columns = list(batches(trace))
            loads.append(time.process_time() - start)
            kernel = Kernel(model, trace.recording["vcpus"])
            start = time.process_time()
            for batch in columns:
                kernel.feed(batch)
            runs.append(time.process_time() - start)
            end = kernel.outcome()
            start = time.process_time()
            facts(end)
            tellings.append(time.process_time() - start)
        start = time.process_time()
        slow = outcome(replay(trace, model))
        reference = time.process_time() - start
        loaded = reference_loaded(trace, model)
    if slow.journal.rows.tobytes() != end.journal.rows.tobytes():
        raise AssertionError("the cores differ")
    # The first round also loads what is compiled.
    load, run, telling = (statistics.median(times[1:]) for times in (loads, runs, tellings))
    events = end.counters.events_total
    return {
        "load_events_per_s": events / load,
        "fast_events_per_s": events / run,
        "reference_events_per_s": events / reference,
        "fast_over_reference": loaded / run,
        "fast_over_file": reference / run,
        "facts_s": telling,
    }


def reference_loaded(trace: TraceReader, model: Parameters) -> float:
    """CPU time of the readable core on events that are in memory, as the fast core is given its columns."""
    events = list(trace.events())
    # Millions of tuples that stay are looked through by the collector again and again, which is no work of the core's.
    gc.freeze()
    mmu = Mmu(model, trace.recording["vcpus"])
    start = time.process_time()
    for event in events:
        feed(mmu, event)
    taken = time.process_time() - start
    gc.unfreeze()
    return taken


def commands(path: Path, events: int, folder: Path) -> dict[str, float]:
    """Whole processes: a replay from a cold file, a report of a kept run, a sweep of 16, start-up; packed size."""
    cold_events, cold = cold_replay(path, folder / "cold.db")
    warm = costs(_TIMES, PROGRAM, "replay", path)
    report = costs(_TIMES, PROGRAM, "report", path)
    swept = folder / "bench.sweep.jsonl"
    sweep = cost(PROGRAM, "sweep", path, "--pages", "32..4096", "--flood", "3,10", "-o", swept, "--format", "json")
    if len(json.loads(sweep.output)) != 16:
        raise AssertionError("the sweep is not of 16")
    packed = folder / "bench.pack"
    pack = cost(PROGRAM, "pack", path, "-o", packed, "--force")
    startup = costs(2 * _TIMES + 1, PROGRAM, "--help")
    return {
        "replay_cold_events": cold_events,
        "replay_cold_wall_s": cold.wall,
        "replay_cold_cpu_s": cold.cpu,
        "replay_warm_wall_s": warm.wall,
        "replay_warm_cpu_s": warm.cpu,
        "report_wall_s": report.wall,
        "report_cpu_s": report.cpu,
        "sweep_16_wall_s": sweep.wall,
        "sweep_16_cpu_s": sweep.cpu,
        "sweep_16_over_replay_wall": sweep.wall / warm.wall,
        "sweep_16_over_replay_cpu": sweep.cpu / warm.cpu,
        "pack_cpu_s": pack.cpu,
        "help_wall_s": startup.wall,
        "help_cpu_s": startup.cpu,
        "file_bytes_per_event": path.stat().st_size / events,
        "pack_bytes_per_event": packed.stat().st_size / events,
    }


def cold_replay(source: Path, path: Path) -> tuple[int, Cost]:
    """Replays of as many events as the bar is meant for, each of a file that has to be read from the disk: how many, medians."""
    events = shorten(source, path, _COLD_EVENTS)
    return events, costs(_TIMES, PROGRAM, "replay", path, before=lambda: _drop_from_cache(path))


def compiling(folder: Path) -> dict[str, float]:
    """What the first use costs: with an empty cache of compiled code."""
    program = "import sys; from pathlib import Path; from bench.replays import first_use; first_use(Path(sys.argv[1]))"
    run = cost("env", f"NUMBA_CACHE_DIR={folder / 'compiled'}", sys.executable, "-c", program, folder / "tiny.db")
    return {"first_use_cpu_s": run.cpu, "first_use_wall_s": run.wall}


def first_use(path: Path) -> None:
    """Replay a trace on the fast core, whatever comes out."""
    with TraceReader(path) as trace:
        kernel = Kernel(parameters("kvm-2.6.20"), trace.recording["vcpus"])
        for batch in batches(trace):
            kernel.feed(batch)


def _drop_from_cache(path: Path) -> None:
    """Ask the system to forget the file's pages: the next to read it reads the disk."""
    import os

    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
