"""Opening and reading a trace file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import REAL, Connection, Integer, LargeBinary, Table, Text, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from db import models
from db.copies import PrivateCopy, check_old, finished_copy, unfinished, upgraded_copy
from db.errors import TraceError
from db.event import ACCESS_FAULT, MAX_GPA, MAX_VCPUS, Event, Kind, is_content, is_event, unsigned
from db.opening import SQLITE_ERRORS, Budget, check_schema, damage, engine, harden, identify, reading_engine, trace_error
from db.schema import SCHEMA_VERSION
from db.storage import is_being_written

_LOG = logging.getLogger(__name__)

_HAVE_EXTRA = frozenset((Kind.REGS, Kind.PAGE))

_PYTHON_TYPES: dict[type, tuple[type, ...]] = {Integer: (int,), Text: (str,), LargeBinary: (bytes,), REAL: (float, int)}

#: Rows that a streamed query fetches at once.
_STREAMED = 8192

#: An event row as the file holds it: seq, kind, vcpu, flags, addr, value; addr and value signed.
Row = tuple[int, int, int, int, int, int]


class OpenTrace:
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


class TraceReader(OpenTrace):
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

    def events(self, kinds: Sequence[Kind] = tuple(Kind), after: int = 0, faults_only: bool = False) -> Iterator[Event]:
        """The events of these kinds past event ``after``, in order, one pass, unsigned numbers.

        ``faults_only`` leaves out accesses that ended in no guest page fault. A row of no known shape raises ``TraceError``.
        """
        sides: dict[int, Mapping[int, Any]] = {
            Kind.REGS: self.side("mode_registers", after),
            Kind.CR3: self.side("pdptes", after),
            Kind.PAGE: self.contents(after),
        }
        columns = select(models.event).where(models.event.c.seq > after).order_by(models.event.c.seq)
        if len(kinds) < len(Kind):
            columns = columns.where(models.event.c.kind.in_([int(kind) for kind in kinds]))
        if faults_only:
            columns = columns.where((models.event.c.kind != int(Kind.ACCESS)) | (models.event.c.flags.bitwise_and(ACCESS_FAULT) != 0))
        last = after
        # SQLAlchemy would make an object of each row.
        for seq, kind, vcpu, flags, addr, value in self.stream(str(columns.compile(compile_kwargs={"literal_binds": True}))):
            extra = sides[kind].get(seq) if kind in sides else None
            good = is_event(seq, kind, vcpu, flags, addr, value) and last < seq and (extra is not None or kind not in _HAVE_EXTRA)
            if not good:
                raise self.damaged(f"event {seq!r} is incomplete or of no known shape")
            last = seq
            yield Event(kind, vcpu, flags, unsigned(addr), unsigned(value), extra)

    def side(self, name: str, after: int = 0) -> dict[int, tuple[int | None, ...]]:
        """What ``mode_registers`` or ``pdptes`` has for each event past ``after``, unsigned; ``TraceError`` where that is no number."""
        table = models.metadata.tables[name]
        rows = self._in_order(select(table).where(table.c.seq > after).order_by(table.c.seq), table.name)
        try:
            return {row[0]: tuple(None if number is None else unsigned(number) for number in row[1:]) for row in rows}
        except TypeError as error:
            raise self.damaged(f"{table.name} holds what is no number") from error

    def contents(self, after: int = 0) -> dict[int, bytes]:
        """The packed words of each content past event ``after``; ``TraceError`` where they are none of a page."""
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
            if connection.scalar(select(models.recording.c.ended)) is None:
                return False
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
