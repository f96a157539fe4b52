"""What a real KVM did, from its ``kvmmmu:*`` tracepoints: facts in the form of a replay's, and both held against each other.

Linux 6.1 is not the design of January 2007. Its log is read with these allowances (docs/peers.md says why):

- ``glevels`` is not in its key: it is taken from the root in force.
- ``direct`` is ``metaphysical``. With paging off its roots are frames i << 18; the second half of a 4 MiB page is the frame
  0x200 further on. Both get the frame and the quadrant that 2007's key has.
- Rights are in its key and not in 2007's: pages that differ in nothing else have one key here.
- A zap of a page that is ``invalid`` is the release of a root that was zapped before: it is left out.
- What is zapped after the last look-up is the end of the machine: it is left out too.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from analyzer.facts.collect import Facts
from analyzer.model.parameters import Parameters
from analyzer.model.role import Role, unpack
from analyzer.replay import Run, replay_best
from db.errors import UsageError
from db.exchange.importing import new_trace
from db.exchange.kvmmmu import PAGE_EVENTS, SOURCE, Lost, OtherEvent, PageEvent, Record, read
from db.trace import TraceReader

_GET, _ZAP, _SYNC, _UNSYNC = PAGE_EVENTS
_GIB_FRAMES = 1 << 18
_HALF_OF_4M = 0x200


class Key(NamedTuple):
    """The key of January 2007 without ``glevels``."""

    gfn: int
    level: int
    quadrant: int
    metaphysical: int


@dataclass
class _Tally:
    """What happened to the pages of one role."""

    lookups: int = 0
    hits: int = 0
    made: int = 0
    live: int = 0
    peak: int = 0
    zapped: int = 0
    syncs: int = 0
    unsyncs: int = 0


@dataclass
class KeyHistory:
    """What KVM did with the pages of one key."""

    made: int = 0
    zapped: int = 0
    unsyncs: int = 0
    rights: set[str] = field(default_factory=set)
    """Of the pages made: 6.1 makes one for each."""
    twins: int = 0
    """Pages made while one that the log prints the same was alive: what it does not print, CR0.WP, told them apart."""
    glevels: set[int] = field(default_factory=set)
    """Of the roots under which it was looked up."""


@dataclass
class LiveRun:
    """A log, counted."""

    keys: dict[Key, KeyHistory] = field(default_factory=dict)
    roles: dict[Role, _Tally] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """Events by name, and a few of what their texts say."""
    losses: list[Lost] = field(default_factory=list)
    events: int = 0
    seconds: float = 0.0
    threads: set[int] = field(default_factory=set)
    """Of the look-ups: the vCPUs."""
    frames: Counter[int] = field(default_factory=Counter)
    """Live pages of each frame."""
    pages_per_frame_peak: Counter[int] = field(default_factory=Counter)


def glevels_in_force(records: Iterable[Record]) -> Iterator[tuple[Record, int]]:
    """Each record with the guest's paging levels: 0 off, 2, 3 or 4, by the roots looked up before it, for each thread.

    A level-4 page is a long-mode root; a level-2 page with entries of 4 bytes is a two-level one; a level-2 page is a PAE root
    unless long mode is on, which only paging off comes after; direct level-2 pages of the first four GiB in a row are the roots
    of paging off.
    """
    modes: dict[int, int] = {}
    ahead: deque[Record] = deque()
    rest = iter(records)
    while True:
        while len(ahead) < 4 and (record := next(rest, None)) is not None:
            ahead.append(record)
        if not ahead:
            return
        record = ahead[0]
        if isinstance(record, Lost):
            yield ahead.popleft(), 0
            continue
        mode = modes.get(record.thread, 0)
        if isinstance(record, PageEvent) and record.name == _GET:
            mode = modes[record.thread] = _mode(record, mode, list(ahead))
        yield ahead.popleft(), mode


def _mode(page: PageEvent, before: int, ahead: list[Record]) -> int:
    if page.level >= 4:
        return 4
    if page.level != 2:
        return before
    if page.direct:
        in_a_row = [other.gfn for other in ahead if isinstance(other, PageEvent) and other.direct and other.level == 2]
        return 0 if before != 4 or in_a_row == [i * _GIB_FRAMES for i in range(4)] else before
    if page.entry_bytes == 4:
        return 2
    return 4 if before == 4 else 3


def key_of(page: PageEvent, glevels: int) -> tuple[Role, Key]:
    """The role and key that January 2007 would have had for a page of Linux 6.1."""
    gfn, quadrant = page.gfn, page.quadrant
    if page.direct and glevels == 0:
        gfn, quadrant = (0, gfn // _GIB_FRAMES & 3) if page.level == 2 else (gfn, gfn // _HALF_OF_4M & 1)
    elif page.direct and page.entry_bytes == 4:
        gfn, quadrant = gfn & ~_HALF_OF_4M, gfn // _HALF_OF_4M & 1
    role = Role(glevels, page.level, quadrant, int(page.direct))
    return role, Key(gfn, page.level, quadrant, int(page.direct))


def count(records: Iterable[Record]) -> LiveRun:
    """A log, counted."""
    run = LiveRun()
    live: dict[tuple[object, ...], list[tuple[Role, Key]]] = {}
    start: float | None = None
    #: Zaps since the last event of another kind: they count once it is known that the machine goes on.
    pending: list[PageEvent] = []
    for record, glevels in glevels_in_force(records):
        if isinstance(record, Lost):
            run.losses.append(record)
            continue
        start = record.time if start is None else start
        run.events, run.seconds = run.events + 1, record.time - start
        if isinstance(record, PageEvent) and record.name == _ZAP:
            pending.append(record)
            continue
        for page in pending:
            _zap(run, live, page)
        pending.clear()
        if isinstance(record, OtherEvent):
            _count_other(run, record)
        else:
            _count_page(run, live, record, glevels)
    run.counts["teardown"] = len(pending)
    return run


def _identity(page: PageEvent) -> tuple[object, ...]:
    return page.gfn, page.level, page.entry_bytes, page.quadrant, page.direct, page.access


def _count_page(run: LiveRun, live: dict[tuple[object, ...], list[tuple[Role, Key]]], page: PageEvent, glevels: int) -> None:
    run.counts[page.name] += 1
    role, key = key_of(page, glevels)
    known = live.get(_identity(page))
    if page.name != _GET:
        # What is synced was made under the role that it was made under, whichever root is in force now.
        role, key = known[-1] if known else (role, key)
    tally = run.roles.setdefault(role, _Tally())
    history = run.keys.setdefault(key, KeyHistory())
    if page.name == _SYNC:
        tally.syncs += 1
    elif page.name == _UNSYNC:
        tally.unsyncs += 1
        history.unsyncs += 1
    else:
        run.threads.add(page.thread)
        tally.lookups += 1
        history.glevels.add(glevels)
        if not page.created:
            tally.hits += 1
            return
        tally.made += 1
        tally.live += 1
        tally.peak = max(tally.peak, tally.live)
        history.made += 1
        history.rights.add(page.access)
        history.twins += bool(known)
        live.setdefault(_identity(page), []).append((role, key))
        _count_frame(run, key.gfn, 1)


def _zap(run: LiveRun, live: dict[tuple[object, ...], list[tuple[Role, Key]]], page: PageEvent) -> None:
    run.counts[page.name] += 1
    if page.invalid:
        run.counts["released"] += 1
        return
    if page.root_count:
        run.counts["roots zapped"] += 1
    made = live.get(_identity(page))
    if not made:
        run.counts["zapped unseen"] += 1
        return
    role, key = made.pop()
    run.roles[role].live -= 1
    run.roles[role].zapped += 1
    run.keys[key].zapped += 1
    _count_frame(run, key.gfn, -1)


def _count_frame(run: LiveRun, gfn: int, change: int) -> None:
    run.frames[gfn] += change
    if not run.frames[gfn]:
        del run.frames[gfn]


def _count_other(run: LiveRun, event: OtherEvent) -> None:
    run.counts[event.name] += 1
    if event.name == "kvm_exit":
        for reason in ("write_cr3", "invlpg"):
            run.counts[reason] += f" reason {reason} " in event.text
    elif event.name == "kvm_inj_exception":
        run.counts["injected"] += event.text.startswith("#PF")


def facts(run: LiveRun) -> Facts:
    """What a log tells, in the form of a replay's facts; what it has no tracepoint for is left out, not 0.

    What a replay has no word for is in ``live_kvm``.
    """
    counts = run.counts
    roles = sorted(run.roles.items())
    looked_up = [{**role._asdict(), "lookups": t.lookups, "hits": t.hits, "misses": t.made} for role, t in roles if t.lookups]
    hits = sum(tally.hits for _, tally in roles)
    out: Facts = {
        "get_page": {"lookups": counts[_GET], "hits": hits, "misses": counts[_GET] - hits, "by_role": looked_up},
        "live": {
            "total": sum(tally.live for _, tally in roles),
            "by_role": [{**role._asdict(), "pages": tally.live} for role, tally in roles if tally.live],
        },
        "roles": [
            {
                **role._asdict(),
                **{name: getattr(tally, name) for name in ("lookups", "hits", "made", "live", "peak")},
                "deaths": {"zap": tally.zapped} if tally.zapped else {},
                "emptied": {},
                "syncs": tally.syncs,
                "unsyncs": tally.unsyncs,
            }
            for role, tally in roles
        ],
        "frames": {"shadowed": len(run.frames)},
        "live_kvm": {
            "syncs": counts[_SYNC],
            "unsyncs": counts[_UNSYNC],
            "roots_zapped": counts["roots zapped"],
            "roots_released": counts["released"],
            "zapped_at_the_end": counts["teardown"],
            "zapped_unseen": counts["zapped unseen"],
            "keys": len(run.keys),
            "keys_with_several_rights": sum(1 for history in run.keys.values() if len(history.rights) > 1),
        },
    }
    if counts[_ZAP]:
        out["zaps"] = {"total": counts[_ZAP] - counts["released"]}
    if counts["kvm_exit"]:
        out["events"] = {"cr3": counts["write_cr3"], "invlpg": counts["invlpg"]}
    if counts["kvm_page_fault"]:
        out["access"] = {"faults": counts["kvm_page_fault"], "guest_faults": counts["injected"]}
    if counts["kvm_mmu_set_spte"]:
        out["fills"] = {"leaf": counts["kvm_mmu_set_spte"]}
    return out


def import_log(source: Path, target: Path, force: bool, kernel: str | None, version: str) -> LiveRun:
    """Read a log into a new trace file that holds one run and no events; what was counted.

    ``kernel`` is the host's version, which the log does not say. Raises ``UsageError`` where there is nothing of a shadow page in it.
    """
    with new_trace(source, target, force) as writer:
        counted = count(read(source))
        if not counted.keys:
            raise UsageError(f"{source} has no event of a shadow page", "trace kvmmmu:* of a host without EPT or NPT: docs/peers.md")
        model = model_name(kernel)
        title = f"what {model} did, from {source.name}"
        writer.describe(source=SOURCE, guest=source.name, title=title, vcpus=max(1, len(counted.threads)), version=version)
        for number, lost in enumerate(counted.losses, 1):
            writer.add("loss", id=number, vcpu=0, seq=0, count=lost.events, cause=f"lost by the host's tracer, says line {lost.line}")
        writer.add(
            "run",
            id=1,
            model=model,
            parameters=json.dumps({"kernel": kernel}),
            version=version,
            core="live",
            events=counted.events,
            seconds=counted.seconds,
            facts=json.dumps(facts(counted)),
        )
        writer.seal("import", f"imported from {source.name}")
    return counted


def model_name(kernel: str | None) -> str:
    """What a live run is called where models have names."""
    return f"kvm-{kernel} (live)" if kernel else "kvm (live)"


def stored(trace: TraceReader) -> Run | None:
    """The run in a trace that ``import_log`` wrote; ``None`` in any other."""
    if trace.recording["source"] != SOURCE:
        return None
    runs = trace.rows("run")
    try:
        parameters, told = (json.loads(runs[0][name]) for name in ("parameters", "facts"))
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise trace.damaged("it holds no run of a live KVM") from error
    if not isinstance(parameters, dict) or not _like(told, facts(LiveRun())):
        raise trace.damaged("its run is none of a live KVM")
    row = runs[0]
    return Run(row["model"], parameters, row["version"], row["core"], row["events"], row["seconds"], told)


def _like(told: Any, known: Any) -> bool:
    """Whether facts have the sections, and these the types, of known ones; lists are taken as they are."""
    if isinstance(known, dict):
        return isinstance(told, dict) and all(name in told and _like(told[name], value) for name, value in known.items())
    return known is None or isinstance(told, type(known)) or (isinstance(told, int | float) and isinstance(known, int | float))


#: Why one may have made pages that the other did not, by name; docs/peers.md has the table behind them.
REASONS = {
    "rights": "6.1 has the rights in its key: one page of 2007 is several",
    "CR0.WP": "6.1 has CR0.WP in its key, which the log does not print: one page of 2007 is two",
    "entry size": "6.1 has only the size of the entries in its key: PAE and long mode share the page",
    "zapped root": "6.1 makes a root that was zapped anew, 2007 empties it and keeps it",
    "unsync": "6.1 lets a leaf table go unsync instead of zapping it at stores",
    "zaps": "2007 zaps at the third store in a row to a frame, 6.1 at the third to a page, which uses of it clear",
    "absent PDPTE": "6.1 makes no root for a PDPTE that is absent, 2007 one of frame 0",
}


@dataclass(frozen=True)
class Difference:
    """A key of which model and live KVM made another number of pages; no ``reasons``: nothing here explains it."""

    key: Key
    model: int
    live: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Keys made by a model and by a live KVM: how many both made, how many equally often, and where they differ."""

    both: int
    equal: int
    differences: tuple[Difference, ...]


