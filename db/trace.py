"""Opening, creating, filling and sealing a trace file."""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import REAL, Connection, Integer, LargeBinary, Table, Text, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from db import models
from db.copies import PrivateCopy, check_old, create_tables, finished_copy, unfinished, upgraded_copy
from db.errors import StorageError, TraceError
from db.event import CR3_HAS_PDPTES, MAX_GPA, MAX_VCPUS, WRITE_SIZE, Event, Kind, is_content, signed, unsigned
from db.opening import SQLITE_ERRORS, Budget, check_schema, damage, engine, harden, identify, reading_engine, trace_error
from db.schema import SCHEMA_VERSION
from db.storage import Reserve, check_place, clear, is_being_written, lock, refuse_existing, storage_errors

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

_HAVE_EXTRA = (Kind.REGS, Kind.PAGE)

#: The write-ahead log is folded into the file when it has so many pages, of so many bytes.
_LOG_PAGES, _LEAST_LOG_PAGES, _PAGE = 1000, 16, 4096

#: Half of the reserve below this: the disk is small, and batches are committed in pieces. About what a row takes.
_SMALL_DISK, _ROW_BYTES = 4 << 20, 40

#: The ``flags`` column, and with it kind and vCPU, stays below this.
MOST_FLAGS = (1 << 16) - 1

_PYTHON_TYPES: dict[type, tuple[type, ...]] = {Integer: (int,), Text: (str,), LargeBinary: (bytes,), REAL: (float, int)}

#: Rows that a streamed query fetches at once.
_STREAMED = 8192

#: An event row as the file holds it: seq, kind, vcpu, flags, addr, value; addr and value signed.
Row = tuple[int, int, int, int, int, int]


class _OpenTrace:
    """A trace's file while it is open, to write or to read: a context manager."""

    _connection: Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        engine = self._connection.engine
        self._connection.close()
        engine.dispose()


class TraceWriter(_OpenTrace):
    """A trace being written. Batches are committed as they come; ``seal`` makes it one finished file.

    ``sync`` is SQLite's ``synchronous``: with ``normal`` a power cut may take the last commits, with ``full`` it takes none; the file
    is whole either way. Raises ``UsageError`` where the file exists (unless ``force``), ``StorageError`` where it cannot be written,
    or is no longer there.
    """

    def __init__(self, path: Path, force: bool = False, sync: str = "normal") -> None:
        self.path = path
        self.events = 0
        self._two_files = False
        refuse_existing(path, force)
        check_place(path.parent)
        clear(path)
        self._lock = lock(path)
        try:
            with storage_errors(path):
                self._connection = engine(path, "rwc").connect()
                self._create(sync)
        except BaseException:
            os.close(self._lock)
            clear(path)
            raise

    def _create(self, sync: str) -> None:
        connection = self._connection
        create_tables(connection)
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
        super().close()
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
        connection = self._connection.connection.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        try:
            events, *_ = [_insert(connection, *table, rows) for table, rows in zip(_BATCH_TABLES, piece, strict=True)]
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        return events

    def add(self, table: str, **columns: Any) -> None:
        """Commit one row of ``mark``, ``address_space``, ``console``, ``loss`` or ``memory_check``."""
        with storage_errors(self.path):
            self._connection.execute(insert(models.metadata.tables[table]).values(**columns))
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
        except SQLAlchemyError:
            # Somebody reads it just now, or there is no room. It is sealed all the same, though in two files.
            self._connection.rollback()
            self._two_files = True


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


