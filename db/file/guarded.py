"""Opening a trace as if its author meant harm: nothing in it is run, its shape is checked before it is read, work is bounded."""

from __future__ import annotations

import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import db
from db.errors import TraceError
from db.schema import APPLICATION_ID, SCHEMA_VERSION

#: A file above this is looked through whole only by ``verify``: at 40 MB, two million events, it takes 0.2 s.
CHECKED_BYTES = 64 << 20

#: Tables that stay small, looked through in a file of any size.
_SMALL = ("recording", "mark", "address_space", "loss", "memory_check", "end_table", "run")

_HISTORY = Path(db.__file__).with_name("history")

#: What a trace's rows and our own statements need, and not much more.
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 64 << 20,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 5,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

#: What a reading connection may do once it is set up; SQLite asks for each statement.
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_TRANSACTION}
_NOT_FUNCTIONS = {"load_extension", "fts3_tokenizer"}
_PRAGMAS = {"application_id", "user_version", "quick_check", "table_info"}

#: The progress handler is called after so many steps of SQLite's machine, some 20 ms: each call waits until other threads let Python go.
#: A statement may take so many steps for each byte of the file.
_STEPS = 1_000_000
_STEPS_PER_BYTE = 20
_FREE_CALLS = 10

#: Rows that a query fetches at once.
_FETCHED = 8192

#: What Python's sqlite3 raises: it fails to decode a message that quotes a damaged schema.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

#: Result codes, without their extensions, that do not mean that the file is damaged.
_CODES = {
    sqlite3.SQLITE_BUSY: ("is locked by another program", "wait until that is done"),
    sqlite3.SQLITE_LOCKED: ("is locked by another program", "wait until that is done"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "may you read the file and the folder it is in?"),
    sqlite3.SQLITE_PERM: ("cannot be opened", "may you read the file and the folder it is in?"),
    sqlite3.SQLITE_AUTH: ("asks for what no trace needs", "someone made it to do harm: do not trust it"),
    sqlite3.SQLITE_INTERRUPT: ("takes more work to read than a file of its size can need", "someone made it to do harm: do not trust it"),
    sqlite3.SQLITE_TOOBIG: ("holds a value beyond every limit", "someone made it to do harm: do not trust it"),
    sqlite3.SQLITE_NOMEM: ("takes more memory to read than there is", "is the machine out of memory?"),
}

_KINDS = {"table": "a table", "view": "a view", "index": "an index", "trigger": "a trigger"}
_FOREIGN = "someone changed the file; its events alone can be saved: sqlite3 FILE .recover"


class Budget:
    """How much work one statement may make SQLite do: in proportion to the file."""

    def __init__(self, path: Path) -> None:
        size = sum(part.stat().st_size for part in (path, path.with_name(path.name + "-wal")) if part.exists())
        self._most = _FREE_CALLS + size * _STEPS_PER_BYTE // _STEPS
        self._left = self._most

    def renew(self) -> None:
        """Begin another statement."""
        self._left = self._most

    def step(self) -> bool:
        """Called by SQLite now and then; true ends the statement."""
        self._left -= 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether a statement was ended for its work; if not, what ended it was a signal that came while SQLite asked."""
        return self._left < 0


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection of SQLite's own; ``mode`` is ro, rw or rwc."""
    # One thread at a time uses a trace, but not always the same one: recordings hand theirs to the ingest thread and back.
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


class Open(ABC):
    """What is open, and closed where its ``with`` ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""


class GuardedConnection(Open):
    """A connection of SQLite's own to a file that may be hostile: a statement does no more than a trace needs, or is ended.

    Whatever SQLite says against the file is a ``TraceError``. ``path`` is what errors call it, where ``file`` is a copy.
    """

    def __init__(self, file: Path, mode: str = "ro", path: Path | None = None) -> None:
        self.file = file
        self.path = path or file
        self._budget = Budget(file)
        try:
            self.raw = connect(file, mode)
            self._guard(mode)
        except SQLITE_ERRORS as error:
            raise trace_error(self.path, error) from error

    def _guard(self, mode: str) -> None:
        try:
            harden(self.raw)
            if mode == "ro":
                self.raw.execute("PRAGMA query_only = ON")
                self.raw.set_authorizer(_allow)
                self.raw.set_progress_handler(self._budget.step, _STEPS)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self.raw.close()

    def rows(self, sql: str, parameters: Mapping[str, int | None] | None = None) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, fetched by the thousand."""
        self._budget.renew()
        try:
            cursor = self.raw.execute(sql, dict(parameters or {}))
            while rows := cursor.fetchmany(_FETCHED):
                yield from rows
        except SQLITE_ERRORS as error:
            raise trace_error(self.path, error, self._budget) from error

    def row(self, sql: str, parameters: Mapping[str, int | None] | None = None) -> tuple[Any, ...] | None:
        """The first row of a query; ``None`` where it has none."""
        return next(self.rows(sql, parameters), None)


def harden(connection: sqlite3.Connection) -> None:
    """Set what keeps a hostile schema or page from doing more than being wrong."""
    for limit, most in _LIMITS.items():
        connection.setlimit(limit, most)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        connection.execute(f"PRAGMA {pragma}")


def _allow(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    """SQLite's question whether a statement may do something."""
    good = action in _READING or (action == sqlite3.SQLITE_FUNCTION and second not in _NOT_FUNCTIONS)
    good = good or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS)
    return sqlite3.SQLITE_OK if good else sqlite3.SQLITE_DENY


