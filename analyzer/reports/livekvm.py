"""What a live KVM did, and how a model differs from it, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from analyzer.facts.collect import Facts
from analyzer.livekvm import REASONS, Comparison
from analyzer.replay import Run
from analyzer.reports.about import About
from analyzer.reports.text import columns, number, printable, share
from x86.registers import Mode


def report(about: About, run: Run) -> str:
    """A live run as text: what it is, the answer, and where pages were found."""
    parts = ["\n".join(_opening(about, run)), _answer(run.facts), "Where the cache found its pages\n" + _roles(run.facts)]
    return "\n\n".join([*parts, "What January 2007 had no word for\n" + "\n".join(_news(run.facts))])


def _opening(about: About, run: Run) -> Iterable[str]:
    yield f"{printable(about.guest)} · {about.vcpus} vCPU{'s' if about.vcpus > 1 else ''}"
    yield f"{printable(run.model)} · {run.events:,} tracepoints in {run.seconds:.2f} s, {about.lost:,} lost; nothing was replayed"
    for loss in about.losses:
        yield f"  LOST {loss['count']:,} events: {printable(loss['cause'])}"


def _answer(facts: Facts) -> str:
    lookups, hits = facts["get_page"]["lookups"], facts["get_page"]["hits"]
    parts = [f"{lookups:,} lookups, {share(hits, lookups)}% hit"]
    if "events" in facts:
        parts.insert(0, f"{facts['events']['cr3']:,} cr3 loads that exit")
    if "access" in facts:
        parts.append(f"{facts['access']['faults']:,} faults, {facts['access']['guest_faults']:,} of them the guest's own")
    if "zaps" in facts:
        parts.append(f"{facts['zaps']['total']:,} pages zapped")
    return "    ".join(parts)


def _roles(facts: Facts) -> str:
    rows = [("mode", "level", "quadrant", "meta", "lookups", "hits", "hit%", "made", "alive", "peak", "zapped", "unsync", "")]
    for role in sorted(facts["roles"], key=lambda role: (-role["glevels"], -role["level"], role["metaphysical"], role["quadrant"])):
        rows.append(
            (
                Mode(role["glevels"]).label,
                str(role["level"]),
                str(role["quadrant"]) if role["glevels"] in (0, 2) else "",
                "meta" if role["metaphysical"] else "",
                number(role["lookups"]),
                number(role["hits"]),
                share(role["hits"], role["lookups"]),
                number(role["made"]),
                number(role["live"]),
                number(role["peak"]),
                number(role["deaths"].get("zap", 0)),
                number(role["unsyncs"]),
                "",
            )
        )
    return columns(rows, "  ")


def _news(facts: Facts) -> Iterable[str]:
    live = facts["live_kvm"]
    yield f"  {live['unsyncs']:,} times a leaf table went unsync, {live['syncs']:,} times one was synced"
    yield f"  {live['roots_zapped']:,} roots in use were zapped and marked invalid"
    yield f"  {live['keys_with_several_rights']:,} of {live['keys']:,} keys had pages with different rights"


def comparison(found: Comparison, model: str, live: str) -> str:
    """Where a model and a live KVM made another number of pages, each with the reason."""
    lines = [
        f"{printable(model)} and {printable(live)} both made the pages of {found.both:,} keys, {found.equal:,} of them equally often;"
        f" {len(found.differences):,} keys differ"
    ]
    if not found.differences:
        return lines[0]
    rows = [("gfn", "level", "quadrant", "meta", "model", "KVM", "because")]
    for difference in found.differences:
        key = difference.key
        rows.append(
            (
                *(f"{key.gfn:#x}", str(key.level), str(key.quadrant), "meta" if key.metaphysical else ""),
                *(number(difference.model), number(difference.live), ", ".join(difference.reasons) or "NOT EXPLAINED"),
            )
        )
    lines.append(columns(rows, "  "))
    met = [reason for reason in REASONS if any(reason in difference.reasons for difference in found.differences)]
    return "\n".join([*lines, *(f"  {reason}: {REASONS[reason]}" for reason in met)])
