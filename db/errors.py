"""Errors that a user can meet."""

from __future__ import annotations

EXIT_OURS = 1
EXIT_USAGE = 2
EXIT_LIMIT = 3
EXIT_INTERRUPTED = 130


class ShadowtraceError(Exception):
    """What happened, in one sentence; what to do about it (``hint``); the exit code it ends with."""

    exit_code = EXIT_OURS

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


class UsageError(ShadowtraceError):
    """The user asked for something that cannot be done as asked."""

    exit_code = EXIT_USAGE


class TraceError(UsageError):
    """A file is not a trace, or not one that can be used as asked."""


class StorageError(ShadowtraceError):
    """The trace file could not be written: disk full, file gone, folder read-only."""
