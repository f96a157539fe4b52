"""What every report opens with: the trace, whether it can be believed, and what was run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analyzer.model.parameters import MODELS
from analyzer.replay import Run
from analyzer.reports.recorded import check_line, loss_line, unnamed_line
from analyzer.reports.text import printable
from db.trace import TraceReader


@dataclass(frozen=True)
class About:
    """The trace, and whether it can be believed."""

    file: str
    guest: str
    title: str
    source: str
    kernel: str | None
    qemu_version: str | None
    engine: str | None
    told_by: str | None
    unnamed: str | None
    ram_bytes: int | None
    vcpus: int
    ended: str | None
    ended_detail: str | None
    events: int
    replayed: int
    lost: int
    losses: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    marks: list[dict[str, Any]]
    live: bool
    """Whether the trace was still being recorded."""
    touch: str | None
    linger: int | None


def about(trace: TraceReader, run: Run) -> About:
    """Gather what a report opens with."""
    row = trace.recording
    losses = trace.rows("loss")
    return About(
        file=str(trace.path),
        guest=row["guest"],
        title=row["title"],
        source=row["source"],
        kernel=row["kernel"],
        qemu_version=row["qemu_version"],
        engine=row["engine"],
        told_by=row["told_by"],
        unnamed=row["unnamed"],
        ram_bytes=row["ram_bytes"],
        vcpus=row["vcpus"],
        ended=row["ended"],
        ended_detail=row["ended_detail"],
        events=trace.count(),
        replayed=run.events,
        lost=sum(loss["count"] for loss in losses),
        losses=losses,
        checks=trace.rows("memory_check"),
        marks=trace.rows("mark"),
        live=trace.live,
        touch=row["touch"],
        linger=row["linger"],
    )


def opening(about: About, run: Run) -> Iterable[str]:
    """The first lines of a report."""
    facts = [printable(about.guest), printable(about.title)]
    if about.kernel:
        facts.append(printable(about.kernel))
    facts.append(f"{about.vcpus} vCPU" + ("s" if about.vcpus > 1 else ""))
    if about.ram_bytes:
        facts.append(f"{about.ram_bytes >> 20} MiB")
    yield " · ".join(facts)
    yield _how(about)
    for loss in about.losses:
        yield f"  {loss_line(loss)}"
    yield from _checks(about.checks)
    if about.unnamed:
        yield f"  {unnamed_line(about.unnamed)}"
    yield f"{run.model}{_parameters(run)} · {run.events:,} events replayed by the {run.core} core{f' ({run.why})' if run.why else ''}"
    if about.touch == "none":
        yield _untouched(run.facts)
    changed = run.facts["contents"]["changed"]
    if changed:
        yield (
            f"  {changed:,} page contents arrived changed for frames that were still shadowed: hits are too good,"
            f" retired tables were watched for {about.linger} stores (record --retire-after-stores)"
        )


def _untouched(facts: dict[str, Any]) -> str:
    """What page tables alone tell of faults: nothing by the plugin; by gdb the accesses that ended in the guest's own page faults."""
    accesses = facts["access"]["mapped"] + facts["access"]["faults"]
    if not accesses:
        return "  page tables only: no accesses were recorded, so faults and the tables that faults build are not in these numbers"
    return (
        f"  page tables only: the {accesses:,} accesses recorded are those that ended in a guest page fault, so other faults and the tables"
        " that these build are not in these numbers"
    )


def _how(about: About) -> str:
    engine = f"{about.engine} ({about.told_by})" if about.told_by else about.engine
    how = printable(f"recorded with QEMU {about.qemu_version}, {engine}") if about.source == "record" else "imported"
    if about.ended is not None:
        end = printable(f"{about.ended}: {about.ended_detail or ''}")
        return f"{how}: {about.events:,} events, {about.lost:,} lost; {end}"
    state = (
        "STILL BEING RECORDED: this is up to here"
        if about.live
        else "NOT SEALED: the recorder was killed; lost is what it had not committed, at most its last fifth of a second and the pipe's 1 MiB"
    )
    return f"{how}: {about.events:,} events; {state}"


def _checks(checks: list[dict[str, Any]]) -> Iterable[str]:
    """The verdict of the last comparison with the guest's memory, and of all before it."""
    if not checks:
        return
    last = checks[-1]
    yield check_line(last["entries"], last["missing"], last["different"], last["leaves"], last["leaves_different"])
    wrong = [check for check in checks if check["missing"] or check["different"] or check["leaves_different"]]
    if len(checks) > 1:
        yield f"  and at {len(checks) - 1} stops before, between events {checks[0]['seq']:,} and {checks[-2]['seq']:,}: {len(wrong):,} with differences"
    for check in wrong[:1]:
        yield f"  THE TRACE IS WRONG from event {check['seq']:,} at the latest: {printable(check['detail'])}"


def _parameters(run: Run) -> str:
    """The pages and buckets, and every parameter that is not the model's own."""
    parameters = run.parameters
    text = f" · {parameters['pages']} shadow pages"
    if parameters["caching"]:
        text += f" · {parameters['buckets']} buckets ({'gfn mod n' if parameters['hash'] == 'mod' else parameters['hash']})"
    shown = {"pages", "buckets", "hash"}
    default = MODELS[run.model].parameters.as_dict() if run.model in MODELS else parameters
    changed = [f"{name} {parameters[name]}" for name in parameters if name not in shown and parameters[name] != default[name]]
    return " · ".join([text, *changed])
