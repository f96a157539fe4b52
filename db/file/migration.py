"""Private copies of a trace: one of an older schema brought to today's, one whose last change was never finished."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from db.errors import StorageError, TraceError
from db.file.guarded import (
    SQLITE_ERRORS,
    GuardedConnection,
    check_schema,
    connect,
    damage,
    damaged,
    expected_schema,
    statements,
    trace_error,
)
from db.file.private import COPY, private_folder
from db.schema import APPLICATION_ID, SCHEMA_VERSION

#: What a rollback journal ends with if it names another journal, which SQLite would then look for and may delete.
_NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")


def create_tables(connection: sqlite3.Connection) -> None:
    """Make today's tables and views in an empty database, and say which schema that is."""
    connection.execute("BEGIN")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    for statement in statements(SCHEMA_VERSION):
        connection.execute(statement)
    connection.commit()


def check_old(connection: GuardedConnection, version: int) -> None:
    """Raise ``TraceError`` unless a file of an older schema is whole and exactly of that schema."""
    check_schema(connection, version)
    found = damage(connection, whole=True)
    if found:
        raise damaged(connection.path, found[0])


def _copy_rows(old: Path, connection: sqlite3.Connection) -> None:
    """Fill today's empty tables with an older trace's rows: the columns that both have. The old file must have been checked.

    Raises ``TraceError`` where its rows are not of the types that its columns say.
    """
    connection.execute("PRAGMA trusted_schema = OFF")
    tables = [name for name, (kind, _) in expected_schema(SCHEMA_VERSION).items() if kind == "table"]
    try:
        connection.execute("ATTACH ? AS old", (f"{old.absolute().as_uri()}?mode=ro",))
        for table in tables:
            ours, theirs = ([row[1] for row in connection.execute(f"PRAGMA {side}.table_info({table})")] for side in ("main", "old"))
            columns = ", ".join(f'"{name}"' for name in ours if name in theirs)
            if columns:
                connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM old.{table}")  # noqa: S608 - names of ours
        connection.commit()
        connection.execute("DETACH old")
    except sqlite3.IntegrityError as error:
        raise damaged(old, error) from error
    except SQLITE_ERRORS as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageError(f"there is no room for an upgraded copy of {old}", "set TMPDIR to a folder with room") from error
        raise trace_error(old, error) from error


class PrivateCopy:
    """A copy of a trace in a folder of its own, gone when it is closed."""

    def __init__(self, path: Path, suffixes: Sequence[str] = ()) -> None:
        self._stack = contextlib.ExitStack()
        self.path = self._stack.enter_context(private_folder()) / COPY
        try:
            for suffix in suffixes:
                part = path.with_name(path.name + suffix)
                if part.is_file():
                    shutil.copyfile(part, self.path.with_name(self.path.name + suffix))
        except OSError as error:
            self.close()
            raise StorageError(f"{path} cannot be copied to be read: {error.strerror}", "set TMPDIR to a folder with room") from error

    def close(self) -> None:
        """Remove it."""
        self._stack.close()


def upgraded_copy(old: Path) -> PrivateCopy:
    """A private copy of an older trace in today's schema; ``check_old`` must have found it good."""
    copy = PrivateCopy(old)
    try:
        with contextlib.closing(connect(copy.path, "rwc")) as connection:
            # Nobody needs the copy after a crash.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")
            create_tables(connection)
            _copy_rows(old, connection)
    except BaseException:
        copy.close()
        raise
    return copy


def unfinished(path: Path) -> bool:
    """Whether a file beside the trace holds a change that its writer did not finish, or that cannot be read where it is."""
    journal, wal = (path.with_name(path.name + suffix) for suffix in ("-journal", "-wal"))
    return any(part.is_file() and part.stat().st_size > 0 for part in (journal, wal))


def finished_copy(path: Path) -> PrivateCopy:
    """A private copy of an unfinished trace, with its last change rolled back or taken in, as SQLite finds right."""
    journal = path.with_name(path.name + "-journal")
    if journal.is_file() and journal.read_bytes()[-8:] == _NAMES_ANOTHER:
        raise TraceError(f"{journal} names another journal, which no trace's does", "someone made it to do harm: do not trust it")
    copy = PrivateCopy(path, ("", "-journal", "-wal"))
    try:
        with GuardedConnection(copy.path, "rw", path) as connection:
            connection.row("PRAGMA user_version")
            connection.row("PRAGMA wal_checkpoint")
    except BaseException:
        copy.close()
        raise
    return copy
