"""Where a trace may be written: nothing else is replaced, one writer at a time, on a file system that keeps its promises."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from db.errors import StorageError, TraceError, UsageError
from db.file.guarded import SQLITE_ERRORS, GuardedConnection, identify

#: File systems over a network, by the names that mountinfo has: their locks and shared memory are not what SQLite's log needs.
_NETWORK = {
    "9p",
    "afs",
    "ceph",
    "cifs",
    "coda",
    "gfs2",
    "glusterfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "pvfs2",
    "smb3",
    "smbfs",
}
_NETWORK_FUSE = {"ceph", "cifs", "curlftpfs", "glusterfs", "mfs", "nfs", "rclone", "s3fs", "sshfs", "davfs", "davfs2", "smbnetfs"}

#: Room put aside for sealing: at the most, and as a part of what is free.
_RESERVE = 8 << 20
_RESERVE_PART = 8
_LEAST_RESERVE = 4096


def check_place(folder: Path, mountinfo: str | None = None) -> None:
    """Raise ``StorageError`` where a folder lies on a network file system; ``mountinfo`` is read where it is not given."""
    kind = file_system(folder.resolve(), Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo)
    if kind in _NETWORK or (kind.startswith("fuse.") and kind.removeprefix("fuse.") in _NETWORK_FUSE):
        raise StorageError(
            f"{folder} lies on a network file system ({kind}), where a crash could damage a trace: its locks cannot be relied upon",
            "record on a local disk, and move the finished file",
        )


def file_system(folder: Path, mountinfo: str) -> str:
    """The type of the file system that a folder lies on, from the text of /proc/self/mountinfo."""
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4])
        if len(point) >= best and folder.is_relative_to(point):
            # Of two mounts on one place the later hides the earlier.
            best, kind = len(point), after.split(" ")[0]
    return kind


def clear(path: Path) -> None:
    """Remove a trace, and what SQLite left beside it."""
    try:
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be written: {error.strerror}", "is the disk full, or the folder read-only?")


def lock(path: Path) -> int:
    """A descriptor that says, while it is open, that the trace is being written; the file is made."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # SQLite's own kind of lock. It goes with the first descriptor that is closed, so it is given back here.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1)
    except OSError as error:
        os.close(descriptor)
        raise StorageError(f"{path} cannot be locked: {error.strerror}", "record on a local disk, and move the finished file") from error
    return descriptor


class Reserve:
    """Room on a trace's file system that is kept for sealing it: a file without a name, gone with the process whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            room = os.fstatvfs(self._descriptor)
            size = min(_RESERVE, room.f_bavail * room.f_frsize // _RESERVE_PART)
            self.size = self._take(self._descriptor, size)
        except OSError:
            # A file system without such files, or with no room: then sealing takes what it finds.
            self.release()

    @staticmethod
    def _take(descriptor: int, size: int) -> int:
        """Put this much aside, or less: a quota leaves less room than the file system says is free."""
        while size >= _LEAST_RESERVE:
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                    raise
                os.ftruncate(descriptor, 0)
                size //= 4
            else:
                return size
        return 0

    def release(self) -> None:
        """Give the room back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


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
            with GuardedConnection(path) as connection:
                identify(connection)
        except TraceError as error:
            raise UsageError(f"{path} is not a trace, so --force does not replace it", "name another file") from error


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """What goes wrong while writing, as a ``StorageError``."""
    try:
        yield
    except SQLITE_ERRORS as error:
        raise StorageError(f"{path} cannot be written: {error}", "is the disk full, or the folder read-only?") from error
