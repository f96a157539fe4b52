"""Opening, creating, filling and sealing a trace file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Table, create_engine, func, insert, select, update
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from db import models
from db.errors import StorageError, TraceError, UsageError
from db.event import CR3_HAS_PDPTES, Event, Kind, signed, unsigned
from db.schema import APPLICATION_ID, SCHEMA_VERSION, VIEWS

_INSERT_EVENT = "INSERT INTO event (seq, kind, vcpu, flags, addr, value) VALUES (?, ?, ?, ?, ?, ?)"

#: An event row as the file holds it: seq, kind, vcpu, flags, addr, value; addr and value signed.
Row = tuple[int, int, int, int, int, int]


def _engine(path: Path, mode: str) -> Engine:
    # One thread at a time uses a trace, but not always the same one: recordings hand theirs to the ingest thread and back.
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True, check_same_thread=False), poolclass=NullPool)


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

    Raises ``UsageError`` where the file exists (unless ``force``), ``StorageError`` where it cannot be written.
    """

    def __init__(self, path: Path, force: bool = False) -> None:
        self.path = path
        self.events = 0
        refuse_existing(path, force)
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        self._lock = _lock(path)
        with _storage_errors(path):
            self._connection = _engine(path, "rwc").connect()
            self._create()

    def _create(self) -> None:
        connection = self._connection
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
        models.metadata.create_all(connection)
        for name, _, query in VIEWS:
            connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")
        connection.commit()

    def close(self) -> None:
        """Let go of the file. What was committed stays."""
        super().close()
        # Last: closing any descriptor of the file would drop the locks that SQLite holds in this process.
        os.close(self._lock)

    def describe(self, **columns: Any) -> None:
        """Write or change the one row that says what was recorded."""
        with _storage_errors(self.path):
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
        rows: Sequence[Row],
        registers: Sequence[tuple[Any, ...]] = (),
        pdptes: Sequence[tuple[Any, ...]] = (),
        contents: Sequence[tuple[Any, ...]] = (),
        origins: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Commit a batch of event rows as the file holds them, with the rows that belong to some of them."""
        with _storage_errors(self.path):
            for statement, batch in (
                (_INSERT_EVENT, rows),
                ("INSERT INTO mode_registers VALUES (?, ?, ?, ?)", registers),
                ("INSERT INTO pdptes VALUES (?, ?, ?, ?, ?)", pdptes),
                ("INSERT INTO content VALUES (?, ?)", contents),
                ("INSERT INTO store_origin VALUES (?, ?)", origins),
            ):
                if batch:
                    self._connection.exec_driver_sql(statement, list(batch))
            self._connection.commit()
        self.events += len(rows)

    def add(self, table: str, **columns: Any) -> None:
        """Commit one row of ``mark``, ``address_space``, ``console``, ``loss`` or ``memory_check``."""
        with _storage_errors(self.path):
            self._connection.execute(insert(models.metadata.tables[table]).values(**columns))
            self._connection.commit()

    def seal(self, ended: str, detail: str) -> None:
        """Say how it ended, count, and fold the write-ahead log into the one file."""
        with _storage_errors(self.path):
            self._connection.rollback()
            lost = self._connection.scalar(select(func.coalesce(func.sum(models.loss.c["count"]), 0)))
            self.describe(ended=ended, ended_detail=detail, events=self.events, lost=lost)
            self._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.commit()
            self._connection.exec_driver_sql("PRAGMA journal_mode = DELETE")


def _lock(path: Path) -> int:
    """A descriptor that says, while it is open, that the trace is being written."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}", "is the folder read-only, or on a network?") from error
    return descriptor


def is_being_written(path: Path) -> bool:
    """Whether some process is writing the trace now. Not to be asked by one that has the file open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def refuse_existing(path: Path, force: bool) -> None:
    """Raise ``UsageError`` where a trace must not be written: over a file without ``force``, over anything else ever."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name a file: -o FILE.db")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", "make it first, or name another")
    if path.exists():
        if not force:
            raise UsageError(f"{path} exists already", "name another file, or replace it with --force")
        if path.is_file() and is_being_written(path):
            raise UsageError(f"{path} is being recorded", "name another file, or wait until it is done")
        _refuse_foreign(path)


