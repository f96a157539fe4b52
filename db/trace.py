"""Opening and reading a trace file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from db.errors import TraceError
from db.file.guarded import SQLITE_ERRORS, GuardedConnection, Open, check_schema, damage, damaged, identify
from db.file.locking import is_being_written
from db.file.migration import PrivateCopy, check_old, finished_copy, unfinished, upgraded_copy
from db.schema import SCHEMA_VERSION
from x86.event import ACCESS_FAULT, MAX_GPA, MAX_VCPUS, Event, Kind, is_content, is_event, unsigned

_LOG = logging.getLogger(__name__)

_HAVE_EXTRA = frozenset((Kind.REGS, Kind.PAGE))

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {"INTEGER": (int,), "TEXT": (str,), "BLOB": (bytes,), "REAL": (float, int)}

#: An event row as the file holds it: seq, kind, vcpu, flags, addr, value; addr and value signed.
Row = tuple[int, int, int, int, int, int]


class TraceReader(Open):
    """A trace open for reading: a context manager. It is never changed, and never trusted. Whoever writes it in this process says ``live``.

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
        self._connection = GuardedConnection(path)
        try:
            if live is None:
                self._look(check)
            self.recording = self._recording()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()
        if self._copy is not None:
            self._copy.close()

    def _look(self, check: bool) -> None:
        """Who wrote the file, in which schema, and whether it is what it should be."""
        try:
            version = identify(self._connection)
        except TraceError:
            if self.live or not unfinished(self.path):
                raise
            # Killed while it stored something, or unsealed in a folder that SQLite cannot use: neither is mended where it lies.
            self._read_copy(finished_copy(self.path))
            version = identify(self._connection)
        if version < SCHEMA_VERSION:
            self._upgrade(version)
            return
        check_schema(self._connection, version)
        if check and (found := damage(self._connection, whole=False)):
            raise damaged(self.path, found[0])

    @property
    def file(self) -> Path:
        """The file that is read: the trace, or a private copy of it."""
        return self._connection.file

    def _upgrade(self, version: int) -> None:
        """Go on with a copy in today's schema."""
        check_old(self._connection, version)
        self._read_copy(upgraded_copy(self.file))
        self.upgraded_from = version
        _LOG.warning("%s has schema %d: read through an upgraded copy; shadowtrace upgrade keeps one", self.path, version)

    def _read_copy(self, copy: PrivateCopy) -> None:
        """Go on with a copy instead of what has been read."""
        self.close()
        self._copy = copy
        self._connection = GuardedConnection(copy.path, path=self.path)

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
        return damage(self._connection, whole=True)

    def stream(self, sql: str, parameters: Mapping[str, int | None] | None = None) -> Iterator[tuple[Any, ...]]:
        """The rows of a query as the file holds them; a damaged file raises ``TraceError`` when they are read."""
        return self._connection.rows(sql, parameters)

    def number(self, sql: str, parameters: Mapping[str, int | None] | None = None) -> int:
        """The one number that a query answers; 0 for NULL, and for none."""
        row = self._connection.row(sql, parameters)
        return int(row[0] or 0) if row else 0

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Every row of a small table, in order of its key. Values that are not of their column's type raise ``TraceError``."""
        columns = [(name, kind, filled) for _, name, kind, filled, *_ in self.stream(f"PRAGMA table_info({table})")]
        names = [name for name, _, _ in columns]
        rows = [dict(zip(names, row, strict=True)) for row in self._in_order(table)]
        for name, kind, filled in columns:
            kinds = _PYTHON_TYPES[kind] + (() if filled else (type(None),))
            for row in rows:
                if type(row[name]) not in kinds:
                    raise self.damaged(f"{table}.{name} holds a {type(row[name]).__name__}")
        return rows

    def _in_order(self, table: str, after: int | None = None) -> Iterator[tuple[Any, ...]]:
        """Rows by their key, the first column, past ``after``. A key that does not grow is from a tree that was tied into a knot."""
        chosen = "" if after is None else f"WHERE seq > {after:d}"
        last = None
        for row in self.stream(f"SELECT * FROM {table} {chosen} ORDER BY 1"):  # noqa: S608 - names of ours
            if type(row[0]) is not int or (last is not None and row[0] <= last):
                raise self.damaged(f"{table} has a row out of order")
            last = row[0]
            yield row

    def storing_instructions(self) -> list[int]:
        """Where the instructions are that stored to tables: virtual addresses, each once."""
        return [unsigned(pc) for (pc,) in self.stream("SELECT DISTINCT pc FROM store_origin")]

    def count(self) -> int:
        """Events in the file now."""
        return self.number("SELECT max(seq) FROM event")

    def events(self, kinds: Sequence[Kind] = tuple(Kind), after: int = 0, faults_only: bool = False) -> Iterator[Event]:
        """The events of these kinds past event ``after``, in order, one pass, unsigned numbers.

        ``faults_only`` leaves out accesses that ended in no guest page fault. A row of no known shape raises ``TraceError``.
        """
        sides: dict[int, Mapping[int, Any]] = {
            Kind.REGS: self.side("mode_registers", after),
            Kind.CR3: self.side("pdptes", after),
            Kind.PAGE: self.contents(after),
        }
        sql = f"SELECT * FROM event WHERE seq > {after:d}"  # noqa: S608 - numbers of ours
        if len(kinds) < len(Kind):
            sql += f" AND kind IN ({', '.join(f'{kind:d}' for kind in kinds)})"
        if faults_only:
            sql += f" AND (kind <> {Kind.ACCESS:d} OR flags & {ACCESS_FAULT:d} <> 0)"
        last = after
        for seq, kind, vcpu, flags, addr, value in self.stream(f"{sql} ORDER BY seq"):
            extra = sides[kind].get(seq) if kind in sides else None
            good = is_event(seq, kind, vcpu, flags, addr, value) and last < seq and (extra is not None or kind not in _HAVE_EXTRA)
            if not good:
                raise self.damaged(f"event {seq!r} is incomplete or of no known shape")
            last = seq
            yield Event(kind, vcpu, flags, unsigned(addr), unsigned(value), extra)

    def side(self, name: str, after: int = 0) -> dict[int, tuple[int | None, ...]]:
        """What ``mode_registers`` or ``pdptes`` has for each event past ``after``, unsigned; ``TraceError`` where that is no number."""
        rows = self._in_order(name, after)
        try:
            return {row[0]: tuple(None if number is None else unsigned(number) for number in row[1:]) for row in rows}
        except TypeError as error:
            raise self.damaged(f"{name} holds what is no number") from error

    def contents(self, after: int = 0) -> dict[int, bytes]:
        """The packed words of each content past event ``after``; ``TraceError`` where they are none of a page."""
        contents: dict[int, bytes] = {}
        for seq, words in self._in_order("content", after):
            if not isinstance(words, bytes) or not is_content(words):
                raise self.damaged(f"the content at event {seq} is none of a page")
            contents[seq] = words
        return contents


def store_run(path: Path, **columns: Any) -> bool:
    """Keep a replay's facts in a sealed trace of today's schema; false where that cannot be done, which is no error."""
    try:
        if is_being_written(path):
            return False
        with GuardedConnection(path, "rw") as connection:
            if identify(connection) != SCHEMA_VERSION:
                return False
            check_schema(connection, SCHEMA_VERSION)
            if connection.row("SELECT 1 FROM recording WHERE ended IS NOT NULL") is None:
                return False
            # One that could not be folded into one file when its recording ended is folded now.
            connection.raw.execute("PRAGMA journal_mode = DELETE")
            names = ", ".join(columns)
            values = ", ".join(f":{name}" for name in columns)
            # One statement: of two who keep a run at the same time neither takes the other's number.
            connection.raw.execute(f"INSERT INTO run (id, {names}) SELECT coalesce(max(id), 0) + 1, {values} FROM run", columns)  # noqa: S608
            connection.raw.commit()
    except (*SQLITE_ERRORS, TraceError, OSError):
        return False
    return True
