"""A trace through a model: events in, facts out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analyzer.audit import audit
from analyzer.facts import FORM, Facts, facts
from analyzer.mmu import Mmu
from analyzer.model import Parameters
from analyzer.model import parameters as model_parameters
from analyzer.outcome import Outcome, outcome
from analyzer.recorded import story
from analyzer.saving import Costs, saved
from db.errors import TraceError, UsageError
from db.event import ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, WRITE_SIZE, Event, Kind, unpack_words
from db.trace import TraceReader, store_run
from x86.registers import Mode, paging_mode

#: Replayed events between two calls of a progress function.
PROGRESS_EVENTS = 65536

#: Whether a replay takes so little time that a report makes one without a cache too, unasked, to compare with.
QUICK = False


@dataclass(frozen=True)
class Run:
    """A replay: which model with which parameters, by which version and core, and what came out."""

    model: str
    parameters: dict[str, Any]
    version: str
    core: str
    events: int
    seconds: float
    facts: Facts


def replay(
    trace: TraceReader, parameters: Parameters, progress: Callable[[int], None] | None = None, audit_every: int | None = None
) -> Mmu:
    """Run every event of a trace through a fresh model and return it.

    ``progress`` is called now and then with the number of events replayed; the model is audited after every
    ``audit_every`` events and at the end (``AuditError``). Raises ``UsageError`` where the parameters
    admit no run, and ``TraceError`` where the trace is damaged.
    """
    vcpus = trace.recording["vcpus"]
    try:
        mmu = Mmu(parameters, vcpus)
    except ValueError as error:
        raise UsageError(str(error), "shadowtrace replay --help lists the parameters") from error
    for number, event in enumerate(trace.events(), 1):
        if event.vcpu >= vcpus:
            raise UsageError(f"event {number} is of vCPU {event.vcpu}, but the trace says it has {vcpus}", "the trace is damaged")
        if event.kind == Kind.REGS and not parameters.strict:
            _refuse_five_levels(number, event)
        try:
            feed(mmu, event)
        except ValueError as error:
            raise TraceError(f"{trace.path} is damaged: event {number}: {error}", "record it again") from error
        if progress is not None and number % PROGRESS_EVENTS == 0:
            progress(number)
        if audit_every and number % audit_every == 0:
            audit(mmu)
    if audit_every:
        audit(mmu)
    return mmu


def _refuse_five_levels(number: int, event: Event) -> None:
    cr0, cr4, efer = event.extra if isinstance(event.extra, tuple) else (0, 0, 0)
    if paging_mode(cr0 or 0, cr4 or 0, efer or 0) is Mode.LA57:
        raise UsageError(
            f"the guest turns on five-level paging (LA57) at event {number}: the models stop at four levels",
            "record it on a CPU without la57: record GUEST -o FILE -- -cpu qemu64",
        )


def feed(mmu: Mmu, event: Event) -> None:
    """Give one event of a trace to a model. ``ValueError`` where a page's content is damaged."""
    kind, vcpu, flags, addr, value, extra = event
    if kind == Kind.ACCESS:
        mmu.access(vcpu, addr, bool(flags & ACCESS_WRITE), bool(flags & ACCESS_USER), bool(flags & ACCESS_FETCH))
    elif kind == Kind.WRITE:
        mmu.write(vcpu, addr, flags & WRITE_SIZE, value)
    elif kind == Kind.CR3:
        mmu.cr3(vcpu, addr, extra)  # type: ignore[arg-type]
    elif kind == Kind.INVLPG:
        mmu.invlpg(vcpu, addr)
    elif kind == Kind.PAGE:
        mmu.page(addr >> 12, unpack_words(extra))  # type: ignore[arg-type]
    else:
        mmu.regs(vcpu, *extra)  # type: ignore[misc]


def run(
    trace: TraceReader,
    model: str,
    parameters: Parameters,
    version: str,
    progress: Callable[[int], None] | None = None,
    audit_every: int | None = None,
) -> tuple[Run, Outcome]:
    """Replay a trace and gather its facts."""
    start = time.perf_counter()
    end = outcome(replay(trace, parameters, progress, audit_every))
    seconds = time.perf_counter() - start
    return Run(model, parameters.as_dict(), version, "reference", end.counters.events_total, seconds, facts(end, story(trace))), end


def yardstick(
    trace: TraceReader, parameters: Parameters, version: str, wanted: bool | None, progress: Callable[[int], None] | None = None
) -> tuple[Run | None, bool]:
    """A run of the trace without a cache, of as many pages, and whether it was made just now and can be kept.

    A kept one is taken where there is one. ``wanted`` says whether one is replayed otherwise; ``None`` does where that is quick.
    """
    if wanted is False or not parameters.caching:
        return None, False
    without = model_parameters("uncached", pages=parameters.pages, ram_pages=parameters.ram_pages, strict=parameters.strict)
    known = kept(trace, "uncached", without, version)
    if known is not None or not (QUICK if wanted is None else wanted):
        return known, False
    return run(trace, "uncached", without, version, progress)[0], True


def with_saved(done: Run, without: Run | None, costs: Costs) -> Run:
    """A run that also tells what its cache saved against a run without one."""
    if without is None:
        return done
    return replace(done, facts={**done.facts, "saved": asdict(saved(done.facts, without.facts, costs))})


def keep(path: Path, done: Run) -> bool:
    """Keep a run in its trace file; false where the file cannot be written."""
    return store_run(
        path,
        model=done.model,
        parameters=json.dumps(done.parameters, sort_keys=True),
        version=done.version,
        core=done.core,
        events=done.events,
        seconds=done.seconds,
        facts=json.dumps(done.facts),
    )


def kept(trace: TraceReader, model: str, parameters: Parameters, version: str) -> Run | None:
    """The newest kept run of this model with these parameters over all events of the trace, if there is one."""
    wanted = json.dumps(parameters.as_dict(), sort_keys=True)
    for row in reversed(trace.rows("run")):
        if (row["model"], row["parameters"], row["version"], row["events"]) != (model, wanted, version, trace.count()):
            continue
        known = json.loads(row["facts"])
        if known.get("form") == FORM:
            return Run(model, parameters.as_dict(), version, row["core"], row["events"], row["seconds"], known)
    return None
