"""Where a trace may be written: nothing else is replaced, one writer at a time, on a file system that keeps its promises."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from db.errors import StorageError, TraceError, UsageError
from db.opening import SQLITE_ERRORS, Budget, identify, reading_engine


def lock(path: Path) -> int:
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
            with reading_engine(path, Budget(path)).connect() as connection:
                identify(connection, path)
        except TraceError as error:
            raise UsageError(f"{path} is not a trace, so --force does not replace it", "name another file") from error


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """What goes wrong while writing, as a ``StorageError``."""
    try:
        yield
    except (SQLAlchemyError, *SQLITE_ERRORS) as error:
        reason = error.orig if isinstance(error, DatabaseError) else error
        raise StorageError(f"{path} cannot be written: {reason}", "is the disk full, or the folder read-only?") from error
