"""Run a command and say what it cost; make a long trace of a real one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("shadowtrace")
_WAITER = Path(__file__).with_name("waiter.py")

#: Python keeps the modules it compiles, as an installation does that compiles all of them at once.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

_SIDES = ("mode_registers", "pdptes", "content", "store_origin")


@dataclass(frozen=True)
class Cost:
    """What a process cost: seconds on the clock and of CPU, the most memory it held, what it printed."""

    wall: float
    cpu: float
    peak_mib: float
    output: str


def cost(*arguments: str | Path) -> Cost:
    """Run a command to its end; ``CalledProcessError`` where it fails."""
    figures, write_end = os.pipe()
    command = [sys.executable, "-S", "-E", str(_WAITER), str(write_end), *map(str, arguments)]
    with os.fdopen(figures) as told:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, pass_fds=(write_end,), check=True, env=_ENVIRONMENT)
        os.close(write_end)
        wall, cpu, peak_kib = map(float, told.read().split())
    return Cost(wall, cpu, peak_kib / 1024, done.stdout)


def costs(times: int, *arguments: str | Path, before: Callable[[], None] = lambda: None) -> Cost:
    """Medians of running a command several times, each time after ``before``, which does not count."""
    runs = []
    for _ in range(times):
        before()
        runs.append(cost(*arguments))
    wall, cpu, peak = (statistics.median(getattr(run, name) for run in runs) for name in ("wall", "cpu", "peak_mib"))
    return Cost(wall, cpu, peak, runs[-1].output)


def lengthen(source: Path, target: Path, events: int) -> int:
    """Repeat a trace until it has ``events`` at least; how many it has."""
    shutil.copyfile(source, target)
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("DELETE FROM run")
        (once,) = connection.execute("SELECT max(seq) FROM event").fetchone()
        times = -(-events // once)
        for i in range(1, times):
            for table in ("event", *_SIDES):
                names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                others = "".join(f", {name}" for name in names[1:])
                query = f"INSERT INTO {table} SELECT seq + ?{others} FROM {table} WHERE seq <= ? ORDER BY seq"  # noqa: S608 - constants
                connection.execute(query, (i * once, once))
        connection.execute("UPDATE recording SET events = ?", (times * once,))
        connection.commit()
    return int(times * once)


def shorten(source: Path, target: Path, events: int) -> int:
    """The first ``events`` of a trace, or all; how many it has."""
    shutil.copyfile(source, target)
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("DELETE FROM run")
        for table in ("event", *_SIDES, "mark"):
            connection.execute(f"DELETE FROM {table} WHERE seq > ?", (events,))  # noqa: S608 - constants
        (left,) = connection.execute("SELECT max(seq) FROM event").fetchone()
        connection.execute("UPDATE recording SET events = ?", (left,))
        connection.commit()
        connection.execute("VACUUM")
    return int(left)
