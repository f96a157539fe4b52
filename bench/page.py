"""docs/performance.md, from the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.steps import STEPS

#: Key in the JSON, what it is, how it is shown, the bar: at least (>) or at most (<).
ROWS = (
    ("capture_cloud-amd64_tables", "recording cloud-amd64, page tables only, over plain TCG, CPU time", "{:.2f} x", "<", 1.15),
    ("capture_cloud-amd64_first", "the same with first touches", "{:.2f} x", "<", 1.5),
    ("capture_686_tables", "recording 686, page tables only", "{:.2f} x", "<", 1.15),
    ("capture_686_first", "the same with first touches", "{:.2f} x", "<", 1.5),
    (
        "capture_gdb",
        "recording cloud-amd64 by gdb alone (`--engine gdb`), whole process tree, over plain TCG, CPU time, once",
        "{:.1f} x",
        "",
        0,
    ),
    ("ingest_events_per_s", "ingest, from the plugin's pipe into the committed file", "{:,.0f} events/s", ">", 0.8e6),
    ("fast_events_per_s", "replay, fast core, loaded trace", "{:,.0f} events/s", ">", 10e6),
    ("fast_over_reference", "the same over the readable core on events that are objects in memory", "{:.0f} x", ">", 50),
    ("fast_over_file", "the same over the readable core as it replays: from the file", "{:.0f} x", "", 0),
    ("reference_events_per_s", "replay, readable core, from the file", "{:,.0f} events/s", "", 0),
    ("load_events_per_s", "load: from the file into columns", "{:,.0f} events/s", "", 0),
    ("facts_s", "drawing the facts from a replay", "{:.2f} s", "", 0),
    ("replay_cold_wall_s", "`replay` of {replay_cold_events:,} events, file not in memory, whole process, clock", "{:.2f} s", "<", 2),
    ("replay_cold_cpu_s", "the same, CPU time", "{:.2f} s", "", 0),
    ("replay_warm_wall_s", "`replay` of the whole trace, file in memory, clock", "{:.2f} s", "", 0),
    ("replay_warm_cpu_s", "the same, CPU time", "{:.2f} s", "", 0),
    ("report_cpu_s", "`report` of a kept run, CPU time", "{:.2f} s", "", 0),
    ("sweep_16_over_replay_cpu", "`sweep` of 16 over one `replay`, CPU time", "{:.1f} x", "<", 8),
    ("sweep_16_over_replay_wall", "the same, clock", "{:.1f} x", "<", 8),
    ("long_replay_peak_mib", "peak memory, `replay` of the long trace, fast core", "{:,.0f} MiB", "<", 1024),
    ("file_bytes_per_event", "file, bytes an event", "{:.1f}", "<", 24),
    ("pack_bytes_per_event", "`pack`, bytes an event", "{:.2f}", "<", 4),
    ("pack_cpu_s", "`pack`, CPU time", "{:.1f} s", "", 0),
    ("help_wall_s", "`shadowtrace --help`, clock", "{:.3f} s", "<", 0.15),
    ("help_cpu_s", "the same, CPU time", "{:.3f} s", "", 0),
    ("first_use_cpu_s", "first use after an installation: compiling, CPU time", "{:.0f} s", "", 0),
)

_READING = {
    "read_pages_ns": "the file's pages, compiled (`db/btree.py`)",
    "read_adbc_ns": "adbc-driver-sqlite, Arrow",
    "read_sqlite3_flat_ns": "sqlite3, `fetchmany`, flat into an array",
    "read_sqlite3_text_ns": "sqlite3, `group_concat`, parsed by numpy",
    "read_sqlite3_rows_ns": "sqlite3, `fetchmany`, `numpy.array` of rows",
    "read_sqlalchemy_ns": "SQLAlchemy Core",
}


def table(result: Mapping[str, Any]) -> str:
    """What was measured, and the bar where there is one."""
    lines = ["| what | measured | bar |", "| --- | ---: | --- |"]
    for key, what, form, sign, bar in ROWS:
        if key in result:
            wanted = "" if not sign else ("at least " if sign == ">" else "at most ") + form.format(bar)
            met = "" if not sign or (result[key] >= bar if sign == ">" else result[key] <= bar) else ", **missed**"
            lines.append(f"| {what.format(**result)} | {form.format(result[key])} | {wanted}{met} |")
    return "\n".join(lines)


def steps(result: Mapping[str, Any]) -> str:
    """CPU time, events for each second of it and peak memory of every step, on the boot's trace and on the long one."""
    lines = ["| step | boot: CPU | events/s | peak memory | long: CPU | events/s | peak memory |", "| --- |" + " ---: |" * 6]
    for step, what in STEPS.items():
        cells = [what]
        for key, events in (("steps", "events"), ("long_steps", "long_events")):
            figures = result[key][step]
            cells += [f"{figures['cpu_s']:.1f} s", f"{result[events] / figures['cpu_s']:,.0f}", f"{figures['peak_mib']:,} MiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    reading = "\n".join(f"| {what} | {result[key]:.0f} |" for key, what in _READING.items() if key in result)
    head = (Path(__file__).with_name("performance.head.md")).read_text()
    return (
        head.replace("{machine}", str(result["machine"]))
        .replace("{when}", str(result["when"]))
        .replace("{guest}", str(result.get("guest", "")))
        .replace("{events}", f"{result.get('events', 0):,}")
        .replace("{long}", f"{result.get('long_events', 0):,}")
        .replace("{table}", table(result))
        .replace("{steps}", steps(result) if "long_steps" in result else "")
        .replace("{reading}", reading)
    )
