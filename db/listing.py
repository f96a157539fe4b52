"""The traces that lie in folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from db.errors import ShadowtraceError, TraceError, UsageError
from db.trace import TraceReader


@dataclass(frozen=True)
class Listed:
    """One trace in a line."""

    path: str
    guest: str
    kernel: str | None
    events: int
    lost: int
    bytes: int
    ended: str | None
    """How it ended; ``None``: not sealed."""
    live: bool
    started: str | None
    runs: list[str]
    """The models of the kept runs."""
    wrong: str = ""
    """Why the file could not be read; empty where it could."""


def listing(paths: Sequence[Path]) -> Iterator[Listed]:
    """Every trace in these folders, and every file that is named itself. ``UsageError`` where a name is neither."""
    for path in paths:
        if path.is_dir():
            for file in sorted(path.iterdir()):
                if file.is_file() and file.suffix in (".db", ".sqlite", ".trace") and (found := _listed(file, named=False)):
                    yield found
        elif path.is_file():
            if found := _listed(path, named=True):
                yield found
        else:
            raise UsageError(f"there is no file or folder {path}", "shadowtrace ls [FOLDER | TRACE]...")


def _listed(path: Path, named: bool) -> Listed | None:
    """A file's line; ``None`` for one that was not named and is no trace at all."""
    try:
        with TraceReader(path, check=False) as trace:
            row = trace.recording
            return Listed(
                path=str(path),
                guest=row["guest"],
                kernel=row["kernel"],
                events=trace.count(),
                lost=row["lost"] or 0,
                bytes=path.stat().st_size,
                ended=row["ended"],
                live=trace.live,
                started=row["started"],
                runs=[run["model"] for run in trace.rows("run")],
            )
    except TraceError as error:
        if not named and str(error).endswith("is not a trace"):
            return None
        return _unreadable(path, str(error))
    except (ShadowtraceError, OSError) as error:
        return _unreadable(path, str(error))


def _unreadable(path: Path, why: str) -> Listed:
    return Listed(str(path), "", None, 0, 0, path.stat().st_size, None, False, None, [], why.removeprefix(f"{path} "))
