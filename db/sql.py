"""Queries that a user writes, on a trace that they cannot change."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from db.errors import EXIT_LIMIT, ShadowtraceError, UsageError
from db.file.guarded import Open, connect, harden
from db.schema import VIEWS
from db.trace import TraceReader

#: Steps of SQLite's machine between two looks at the clock and at Ctrl-C.
_STEPS = 20_000

#: Pragmas that only tell what there is.
_PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "database_list", "function_list"}

#: People write longer queries than we do; the trace's own schema has been checked when one of theirs runs.
_ROOM = {
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 500,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 100,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 1_000_000,
}

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}

_REFUSED = "only reading is allowed: SELECT, WITH ... SELECT, EXPLAIN"


_Answer = TypeVar("_Answer")


class TimeLimitError(ShadowtraceError):
    """A query took longer than the user allowed."""

    exit_code = EXIT_LIMIT


class Session(Open):
    """A trace open for queries: a context manager. Nothing can be written, attached or loaded.

    ``seconds`` is the longest that one query may take; ``None`` for no limit. Raises ``TraceError`` where the file is no trace
    that can be read; one of an older schema is read through an upgraded copy.
    """

    def __init__(self, path: Path, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._deadline: float | None = None
        self._trace = TraceReader(path)
        try:
            self._connection = connect(self._trace.file, "ro")
            harden(self._connection)
        except BaseException:
            self._trace.close()
            raise
        for limit, most in _ROOM.items():
            self._connection.setlimit(limit, most)
        self._connection.execute("PRAGMA query_only = ON")
        self._connection.set_authorizer(_authorize)
        # Python looks for signals while it is in this function: that is what lets Ctrl-C stop a query.
        self._connection.set_progress_handler(self._is_late, _STEPS)

    def close(self) -> None:
        """Let go of the trace."""
        self._connection.close()
        self._trace.close()

    def ask(self, query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """The columns of a query and its rows, as they are asked for.

        Raises ``UsageError`` for SQL that is wrong or may not be, ``TimeLimitError``, and ``KeyboardInterrupt`` at Ctrl-C.
        """
        self._deadline = time.monotonic() + self.seconds if self.seconds is not None else None
        cursor = self._guard(lambda: self._connection.execute(query))
        return [column[0] for column in cursor.description or ()], self._rows(cursor)

    def catalogue(self) -> list[tuple[str, str, str]]:
        """What can be asked for, views first: name, what it holds, its columns."""
        # Nothing else here takes SQLAlchemy, which is as long in loading as all the rest.
        from db.models import metadata

        about = [(name, text) for name, text, _ in VIEWS] + [(table.name, table.comment or "") for table in metadata.sorted_tables]
        return [(name, text, ", ".join(self._columns(name))) for name, text in about]

    def _columns(self, name: str) -> list[str]:
        # The name is one of ours; a table-valued pragma would want to write a schema of its own first.
        return [column[0] for column in self._connection.execute(f"SELECT * FROM {name} LIMIT 0").description]  # noqa: S608

    def _rows(self, cursor: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
        while (row := self._guard(cursor.fetchone)) is not None:
            yield row

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _guard(self, step: Callable[[], _Answer]) -> _Answer:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if str(error) != "interrupted":
                raise _wrong(error) from error
            if self._is_late():
                raise TimeLimitError(f"the query took longer than {self.seconds:g} s", "allow it more: --timeout SECONDS") from error
            raise KeyboardInterrupt from error
        except sqlite3.DatabaseError as error:
            raise _wrong(error) from error
        except (sqlite3.Warning, sqlite3.Error) as error:
            raise UsageError(f"SQL: {error}", "one statement at a time") from error


def _wrong(error: sqlite3.DatabaseError) -> UsageError:
    text = str(error)
    if "prohibited" in text or "authoriz" in text:
        return UsageError(f"SQL: {text}", _REFUSED)
    return UsageError(f"SQL: {text}", "shadowtrace sql TRACE --list shows what can be asked for")


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _source: str | None) -> int:
    if action in _ALLOWED:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() != "load_extension":
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _PRAGMAS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
