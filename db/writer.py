"""Creating, filling and sealing a trace file."""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, insert, select, update
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.event import listen
from sqlalchemy.pool import NullPool

from db import models
from db.errors import StorageError
from db.file.guarded import SQLITE_ERRORS, Open, connect
from db.file.locking import Reserve, check_place, clear, lock, refuse_existing, storage_errors
from db.file.migration import create_tables
from db.schema import SCHEMA_VERSION
from db.trace import Row
from x86.event import CR3_HAS_PDPTES, Event, Kind, signed

_LOG = logging.getLogger(__name__)

#: Rows that one statement inserts where they are many: a statement costs as much as several rows, and more than this gain nothing.
_MANY = 50

#: The tables that a batch goes into: the columns of each, and the rows that one statement inserts.
_BATCH_TABLES = (
    (models.event.name, 6, _MANY),
    (models.mode_registers.name, 4, 1),
    (models.pdptes.name, 5, 1),
    (models.content.name, 2, 1),
    (models.store_origin.name, 2, _MANY),
)

#: The write-ahead log is folded into the file when it has so many pages, of so many bytes.
_LOG_PAGES, _LEAST_LOG_PAGES, _PAGE = 1000, 16, 4096

#: Half of the reserve below this: the disk is small, and batches are committed in pieces. About what a row takes.
_SMALL_DISK, _ROW_BYTES = 4 << 20, 40