def _refuse_foreign(path: Path) -> None:
    """``--force`` replaces traces, and empty files; nothing else."""
    if path.stat().st_size:
        try:
            identify(path)
        except TraceError as error:
            raise UsageError(f"{path} is not a trace, so --force does not replace it", "name another file") from error


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.DatabaseError) as error:
        reason = error.orig if isinstance(error, DatabaseError) else error
        raise StorageError(f"{path} cannot be written: {reason}", "is the disk full, or the folder read-only?") from error


def identify(path: Path) -> None:
    """Raise ``TraceError`` where a file is no trace that this shadowtrace reads."""
    hint = "shadowtrace record writes one, shadowtrace import converts one"
    try:
        with _engine(path, "ro").connect() as connection:
            application = connection.exec_driver_sql("PRAGMA application_id").scalar()
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
    except SQLAlchemyError as error:
        raise TraceError(f"{path} is not a trace", hint) from error
    if application != APPLICATION_ID:
        raise TraceError(f"{path} is not a trace", hint)
    if version != SCHEMA_VERSION:
        raise TraceError(f"{path} has schema {version}, this shadowtrace reads {SCHEMA_VERSION}", "use a shadowtrace of its time")


class TraceReader(_OpenTrace):
    """A trace open for reading; it is never changed. Whoever writes it in this process says ``live``.

    Raises ``TraceError`` where the file is missing, is no trace, or has a newer schema.
    """

    def __init__(self, path: Path, live: bool | None = None) -> None:
        self.path = path
        if not path.is_file():
            raise TraceError(f"there is no file {path}", "record one: shadowtrace record GUEST -o FILE.db")
        self.live = live if live is not None else is_being_written(path)
        """Whether the trace was still being written when it was opened."""
        identify(path)
        self._connection = _engine(path, "ro").connect()
        self._connection.exec_driver_sql("PRAGMA trusted_schema = OFF")
        try:
            self.recording = self._recording()
        except BaseException:
            self.close()
            raise

    def _recording(self) -> dict[str, Any]:
        row = self.query(select(models.recording)).first()
        if row is None:
            raise TraceError(f"{self.path} does not say what was recorded", "its recording ended before it began: record again")
        return dict(row._mapping)

    def query(self, statement: Any) -> Any:
        """The result of a SELECT; a damaged file raises ``TraceError``."""
        try:
            return self._connection.execute(statement)
        except DatabaseError as error:
            raise TraceError(f"{self.path} is damaged: {error.orig}", "what can be read: sqlite3 FILE .recover") from error

    def table(self, name: str) -> Table:
        """A table, to build queries with."""
        return models.metadata.tables[name]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Every row of a small table, in order of its key."""
        columns = models.metadata.tables[table]
        return [dict(row._mapping) for row in self.query(select(columns).order_by(next(iter(columns.primary_key))))]

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
        contents = {row.seq: row.words for row in self.query(select(models.content).where(models.content.c.seq > after))}
        columns = select(models.event).where(models.event.c.seq > after).order_by(models.event.c.seq)
        if len(kinds) < len(Kind):
            columns = columns.where(models.event.c.kind.in_([int(kind) for kind in kinds]))
        for seq, kind, vcpu, flags, addr, value in self.query(columns).yield_per(65536):
            extra: Any = None
            if kind == Kind.REGS:
                extra = registers.get(seq)
            elif kind == Kind.CR3:
                extra = pdptes.get(seq)
            elif kind == Kind.PAGE:
                extra = contents.get(seq)
            if not 1 <= kind <= 6 or (extra is None and kind in (Kind.REGS, Kind.PAGE)):
                raise TraceError(f"{self.path} is damaged: event {seq} is incomplete", "shadowtrace verify names what is wrong")
            yield Event(kind, vcpu, flags, unsigned(addr), unsigned(value), extra)

    def _side(self, table: Any, after: int) -> dict[int, tuple[int | None, ...]]:
        rows = self.query(select(table).where(table.c.seq > after))
        return {row[0]: tuple(None if number is None else unsigned(number) for number in row[1:]) for row in rows}


def store_run(path: Path, **columns: Any) -> bool:
    """Keep a replay's facts in a trace; false where the file cannot be written, which is no error."""
    try:
        engine = _engine(path, "rw")
        with engine.begin() as connection:
            number = connection.scalar(select(func.coalesce(func.max(models.run.c.id), 0)))
            connection.execute(insert(models.run).values(id=(number or 0) + 1, **columns))
    except DatabaseError:
        return False
    return True
