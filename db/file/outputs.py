"""Files that are written beside a trace: exports and states."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from db.errors import StorageError, UsageError

_SQLITE, _ZSTD = b"SQLite format 3\0", b"\x28\xb5\x2f\xfd"


def check_target(path: Path) -> None:
    """Raise ``UsageError`` where a file must not or cannot be written under this name: a trace, packed or not, is never replaced."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder, or lies in none", "name a file")
    if path.is_file():
        with path.open("rb") as file:
            first = file.read(len(_SQLITE))
        if first == _SQLITE or first.startswith(_ZSTD):
            raise UsageError(f"{path} is a {'database' if first == _SQLITE else 'packed trace'}: it is not replaced", "name another file")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to: the file takes its own name when it is whole.

    Raises ``UsageError`` as ``check_target`` does, ``StorageError`` where writing fails.
    """
    check_target(path)
    partial = path.with_name(f".{path.name}.partial") if path.is_file() or not path.exists() else path
    try:
        yield partial
        if partial != path:
            partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", "is the disk full, or the folder read-only?") from error
    finally:
        if partial != path:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_text(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name when it is whole; gzip'ped if that ends in .gz. Raises as ``new_file`` does."""
    with (
        new_file(path) as partial,
        gzip.open(partial, "wt", encoding="utf-8") if path.suffix == ".gz" else partial.open("w", encoding="utf-8") as out,
    ):
        yield out
