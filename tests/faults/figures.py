"""What a run of these tests has to tell, for docs/reliability.md: written where SHADOWTRACE_FIGURES names a file."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path


def note(name: str, **figures: int | float | str) -> None:
    """Keep the figures of one promise, with the day."""
    target = os.environ.get("SHADOWTRACE_FIGURES")
    if target is None:
        return
    path = Path(target)
    known = json.loads(path.read_text()) if path.is_file() else {}
    known[name] = {**figures, "day": datetime.now(UTC).date().isoformat(), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