def compare(trace: TraceReader, parameters: Parameters, live: LiveRun) -> Comparison:
    """Replay a trace and hold the pages that the model made against those of a live KVM that ran the same guest."""
    made: dict[Key, Counter[int]] = {}
    births = replay_best(trace, parameters).journal.births
    for gfn, word in zip(births["gfn"].tolist(), births["role"].tolist(), strict=True):
        role = unpack(word)
        made.setdefault(Key(gfn, role.level, role.quadrant, role.metaphysical), Counter())[role.glevels] += 1
    both, equal, differences = 0, 0, []
    for key in sorted(made.keys() | live.keys.keys()):
        model, kvm = made.get(key, Counter()), live.keys.get(key, KeyHistory())
        both += bool(model) and bool(kvm.made)
        if model.total() == kvm.made:
            equal += 1
        else:
            differences.append(Difference(key, model.total(), kvm.made, tuple(_reasons(key, model, kvm))))
    return Comparison(both, equal, tuple(differences))


def _reasons(key: Key, model: Counter[int], kvm: KeyHistory) -> Iterator[str]:
    """What explains that a model made so many pages of a key, by glevels, and KVM another number."""
    is_root = key.level == 4 or (key.level == 2 and not {4} & (set(model) | kvm.glevels))
    if not kvm.made:
        if is_root and key.gfn == 0 and not key.metaphysical and set(model) == {3}:
            yield "absent PDPTE"
        return
    if not model:
        return
    if kvm.made > model.total():
        if len(kvm.rights) > 1:
            yield "rights"
        if kvm.twins:
            yield "CR0.WP"
        if kvm.made > len(kvm.rights) + kvm.twins and kvm.zapped:
            yield "zapped root" if is_root else "zaps"
        return
    if {3, 4} <= set(model):
        yield "entry size"
    if max(model.values()) > 1:
        yield "unsync" if kvm.unsyncs else "zaps"
