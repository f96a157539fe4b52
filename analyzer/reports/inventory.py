"""What is in a trace, for a terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from analyzer.reports.recorded import check_line, loss_line, unnamed_line
from analyzer.reports.text import columns, number, printable, share, space_name
from analyzer.trace.inventory import Inventory
from x86.event import Kind

_KINDS = tuple(kind.name.lower() for kind in (Kind.ACCESS, Kind.WRITE, Kind.CR3, Kind.PAGE, Kind.INVLPG, Kind.REGS))


def text(found: Inventory, most: int | None = 20) -> str:
    """The inventory as tables; ``most`` address spaces at the most, those that stayed longest."""
    parts = [
        "\n".join(_opening(found)),
        _by("phase", [(phase.name, phase.kinds) for phase in found.phases], found.kinds),
    ]
    if len(found.vcpus) > 1:
        parts.append(_by("vCPU", [(str(vcpu), kinds) for vcpu, kinds in found.vcpus.items()], found.kinds))
    if found.spaces:
        parts.append(_spaces(found, most))
    return "\n\n".join(part for part in parts if part)


def as_json(found: Inventory) -> str:
    """The inventory as one JSON object."""
    return json.dumps(asdict(found), indent=1)


def _opening(found: Inventory) -> Iterable[str]:
    row = found.recording
    about = [row["guest"], row["title"], row["kernel"], f"{row['vcpus']} vCPU" + ("s" if row["vcpus"] > 1 else "")]
    yield " · ".join(printable(str(part)) for part in about if part)
    if row["source"] == "record":
        touch = {"first": "first touches", "every": "every access from the first user process on", "none": "no accesses"}.get(
            row["touch"], ""
        )
        yield printable(
            f"recorded {row['started'] or ''} with QEMU {row['qemu_version']}, {row['engine']}: {touch}, linger {row['linger']}"
        )
    yield _end(found)
    each = f", {found.bytes / found.events:.1f} bytes an event" if found.events else ""
    yield f"{found.events:,} events, {found.bytes:,} bytes{each}"
    if row.get("digest"):
        yield printable(f"digest {row['digest']}")
    if row.get("unnamed"):
        yield f"  {unnamed_line(row['unnamed'])}"
    for loss in found.losses:
        yield f"  {loss_line(loss)}"
    for check in found.checks:
        seq = f"after event {check['seq']:,}: "
        yield seq + check_line(check["entries"], check["missing"], check["different"], check["leaves"], check["leaves_different"])
    if found.contents:
        yield f"{found.frames:,} frames were tables, {found.contents:,} contents of {found.content_bytes:,} bytes"
    if found.end_tables:
        yield "tables at the end: " + ", ".join(f"level {level}: {count:,}" for level, count in found.end_tables.items())
    for run in found.runs:
        yield printable(f"run kept: {run['model']} of {run['events']:,} events by the {run['core']} core in {run['seconds']:.1f} s")


def _end(found: Inventory) -> str:
    row = found.recording
    if row["ended"] is None:
        return "still being recorded" if found.live else "not sealed: the recording did not finish"
    return printable(f"ended: {row['ended']}: {row['ended_detail'] or ''}; {row['lost'] or 0:,} events lost")


def _by(what: str, groups: list[tuple[str, dict[str, int]]], total: dict[str, int]) -> str:
    rows = [(what, "events", *_KINDS, "")]
    rows += [_counts(printable(name), kinds) for name, kinds in groups]
    if len(groups) > 1:
        rows.append(_counts("all", total))
    return columns(rows)


def _counts(name: str, kinds: dict[str, int]) -> tuple[str, ...]:
    return (name, number(sum(kinds.values())), *(number(kinds.get(kind, 0)) for kind in _KINDS), "")


def _spaces(found: Inventory, most: int | None) -> str:
    whole = found.events * found.recording["vcpus"]
    order: list[Any] = sorted(found.spaces, key=lambda space: (-space.resident, space.first))[:most]
    rows = [("address space", "root", "cr3 loads", "events", "%", "from", "")]
    for space in order:
        rows.append(
            (
                space_name(space),
                space.where,
                number(space.loads),
                number(space.resident),
                share(space.resident, whole),
                number(space.first),
                "",
            )
        )
    left = len(found.spaces) - len(order)
    return columns(rows) + (f"\n{left:,} more; --all shows them" if left else "")