def trace_error(path: Path, error: BaseException, budget: Budget | None = None) -> BaseException:
    """What an error of SQLite's means for somebody who reads a trace: a ``TraceError``, or that Ctrl-C came."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_INTERRUPT and budget is not None and not budget.exhausted:
        return KeyboardInterrupt()
    if code in _CODES:
        said, hint = _CODES[code]
        return TraceError(f"{path} {said}", hint)
    said = ascii(error.object)[2:-1] if isinstance(error, UnicodeDecodeError) else str(error)
    return damaged(path, said)


def damaged(path: Path, what: object) -> TraceError:
    """The error for a file that SQLite finds damaged, with what it says."""
    return TraceError(f"{path} is damaged: {what}", "what can be read: sqlite3 FILE .recover")


def identify(connection: GuardedConnection) -> int:
    """The file's schema version; ``TraceError`` where it is no trace, or one from the future."""
    path = connection.path
    try:
        application = connection.row("PRAGMA application_id")
        (version,) = connection.row("PRAGMA user_version") or (None,)
    except TraceError as error:
        if isinstance(error.__cause__, SQLITE_ERRORS) and "is damaged" in str(error) and not _claims_to_be_one(connection.file):
            raise _no_trace(path) from error
        raise
    if application != (APPLICATION_ID,):
        raise _no_trace(path)
    if not isinstance(version, int) or version < 1:
        raise TraceError(f"{path} has schema {version}, which there never was", "record it again")
    if version > SCHEMA_VERSION:
        writer = _writer(connection)
        raise TraceError(
            f"{path} has schema {version}, this shadowtrace reads up to {SCHEMA_VERSION}: shadowtrace {writer} wrote it",
            f"read it with shadowtrace {writer} or a later one",
        )
    return version


def _claims_to_be_one(path: Path) -> bool:
    """Whether the first bytes are those of a trace, whatever comes after them."""
    with path.open("rb") as file:
        header = file.read(100)
    return header.startswith(b"SQLite format 3\0") and header[68:72] == APPLICATION_ID.to_bytes(4, "big")


def _no_trace(path: Path) -> TraceError:
    return TraceError(f"{path} is not a trace", "shadowtrace record writes one, shadowtrace import converts one")


def _writer(connection: GuardedConnection) -> str:
    """Which shadowtrace gave a file of a later schema its form."""
    for column in ("upgraded_by", "version"):
        try:
            found = connection.row(f"SELECT {column} FROM recording")  # noqa: S608 - a name of ours
        except TraceError:
            continue
        if found and isinstance(found[0], str) and re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", found[0]):
            return found[0]
    return "of a later version"


def check_schema(connection: GuardedConnection, version: int) -> None:
    """Raise ``TraceError`` where the file's tables and views are not, to the letter, those of its schema version."""
    path, expected = connection.path, expected_schema(version)
    found: dict[str, tuple[str, str]] = {}
    for kind, name, sql in connection.rows("SELECT type, name, sql FROM sqlite_schema"):
        if name not in expected or name in found:
            raise TraceError(f"{path} has {_KINDS.get(kind, 'a thing')} {_quoted(name)}, which no trace has", _FOREIGN)
        found[name] = (str(kind), plain(sql) if isinstance(sql, str) else "")
    for name, (kind, sql) in expected.items():
        if name not in found:
            raise TraceError(f"{path} lacks the {kind} {_quoted(name)}", _FOREIGN)
        if found[name] != (kind, sql):
            raise TraceError(
                f"{path} has {_KINDS.get(found[name][0], 'a thing')} {_quoted(name)} that is not the one of schema {version}", _FOREIGN
            )


def _quoted(name: object) -> str:
    text = str(name)
    return repr(text if len(text) <= 40 else text[:40] + "...")


def expected_schema(version: int) -> dict[str, tuple[str, str]]:
    """By name: whether it is a table or a view, and its SQL made plain."""
    schema = {}
    for sql in statements(version):
        kind, name = re.split(r"[\s(]+", sql.strip(), maxsplit=3)[1:3]
        schema[name.strip('"')] = (kind.lower(), plain(sql))
    return schema


@lru_cache
def statements(version: int) -> tuple[str, ...]:
    """What makes the tables and views of a schema version."""
    text = "".join(line for line in (_HISTORY / f"v{version}.sql").open() if not line.startswith("--"))
    return tuple(statement for statement in text.split(";\n") if statement.strip())


def plain(sql: str) -> str:
    """SQL with white space made equal: what tells two definitions apart is the rest."""
    return re.sub(r" ?([(),]) ?", r"\1", re.sub(r"\s+", " ", sql)).strip()


def damage(connection: GuardedConnection, whole: bool) -> list[str]:
    """What ``PRAGMA quick_check`` finds, at most a few lines: in the whole file, or in a large one in its small tables alone."""
    if whole or connection.file.stat().st_size <= CHECKED_BYTES:
        questions = ["PRAGMA quick_check(5)"]
    else:
        questions = [f"PRAGMA quick_check({table})" for table in _SMALL]
    found: list[Any] = []
    for question in questions:
        try:
            found += [row[0] for row in connection.rows(question) if row[0] != "ok"]
        except TraceError as error:
            # SQLite gives up at some damage instead of listing it.
            found.append(str(error))
    return [str(line) for line in found[:5]]