class TraceWriter(Open):
    """A trace being written: a context manager. Batches are committed as they come; ``seal`` makes it one finished file.

    ``sync`` is SQLite's ``synchronous``: with ``normal`` a power cut may take the last commits, with ``full`` it takes none; the file
    is whole either way. ``alone``: nobody is to read it before it is sealed; then SQLite shares no memory in a file with readers, which
    at a full quota of btrfs could end the process with SIGBUS. Raises ``UsageError`` where the file exists (unless ``force``),
    ``StorageError`` where it cannot be written, or is no longer there.
    """

    def __init__(self, path: Path, force: bool = False, sync: str = "normal", alone: bool = False) -> None:
        self.path = path
        self.events = 0
        self._two_files = False
        refuse_existing(path, force)
        check_place(path.parent)
        clear(path)
        self._lock = lock(path)
        try:
            with storage_errors(path):
                self._raw = connect(path, "rwc")
                engine = create_engine("sqlite://", creator=lambda: self._raw, poolclass=NullPool)
                listen(engine, "handle_error", _as_sqlite_says)
                self._connection = engine.connect()
                if alone:
                    self._connection.exec_driver_sql("PRAGMA locking_mode = EXCLUSIVE")
                self._create(sync)
        except BaseException:
            os.close(self._lock)
            clear(path)
            raise

    def _create(self, sync: str) -> None:
        connection = self._connection
        create_tables(self._raw)
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if sync == 'full' else 'NORMAL'}")
        # The log and its index take their places in the folder at the first change: now, not once there are events to lose.
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.commit()
        self._reserve = Reserve(self.path.parent)
        # Folded so often that what is not yet folded when a disk is full finds its place in the reserve.
        connection.exec_driver_sql(
            f"PRAGMA wal_autocheckpoint = {max(_LEAST_LOG_PAGES, min(_LOG_PAGES, self._reserve.size // _PAGE // 4))}"
        )

    def close(self) -> None:
        """Let go of the file. What was committed stays."""
        self._connection.close()
        self._reserve.release()
        wal = self.path.with_name(self.path.name + "-wal")
        if self._two_files and wal.exists() and wal.stat().st_size:
            _LOG.warning("%s is sealed, but its last events are still in %s: keep the two together", self.path, wal.name)
        # Last: closing any descriptor of the file would drop the locks that SQLite holds in this process.
        os.close(self._lock)

    def check_there(self) -> None:
        """Raise ``StorageError`` where the file is no longer what its name names: SQLite would write on into nothing."""
        ours = os.fstat(self._lock)
        try:
            named = self.path.stat()
        except OSError as error:
            raise StorageError(
                f"{self.path} is gone: it was moved or deleted while it was written", f"if it was moved, move {self.path.name}-wal along"
            ) from error
        if (named.st_ino, named.st_dev) != (ours.st_ino, ours.st_dev):
            raise StorageError(f"{self.path} was replaced by another file while it was written", "record it again")

    def make_room(self) -> None:
        """Give up what could not be committed and the room that was kept for sealing: to be called once the file takes no more."""
        self._reserve.release()
        with storage_errors(self.path):
            self._connection.rollback()

    def describe(self, **columns: Any) -> None:
        """Write or change the one row that says what was recorded."""
        with storage_errors(self.path):
            connection = self._connection
            if connection.scalar(select(func.count()).select_from(models.recording)):
                connection.execute(update(models.recording).values(**columns))
            else:
                connection.execute(insert(models.recording).values(id=1, **columns))
            connection.commit()

    def append(self, events: Iterable[Event]) -> None:
        """Commit a batch of events; their seq follows what is there."""
        rows: list[Row] = []
        extras: dict[int, list[tuple[Any, ...]]] = {Kind.REGS: [], Kind.CR3: [], Kind.PAGE: []}
        for seq, event in enumerate(events, self.events + 1):
            flags = event.flags
            if event.extra is not None:
                if isinstance(event.extra, bytes):
                    extras[Kind.PAGE].append((seq, event.extra))
                else:
                    values = (None if number is None else signed(number) for number in event.extra)
                    extras[event.kind].append((seq, *values))
                    flags |= CR3_HAS_PDPTES if event.kind == Kind.CR3 else 0
            rows.append((seq, event.kind, event.vcpu, flags, signed(event.addr), signed(event.value)))
        self.append_rows(rows, extras[Kind.REGS], extras[Kind.CR3], extras[Kind.PAGE])

    def append_rows(
        self,
        rows: Iterable[Row],
        registers: Sequence[tuple[Any, ...]] = (),
        pdptes: Sequence[tuple[Any, ...]] = (),
        contents: Sequence[tuple[Any, ...]] = (),
        origins: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Commit a batch of event rows as the file holds them, with the rows that belong to some of them.

        Where the disk is small, in pieces: what the log holds has to find its place in the reserve.
        """
        self.check_there()
        most = self._reserve.size // 2
        whole = (rows, registers, pdptes, contents, origins)
        for piece in _pieces(most, list(rows), *whole[1:]) if 0 < most < _SMALL_DISK else (whole,):
            with storage_errors(self.path):
                self.events += self._append_piece(piece)

    def _append_piece(self, piece: Sequence[Iterable[tuple[Any, ...]]]) -> int:
        """Commit rows of all the tables of ``_BATCH_TABLES``; how many events were among them."""
        # SQLite's own cursor: it takes an iterator, so no row is an object for longer than it is bound.
        try:
            events, *_ = [_insert(self._raw, *table, rows) for table, rows in zip(_BATCH_TABLES, piece, strict=True)]
            self._raw.commit()
        except BaseException:
            self._raw.rollback()
            raise
        return events

    def add(self, table: str, **columns: Any) -> None:
        """Commit one row of ``mark``, ``address_space``, ``console``, ``loss`` or ``memory_check``."""
        self.add_all(table, [columns])

    def add_all(self, table: str, rows: Sequence[dict[str, Any]]) -> None:
        """Commit rows of such a table, each with the same columns, at once."""
        with storage_errors(self.path):
            self._connection.execute(insert(models.metadata.tables[table]), rows)
            self._connection.commit()

    def seal(self, ended: str, detail: str) -> None:
        """Say how it ended, count, and fold the write-ahead log into the one file."""
        self.make_room()
        self.check_there()
        with storage_errors(self.path):
            lost = self._connection.scalar(select(func.coalesce(func.sum(models.loss.c["count"]), 0)))
            self.describe(ended=ended, ended_detail=detail, events=self.events, lost=lost)
        try:
            self._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.commit()
            self._connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
        except SQLITE_ERRORS:
            # Somebody reads it just now, or there is no room. It is sealed all the same, though in two files.
            self._connection.rollback()
            self._two_files = True


def _as_sqlite_says(context: ExceptionContext) -> None:
    """Raise SQLite's own error instead of SQLAlchemy's: rows are inserted both ways, and fail in one."""
    if isinstance(context.original_exception, SQLITE_ERRORS):
        raise context.original_exception


def _insert(connection: sqlite3.Connection, table: str, width: int, many: int, rows: Iterable[tuple[Any, ...]]) -> int:
    """Insert rows of so many columns, so many a statement; how many there were."""
    row = f"({', '.join('?' * width)})"
    one = f"INSERT INTO {table} VALUES {row}"  # noqa: S608 - names of ours
    if many == 1:
        return max(connection.executemany(one, rows).rowcount, 0)
    values = itertools.chain.from_iterable(rows)
    rest: list[Any] = []

    def groups() -> Iterator[list[Any]]:
        nonlocal rest
        while len(rest := list(itertools.islice(values, width * many))) == width * many:
            yield rest

    whole = connection.executemany(f"{one}{f', {row}' * (many - 1)}", groups()).rowcount
    last = connection.executemany(one, [rest[at : at + width] for at in range(0, len(rest), width)]).rowcount
    return max(whole, 0) + max(last, 0)


def _pieces(most: int, rows: Sequence[Row], *sides: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Sequence[Any], ...]]:
    """A batch in pieces of about ``most`` bytes at the most: events, each with the rows that belong to it."""
    size_of = {side[0]: _ROW_BYTES + sum(len(value) for value in side[1:] if isinstance(value, bytes)) for rows in sides for side in rows}
    start, size = 0, 0
    for at, row in enumerate(rows, 1):
        size += _ROW_BYTES + size_of.get(row[0], 0)
        if size >= most or at == len(rows):
            first, last = rows[start][0], row[0]
            yield rows[start:at], *([side for side in of_kind if first <= side[0] <= last] for of_kind in sides)
            start, size = at, 0
