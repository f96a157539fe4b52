"""Writes docs/reliability.md: its text, and the figures that make test-faults and make fuzz left."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent


def page() -> str:
    """The page's text."""
    path = FOLDER / "reliability.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    rows = [
        f"| {name} | {', '.join(_words(key, value) for key, value in figures.items() if key not in ('day', 'machine'))}"
        f" | {figures['day']}, {figures['machine']} |"
        for name, figures in sorted(known.items())
    ]
    table = "\n".join(["| tried | figures | when and where |", "| --- | --- | --- |", *rows])
    return f"{(FOLDER / 'reliability.head.md').read_text()}\n## Figures\n\n{table}\n"


def _words(key: str, value: float | str) -> str:
    return f"{key.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{key.replace('_', ' ')} {value}"


if __name__ == "__main__":
    (FOLDER / "reliability.md").write_text(page())
