"""Errors that a user can meet."""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Iterable

EXIT_OURS = 1
EXIT_USAGE = 2
EXIT_LIMIT = 3
EXIT_INTERRUPTED = 130


def nearest(word: str, names: Iterable[str]) -> str:
    """The beginning of a hint that asks for the name that was meant; empty where none is near."""
    found = difflib.get_close_matches(word, list(names), 1)
    return f"did you mean {found[0]}? " if found else ""


def plainly(error: Exception) -> str:
    """What an error met while reading a file says of it, in our words; one that we raised ourselves says it already."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"this is no JSON from character {error.pos + 1} on"
    if isinstance(error, EOFError | zlib.error):
        return "its gzip'ped data is cut short or damaged"
    if isinstance(error, OSError):
        return (error.strerror or "it is not in gzip").lower()
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return "a value is of another type than it must be" if isinstance(error, TypeError | AttributeError) else str(error)


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
