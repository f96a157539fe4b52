"""Ways to get the event table out of a trace file into arrays, against each other."""

from __future__ import annotations

import itertools
import sqlite3
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sqlalchemy import create_engine, text

from db.columns import event_rows
from db.trace import TraceReader

_QUERY = "SELECT seq, kind, vcpu, flags, addr, value FROM event ORDER BY seq"
_BATCH = 65536


def _pages(path: Path) -> int:
    with TraceReader(path) as trace:
        return sum(rows.shape[1] for rows in event_rows(trace))


def _sqlite3_rows(path: Path) -> int:
    cursor, count = sqlite3.connect(path).execute(_QUERY), 0
    while rows := cursor.fetchmany(_BATCH):
        count += len(np.array(rows, np.int64))
    return count


def _sqlite3_flat(path: Path) -> int:
    cursor, count = sqlite3.connect(path).execute(_QUERY), 0
    while rows := cursor.fetchmany(_BATCH):
        count += len(np.fromiter(itertools.chain.from_iterable(rows), np.int64, 6 * len(rows))) // 6
    return count


def _sqlite3_text(path: Path) -> int:
    connection, count = sqlite3.connect(path), 0
    (last,) = connection.execute("SELECT max(seq) FROM event").fetchone()
    query = "SELECT group_concat(seq||','||kind||','||vcpu||','||flags||','||addr||','||value) FROM event WHERE seq > ? AND seq <= ?"
    for first in range(0, last, _BATCH):
        (joined,) = connection.execute(query, (first, first + _BATCH)).fetchone()
        count += len(np.fromstring(joined, np.int64, sep=",")) // 6
    return count


def _sqlalchemy(path: Path) -> int:
    count = 0
    with create_engine(f"sqlite:///{path}").connect() as connection:
        for rows in connection.execute(text(_QUERY)).yield_per(_BATCH).partitions():
            count += len(np.fromiter(itertools.chain.from_iterable(rows), np.int64, 6 * len(rows))) // 6
    return count


def _adbc(path: Path) -> int:
    import adbc_driver_sqlite.dbapi as adbc

    count = 0
    with adbc.connect(str(path)) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(_BATCH)})
        cursor.execute(_QUERY)
        for batch in cursor.fetch_record_batch():
            arrays = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
            count += len(arrays[0])
    return count


WAYS: dict[str, Callable[[Path], int]] = {
    "pages": _pages,
    "sqlite3_rows": _sqlite3_rows,
    "sqlite3_flat": _sqlite3_flat,
    "sqlite3_text": _sqlite3_text,
    "sqlalchemy": _sqlalchemy,
    "adbc": _adbc,
}


def ways(path: Path, events: int) -> dict[str, float]:
    """Nanoseconds of CPU time an event, each way; the median of 3, interleaved. What is not installed is left out."""
    spent: dict[str, list[float]] = {}
    for _ in range(3):
        for name, way in WAYS.items():
            start = time.process_time()
            try:
                if way(path) != events:
                    raise AssertionError(f"{name} lost events")
            except ImportError:
                continue
            spent.setdefault(name, []).append(time.process_time() - start)
    return {f"read_{name}_ns": 1e9 * statistics.median(times) / events for name, times in spent.items()}