class TraceReader(_OpenTrace):
    """A trace open for reading; it is never changed, and never trusted. Whoever writes it in this process says ``live``.

    A trace of an older schema is read from an upgraded private copy; ``upgraded_from`` then has its own. Raises ``TraceError`` where
    the file is missing, is no trace, has a newer schema or one that was tampered with, or is damaged; with ``check`` off damage is
    left for ``damage`` to tell.
    """

    def __init__(self, path: Path, live: bool | None = None, check: bool = True) -> None:
        self.path = path
        self.upgraded_from: int | None = None
        self._copy: PrivateCopy | None = None
        if path.is_dir():
            raise TraceError(f"{path} is a folder", "name the trace in it: shadowtrace ls lists them")
        if not path.is_file():
            raise TraceError(f"there is no file {path}", "record one: shadowtrace record GUEST -o FILE.db")
        self.live = live if live is not None else is_being_written(path)
        """Whether the trace was still being written when it was opened."""
        self._open(path)
        try:
            if live is None:
                self._look(check)
            self.recording = self._recording()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        super().close()
        if self._copy is not None:
            self._copy.close()

    def _open(self, path: Path) -> None:
        self._budget = Budget(path)
        self._connection = reading_engine(path, self._budget).connect()

    def _look(self, check: bool) -> None:
        """Who wrote the file, in which schema, and whether it is what it should be."""
        try:
            version = identify(self._connection, self.path)
        except TraceError:
            if self.live or not unfinished(self.path):
                raise
            # Killed while it stored something, or unsealed in a folder that SQLite cannot use: neither is mended where it lies.
            super().close()
            self._copy = finished_copy(self.path)
            self._open(self._copy.path)
            version = identify(self._connection, self.path)
        if version < SCHEMA_VERSION:
            self._upgrade(version)
            return
        check_schema(self._connection, self.path, version)
        if check and (found := damage(self._connection, self.file, whole=False)):
            raise TraceError(f"{self.path} is damaged: {found[0]}", "what can be read: sqlite3 FILE .recover")

    @property
    def file(self) -> Path:
        """The file that is read: the trace, or a private copy of it."""
        return self.path if self._copy is None else self._copy.path

    def _upgrade(self, version: int) -> None:
        """Go on with a copy in today's schema."""
        check_old(self._connection, self.path, version)
        super().close()
        before, self._copy = self._copy, upgraded_copy(self.file)
        if before is not None:
            before.close()
        self._open(self._copy.path)
        self.upgraded_from = version
        _LOG.warning("%s has schema %d: read through an upgraded copy; shadowtrace upgrade keeps one", self.path, version)

    def _recording(self) -> dict[str, Any]:
        rows = self.rows("recording")
        if not rows:
            raise TraceError(f"{self.path} does not say what was recorded", "its recording ended before it began: record again")
        row = rows[0]
        recorded = row["source"] == "record"
        if not 1 <= row["vcpus"] <= MAX_VCPUS or (recorded and not 0 < (row["ram_bytes"] or 0) <= MAX_GPA):
            raise self.damaged(f"it names {row['vcpus']} vCPUs and {row['ram_bytes']} bytes of RAM")
        return row

    def damaged(self, what: str) -> TraceError:
        """The error for a trace that holds ``what`` no trace may hold."""
        return TraceError(f"{self.path} is damaged: {what}", "shadowtrace verify names what is wrong")

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file's structure, at most a few lines: none in a whole file."""
        return damage(self._connection, self.file, whole=True)

    def query(self, statement: Any) -> Any:
        """The result of a SELECT; a damaged file raises ``TraceError``, now or when its rows are read."""
        self._budget.renew()
        return self._connection.execute(statement)

    def stream(self, sql: str, parameters: Mapping[str, int | None] | None = None) -> Iterator[tuple[Any, ...]]:
        """The rows of a query in SQL's own words, as the file holds them: the quickest way through many events."""
        self._budget.renew()
        try:
            cursor = self._connection.connection.cursor()
            cursor.execute(sql, dict(parameters or {}))
            while rows := cursor.fetchmany(_STREAMED):
                yield from rows
        except SQLITE_ERRORS as error:
            raise trace_error(self.path, error, self._budget) from error

    def table(self, name: str) -> Table:
        """A table, to build queries with."""
        return models.metadata.tables[name]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Every row of a small table, in order of its key. Values that are not of their column's type raise ``TraceError``."""
        columns = models.metadata.tables[table]
        rows = [dict(row._mapping) for row in self._in_order(select(columns).order_by(next(iter(columns.primary_key))), table)]
        for column in columns.columns:
            kinds = _PYTHON_TYPES[type(column.type)] + ((type(None),) if column.nullable else ())
            for row in rows:
                if type(row[column.name]) not in kinds:
                    raise self.damaged(f"{table}.{column.name} holds a {type(row[column.name]).__name__}")
        return rows

    def _in_order(self, statement: Any, table: str) -> Iterator[Any]:
        """Rows by their key, the first column. A key that does not grow is from a tree that was tied into a knot."""
        last = None
        for row in self.query(statement):
            if type(row[0]) is not int or (last is not None and row[0] <= last):
                raise self.damaged(f"{table} has a row out of order")
            last = row[0]
            yield row

    def storing_instructions(self) -> list[int]:
        """Where the instructions are that stored to tables: virtual addresses, each once."""
        return [unsigned(pc) for (pc,) in self.query(select(models.store_origin.c.pc).distinct())]

    def count(self) -> int:
        """Events in the file now."""
        return int(self.query(select(func.coalesce(func.max(models.event.c.seq), 0))).scalar() or 0)

    def events(self, kinds: Sequence[Kind] = tuple(Kind), after: int = 0) -> Iterator[Event]:
        """The events of these kinds past event ``after``, in order, one pass, unsigned numbers.

        A row of no known shape raises ``TraceError``.
        """
        registers = self._side(models.mode_registers, after)
        pdptes = self._side(models.pdptes, after)
        contents = self._contents(after)
        columns = select(models.event).where(models.event.c.seq > after).order_by(models.event.c.seq)
        if len(kinds) < len(Kind):
            columns = columns.where(models.event.c.kind.in_([int(kind) for kind in kinds]))
        last = after
        for seq, kind, vcpu, flags, addr, value in self.query(columns).yield_per(65536):
            extra: Any = None
            if kind == Kind.REGS:
                extra = registers.get(seq)
            elif kind == Kind.CR3:
                extra = pdptes.get(seq)
            elif kind == Kind.PAGE:
                extra = contents.get(seq)
            try:
                good = (
                    last < seq
                    and 0 <= kind | vcpu | flags <= MOST_FLAGS
                    and 1 <= kind <= 6
                    and vcpu < MAX_VCPUS
                    and (extra is not None or kind not in _HAVE_EXTRA)
                    and (kind != Kind.WRITE or (1 <= flags & WRITE_SIZE <= 8 and 0 <= addr <= MAX_GPA - 8))
                    and (kind != Kind.PAGE or (0 <= addr < MAX_GPA and not addr & 0xFFF))
                )
                addr, value = unsigned(addr), unsigned(value)  # noqa: PLW2901 - as the caller wants them
            except TypeError:
                good = False
            if not good:
                raise self.damaged(f"event {seq!r} is incomplete or of no known shape")
            last = seq
            yield Event(kind, vcpu, flags, addr, value, extra)

    def _side(self, table: Table, after: int) -> dict[int, tuple[int | None, ...]]:
        rows = self._in_order(select(table).where(table.c.seq > after).order_by(table.c.seq), table.name)
        try:
            return {row[0]: tuple(None if number is None else unsigned(number) for number in row[1:]) for row in rows}
        except TypeError as error:
            raise self.damaged(f"{table.name} holds what is no number") from error

    def _contents(self, after: int) -> dict[int, bytes]:
        contents: dict[int, bytes] = {}
        columns = select(models.content).where(models.content.c.seq > after).order_by(models.content.c.seq)
        for seq, words in self._in_order(columns, "content"):
            if not isinstance(words, bytes) or not is_content(words):
                raise self.damaged(f"the content at event {seq} is none of a page")
            contents[seq] = words
        return contents


def store_run(path: Path, **columns: Any) -> bool:
    """Keep a replay's facts in a sealed trace of today's schema; false where that cannot be done, which is no error."""
    try:
        if is_being_written(path):
            return False
        with engine(path, "rw").connect() as connection:
            harden(connection.connection.driver_connection)  # type: ignore[arg-type]
            if identify(connection, path) != SCHEMA_VERSION:
                return False
            check_schema(connection, path, SCHEMA_VERSION)
            # One that could not be folded into one file when its recording ended is folded now.
            connection.rollback()
            connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            number = connection.scalar(select(func.coalesce(func.max(models.run.c.id), 0)))
            connection.execute(insert(models.run).values(id=(number or 0) + 1, **columns))
            connection.commit()
    except (SQLAlchemyError, *SQLITE_ERRORS, TraceError, OSError):
        return False
    return True
