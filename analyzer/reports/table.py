"""The report for a terminal: what it is, how it was judged, the answer; then where, why and what it is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analyzer.facts import Facts
from analyzer.model import MODELS
from analyzer.replay import Run
from analyzer.reports.recorded import check_line
from analyzer.reports.text import columns, number, printable, share
from db.trace import TraceReader
from x86.registers import Mode

_CAUSES = {
    "flood": "flood",
    "misaligned": "misaligned store",
    "misaligned_and_flood": "misaligned flood",
    "user_fault": "user store",
    "evict": "eviction",
    "dropped": "root load",
}


@dataclass(frozen=True)
class About:
    """What every report opens with: the trace, and whether it can be believed."""

    guest: str
    title: str
    source: str
    kernel: str | None
    qemu_version: str | None
    engine: str | None
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
        guest=row["guest"],
        title=row["title"],
        source=row["source"],
        kernel=row["kernel"],
        qemu_version=row["qemu_version"],
        engine=row["engine"],
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


def report(about: About, run: Run, everything: bool = False) -> str:
    """The whole report as text. ``everything`` unfolds rows that say the same."""
    facts = run.facts
    parts = [
        "\n".join(_opening(about, run)),
        _answer(facts),
        "Where the cache found its pages\n" + _roles(facts, everything),
        "One guest page, several shadow pages\n" + "\n".join(_frames(facts)),
        "One shadow page, several parents\n" + _parents(facts),
        "How shadow pages died\n" + "\n".join(_deaths(facts)),
        "What each part of the key kept apart\n" + "\n".join(_key(facts)),
    ]
    corners = list(_corners(facts))
    if corners:
        parts.append("Where 2.6.20 itself would have broken\n" + "\n".join(corners))
    return "\n\n".join(parts)


def _opening(about: About, run: Run) -> Iterable[str]:
    facts = [printable(about.guest), printable(about.title)]
    if about.kernel:
        facts.append(printable(about.kernel))
    facts.append(f"{about.vcpus} vCPU" + ("s" if about.vcpus > 1 else ""))
    if about.ram_bytes:
        facts.append(f"{about.ram_bytes >> 20} MiB")
    yield " · ".join(facts)
    yield _how(about)
    for loss in about.losses:
        yield f"  LOST {loss['count']:,} events of vCPU {loss['vcpu']} after event {loss['seq']:,}: {printable(loss['cause'])}"
    yield from _checks(about.checks)
    yield f"{run.model}{_parameters(run)} · {run.events:,} events replayed by the {run.core} core{f' ({run.why})' if run.why else ''}"
    if about.touch == "none":
        yield "  page tables only: no accesses were recorded, so faults and the tables that faults build are not in these numbers"
    changed = run.facts["contents"]["changed"]
    if changed:
        yield (
            f"  {changed:,} page contents arrived changed for frames that were still shadowed: hits are too good,"
            f" retired tables were watched for {about.linger} stores (record --linger)"
        )


def _how(about: About) -> str:
    how = f"recorded with QEMU {about.qemu_version}, {about.engine}" if about.source == "record" else "imported"
    if about.ended is not None:
        return f"{how}: {about.events:,} events, {about.lost:,} lost; {about.ended}: {printable(about.ended_detail or '')}"
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


def _answer(facts: Facts) -> str:
    lookups, hits = facts["get_page"]["lookups"], facts["get_page"]["hits"]
    return (
        f"{facts['events']['cr3']:,} cr3 loads  ->  {lookups:,} lookups, {share(hits, lookups)}% hit"
        f"    {facts['access']['faults']:,} faults of {facts['access']['mapped'] + facts['access']['faults']:,} accesses"
        f"    {facts['writes']['protected']:,} stores to tables emulated"
        f"    {facts['zaps']['total']:,} pages zapped"
    )


def _roles(facts: Facts, everything: bool) -> str:
    rows = [("mode", "level", "quadrant", "meta", "lookups", "hits", "hit%", "made", "alive", "peak", "died of")]
    groups: dict[Any, list[Facts]] = {}
    for role in facts["roles"]:
        same = (
            role["glevels"],
            role["level"],
            role["metaphysical"],
            role["lookups"],
            role["hits"],
            role["made"],
            role["live"],
            role["peak"],
        )
        key = (same, repr(role["deaths"])) if not everything else (same, role["quadrant"])
        groups.setdefault(key, []).append(role)
    order = sorted(groups.values(), key=lambda g: (-g[0]["glevels"], -g[0]["level"], g[0]["metaphysical"], g[0]["quadrant"]))
    for group in order:
        role = group[0]
        times = f"{len(group)} x " if len(group) > 1 else ""
        rows.append(
            (
                _mode(role["glevels"]),
                str(role["level"]),
                _span([r["quadrant"] for r in group]) if role["glevels"] in (0, 2) else "",
                "meta" if role["metaphysical"] else "",
                times + number(role["lookups"]),
                times + number(role["hits"]),
                share(role["hits"], role["lookups"]),
                times + number(role["made"]),
                number(role["live"]),
                number(role["peak"]),
                _causes(role),
            )
        )
    return columns(rows, "  ")


def _mode(glevels: int) -> str:
    return Mode(glevels).label


def _span(quadrants: list[int]) -> str:
    if len(quadrants) > 2 and quadrants[-1] - quadrants[0] == len(quadrants) - 1:
        return f"{quadrants[0]}..{quadrants[-1]}"
    return ", ".join(map(str, quadrants))


def _causes(role: Facts) -> str:
    parts = [f"{_CAUSES[cause]} {count:,}" for cause, count in role["deaths"].items()]
    emptied = sum(role["emptied"].values())
    return ", ".join([*parts, f"{emptied:,} roots emptied"] if emptied else parts)


def _frames(facts: Facts) -> Iterable[str]:
    frames = facts["frames"]
    ways = {
        "level": "across levels",
        "quadrant": "across quadrants",
        "glevels": "across paging modes",
        "metaphysical": "as itself and in a big page",
    }
    yield f"  {number(frames['told_apart_by']['several']['now'])} of {frames['shadowed']:,} shadowed frames now, {number(frames['told_apart_by']['several']['peak'])} at the peak"
    rows = [("  told apart", "now", "peak", "")]
    rows += [
        (f"  {text}", number(frames["told_apart_by"][part]["now"]), number(frames["told_apart_by"][part]["peak"]), "")
        for part, text in ways.items()
    ]
    rows += [(f"  {row['pages']} pages at once", number(row["now"]), number(row["peak"]), "") for row in frames["by_pages"]]
    yield columns(rows)


def _parents(facts: Facts) -> str:
    rows = [("level", "alive", "several parents", "most", "whose", "chains", "not full", "")]
    for row in reversed(facts["parents"]):
        whose = "" if row["most_shared_gfn"] is None else f"gfn {row['most_shared_gfn']:#x}"
        counts = (number(row["pages"]), number(row["several_parents"]), number(row["most_parents"]), whose)
        rows.append((str(row["level"]), *counts, number(row["chains"]), number(row["chains_not_full"]), ""))
    peak = facts["multimapped"]["peak"]
    return (
        columns(rows, "  ")
        + f"\n  pages with a pte chain, which stays until the last parent goes: {number(peak)} at the peak, {number(facts['multimapped']['end'])} now"
    )


def _deaths(facts: Facts) -> Iterable[str]:
    zaps = facts["zaps"]
    for cause, text in _CAUSES.items():
        if zaps[cause]:
            yield f"  {text}: {zaps[cause]:,} of {zaps['total']:,} zaps ({share(zaps[cause], zaps['total'])}%)"
    if zaps["root_kept"]:
        yield f"  {zaps['root_kept']:,} of them were roots in use: emptied, but kept"
    yield f"  {facts['live']['total']:,} alive at the end, {number(facts['live']['orphans'])} of them without a parent"


def _key(facts: Facts) -> Iterable[str]:
    misses = facts["get_page"]["misses"]
    for part, count in facts["key"].items():
        yield f"  {part}: {number(count)} of {misses:,} misses had a live page of the same frame that differed in nothing else"


def _corners(facts: Facts) -> Iterable[str]:
    for corner, count in facts["corner"].items():
        if count:
            yield f"  {corner.replace('_', ' ')}: {count:,}"
