"""What a Linux guest of ours prints of the processes it starts, and what a trace says of them."""

from __future__ import annotations

import json
import re
from typing import Any

from db.event import Kind
from db.trace import TraceReader


def printed(trace: TraceReader) -> dict[int, list[str]]:
    """Command lines by process id, as init printed them."""
    lines = (re.fullmatch(r"shadowtrace: process (\d+): (.*)", row["line"]) for row in trace.rows("console"))
    return {int(line[1]): line[2].split() for line in lines if line}


def recorded(trace: TraceReader) -> dict[int, list[str]]:
    """The same from the trace: the program's name as the guest keeps it, and its arguments."""
    return {row["pid"]: [row["comm"], *json.loads(row["argv"])[1:]] for row in programs(trace)}


def programs(trace: TraceReader) -> list[dict[str, Any]]:
    """The names that were learnt at an exec; the kernel's own address spaces have no process id."""
    return [row for row in trace.rows("address_space") if row["pid"] is not None]


def check(trace: TraceReader) -> None:
    """Every process that init printed has its name, and its root was loaded."""
    told, names = printed(trace), recorded(trace)
    assert len(told) == 3
    assert {pid: names.get(pid) for pid in told} == told
    first = programs(trace)[0]
    assert (first["comm"], first["pid"], json.loads(first["argv"])) == ("init", 1, ["/bin/busybox", "sh", "/init"])
    loads = [event.addr for event in trace.events((Kind.CR3,))]
    roots = {load & ~0xFFF for load in loads} | {load & ~0x1F for load in loads if trace.recording["guest"] == "686-pae"}
    assert {row["root"] for row in programs(trace)} <= roots
    assert sum(words == ["busybox", "true"] for words in names.values()) == 110
