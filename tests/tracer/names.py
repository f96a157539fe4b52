"""What a Linux guest of ours prints of the processes it starts, and what a trace says of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from db.trace import TraceReader
from x86.event import Kind


def printed(trace: TraceReader) -> dict[int, list[str]]:
    """Command lines by process id, as init printed them."""
    lines = (re.fullmatch(r"shadowtrace: process (\d+): (.*)", row["line"]) for row in trace.rows("console"))
    return {int(line[1]): line[2].split() for line in lines if line}


def recorded(trace: TraceReader) -> dict[int, list[str]]:
    """The same from the trace: the program's name as the guest keeps it, and its arguments."""
    return {row["pid"]: [row["comm"], *json.loads(row["argv"])[1:]] for row in learnt(trace, "exec")}


def learnt(trace: TraceReader, how: str) -> list[dict[str, Any]]:
    """What became of address spaces that was learnt in one way."""
    return [row for row in trace.rows("address_space") if row["learnt"] == how]


def alive(trace: TraceReader) -> set[int]:
    """The roots of processes that have not been freed; none is another's before it was."""
    roots: set[int] = set()
    for row in trace.rows("address_space"):
        if row["learnt"] == "end":
            roots.discard(row["root"])
        elif row["learnt"] != "symbol":
            assert row["root"] not in roots, row
            roots.add(row["root"])
    return roots


def check(trace: TraceReader) -> None:
    """Every process that init printed has its name, its root was loaded, and its address space ended."""
    told, names, programs = printed(trace), recorded(trace), learnt(trace, "exec")
    assert trace.recording["unnamed"] is None
    assert len(told) == 3
    assert {pid: names.get(pid) for pid in told} == told
    first = programs[0]
    assert (first["comm"], first["pid"], json.loads(first["argv"])) == ("init", 1, ["/bin/busybox", "sh", "/init"])
    loads = [event.addr for event in trace.events((Kind.CR3,))]
    roots = {load & ~0xFFF for load in loads} | {load & ~0x1F for load in loads if trace.recording["guest"].startswith("686-pae")}
    assert {row["root"] for row in programs} <= roots
    assert sum(words == ["busybox", "true"] for words in names.values()) == 110
    # Whoever was executed had been forked, but for init; each of both has freed its table before the next one had it; init and poweroff never do.
    forks = learnt(trace, "fork")
    assert {row["pid"] for row in forks} == {row["pid"] for row in programs} - {1}
    assert {row["comm"] for row in forks} == {"init"}
    assert alive(trace) == {first["root"], programs[-1]["root"]}
    assert Counter(row["pid"] for row in programs).most_common(1)[0][1] == 1
