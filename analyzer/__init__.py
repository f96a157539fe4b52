"""From events to facts: the shadow MMU, what it shared, and reports; ``analyzer.open`` is the way in for notebooks (docs/api.md)."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyzer.api import Trace


def open(path: str | PathLike[str]) -> Trace:  # noqa: A001 - analyzer.open is how it reads
    """Open a trace file for analysis: a context manager, see ``analyzer.api.Trace``. ``TraceError`` where it is none."""
    from pathlib import Path

    from analyzer.api import Trace

    return Trace(Path(path))
