"""Folders for a recording's sockets and a reader's copies: ours alone, gone afterwards, and if we are killed gone at the next use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "shadowtrace-run-"

#: What such folders hold besides sockets: ``db.file.migration``.
COPY = "trace.db"


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of mode 0700, locked while it is in use; those that killed processes left behind are removed first."""
    remove_dead()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        descriptor = _locked(folder)
        if descriptor is not None:
            break
        # Another process took it for a dead one's before it was locked.
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds a folder's lock; ``None`` where another process holds it, or the folder is gone or not ours."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    about = os.fstat(descriptor)
    try:
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) != stat.S_IRWXU:
            raise PermissionError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(about, folder.stat(follow_symlinks=False)):
            raise FileNotFoundError
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_dead() -> None:
    """Remove the folders of processes that were killed: nobody holds their lock, and nothing but what is ours is in them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        descriptor = _locked(folder)
        if descriptor is None:
            continue
        with contextlib.suppress(OSError):
            if all(stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode) or entry.name.startswith(COPY) for entry in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
