"""Run a command and say what it cost; make a long trace of a real one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("shadowtrace")

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
    start = time.perf_counter()
    child = subprocess.Popen([str(argument) for argument in arguments], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, output)


def costs(times: int, *arguments: str | Path) -> Cost:
    """Medians of running a command several times."""
    runs = [cost(*arguments) for _ in range(times)]
    middle = [statistics.median(getattr(run, name) for run in runs) for name in ("wall", "cpu", "peak_mib")]
    return Cost(*middle, runs[-1].output)


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
