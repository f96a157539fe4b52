"""A list of traces, for a terminal and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from analyzer.reports.text import columns, number, printable
from db.listing import Listed


def text(found: Sequence[Listed]) -> str:
    """A line for each trace, and what is wrong with those that could not be read."""
    rows = [("trace", "events", "MB", "ended", "guest", "kernel", "lost", "runs kept")]
    for one in found:
        if one.wrong:
            rows.append((printable(one.path), "", f"{one.bytes / 1e6:.1f}", "-", "", "", "", ""))
            continue
        runs = ", ".join(f"{count} x {model}" if count > 1 else model for model, count in Counter(one.runs).items())
        ended = one.ended or ("recording" if one.live else "not sealed")
        about = (printable(ended), printable(one.guest), printable(one.kernel or ""))
        rows.append((printable(one.path), number(one.events), f"{one.bytes / 1e6:.1f}", *about, number(one.lost), printable(runs)))
    wrong = [f"{printable(one.path)} {printable(one.wrong)}" for one in found if one.wrong]
    return "\n".join([columns(rows, left=1), *wrong])


def as_json(found: Sequence[Listed]) -> str:
    """A JSON array, an object for each trace."""
    return json.dumps([asdict(one) for one in found], indent=1)
