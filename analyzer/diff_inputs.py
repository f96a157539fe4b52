"""What a comparison takes on either side: a trace, replayed by a model, or facts that were written as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyzer import livekvm, replay
from analyzer.facts.collect import Facts
from analyzer.model.parameters import Parameters
from db.errors import UsageError, plainly
from db.trace import TraceReader

#: Opens a line that shows how far a replay of so many events is.
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Side:
    """One side: where its facts come from, and they themselves."""

    source: str
    model: str
    parameters: dict[str, Any]
    facts: Facts


def is_trace(path: Path) -> bool:
    """Whether this is a database, and not facts in JSON or ``-``, standard input."""
    return path.is_file() and path.open("rb").read(15) == b"SQLite format 3"


def from_trace(path: Path, model: str, parameters: Parameters, version: str, progress: Progress) -> Side:
    """A trace's facts, replayed and kept where no kept run has them; of a live KVM's log what that KVM did.

    Raises what opening and replaying raise.
    """
    with TraceReader(path) as trace:
        if (live := livekvm.stored(trace)) is not None:
            return Side(str(path), live.model, live.parameters, live.facts)
        run = replay.kept(trace, model, parameters, version)
        fresh = run is None
        if run is None:
            with progress(trace.count()) as show:
                run, _ = replay.run(trace, model, parameters, version, show)
    if fresh:
        replay.keep(path, run)
    return Side(str(path), run.model, run.parameters, run.facts)


def from_json(path: Path) -> Side:
    """The facts that ``replay --format json`` or ``report --format json`` wrote; ``UsageError`` where it is neither."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
        written = json.loads(text)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}", "shadowtrace diff takes traces, and what replay --format json writes") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is neither a trace nor JSON: {plainly(error)}", "shadowtrace replay TRACE --format json > FILE"
        ) from error
    if not isinstance(written, dict):
        raise UsageError(f"{path} holds no facts", "shadowtrace replay TRACE --format json > FILE")
    if isinstance(written.get("facts"), dict):
        run = _mapping(written.get("run"))
        return Side(str(path), str(run.get("model", "")), _mapping(run.get("parameters")), written["facts"])
    facts = {key: value for key, value in written.items() if key not in ("source", "model", "parameters")}
    if not any(isinstance(value, dict) for value in facts.values()):
        raise UsageError(f"{path} holds no facts", "shadowtrace replay TRACE --format json > FILE")
    return Side(str(path), str(written.get("model", written.get("source", ""))), _mapping(written.get("parameters")), facts)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
