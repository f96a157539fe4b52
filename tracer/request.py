"""What is to be recorded, how far a recording is, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from db.check.rebuild import Verdict
from tracer.guest import Guest
from tracer.qemu import Capture


@dataclass(frozen=True)
class Request:
    """What to record: a guest we ship and QEMU arguments added to its own, or these alone; where to; how; until when."""

    output: Path
    guest: Guest | None = None
    arguments: Sequence[str] = ()
    program: str | None = None
    force: bool = False
    until: str | None = None
    seconds: float | None = None
    marks: Sequence[str] = ()
    checks: int = 0
    """Stops at random times at which the tables are checked against the guest's memory, besides the check at the end."""
    capture: Capture = field(default_factory=Capture)
    every_access: bool = False
    """Record each access: from the first user process on, or from the start where that moment cannot be known."""
    events: int | None = None
    """End after so many events."""
    deterministic: bool = False
    """Run on instruction counts, a fixed clock and a fixed seed: twice the same but for the very end."""
    sync: str = "normal"
    """``full``: every batch is on the disk when it is committed, power cuts included."""
    engine: str = "plugin"
    """What captures: `plugin`, `gdb`, or `gdb-net`, which sees only what changed between stops."""
    version: str = ""


@dataclass(frozen=True)
class Status:
    """Where a recording stands, for a progress display."""

    seconds: float
    events: int
    tables: int
    by_kind: tuple[int, ...]
    last_line: str


@dataclass(frozen=True)
class Outcome:
    """How a recording ended."""

    ended: str
    detail: str
    events: int
    lost: int
    verdict: Verdict | None
    not_shown: Sequence[str] = ()
    """What the guest must show by its recipe and did not, in sentences."""
