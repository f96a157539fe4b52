"""A trace through a model: events in, facts out."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzer.facts.collect import FORM, Facts, facts
from analyzer.facts.savings import Costs, saved
from analyzer.model.audit import audit
from analyzer.model.machine import Mmu
from analyzer.model.outcome import Outcome, outcome
from analyzer.model.parameters import Parameters
from analyzer.model.parameters import parameters as model_parameters
from analyzer.trace.reading import Passed, story
from db.columns import Columns, batches
from db.errors import TraceError, UsageError
from db.exchange import kvmmmu
from db.trace import TraceReader, store_run
from x86.event import ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, WRITE_SIZE, Event, Kind, unpack_words
from x86.registers import CR0_PG, CR4_LA57, EFER_LMA, Mode, paging_mode

if TYPE_CHECKING:
    from analyzer.model.kernel import Kernel

#: Replayed events between two calls of a progress function.
PROGRESS_EVENTS = 65536


#: The implementations of the model: the readable one, which is the specification, and the compiled one.
CORES = ("reference", "fast")


@dataclass(frozen=True)
class Run:
    """A replay: which model with which parameters, by which version and core (and why that), and what came out."""

    model: str
    parameters: dict[str, Any]
    version: str
    core: str
    events: int
    seconds: float
    facts: Facts
    why: str = ""


_IMPORTING = threading.Lock()


def choose_core(wanted: str | None, audit: bool = False) -> tuple[str, str]:
    """The core that a replay runs on, and why. ``UsageError`` where the one that is wanted cannot run."""
    if audit and wanted == "fast":
        raise UsageError("the audit looks into the readable core, and the fast one was asked for", "leave out --core fast, or --audit")
    if wanted == "reference" or audit:
        return "reference", "--audit needs it" if audit else "asked for"
    try:
        # Whoever waits for an import that fails in another thread gets what there is of the module.
        with _IMPORTING:
            import numba
    except ImportError as error:
        if wanted == "fast":
            raise UsageError(f"the fast core cannot run here: {error}", "pip install 'shadowtrace[fast]'") from error
        return "reference", f"the fast one cannot run: {error}"
    return "fast", f"numba {numba.__version__}"


def prepare(parameters: Parameters, wanted: str | None, audit: bool = False) -> threading.Thread:
    """Begin to load the core that a replay will run on, in a thread: SQLite, which checks the trace meanwhile, runs beside Python."""

    def load() -> None:
        # Whoever loads it in earnest says what is wrong with it.
        with contextlib.suppress(Exception):
            if choose_core(wanted, audit)[0] == "fast":
                from analyzer.model.kernel import Kernel

                # The process ends no sooner than this thread, and compiling cannot be stopped: Ctrl-C would wait for it.
                if Kernel.is_compiled():
                    Kernel(parameters)

    thread = threading.Thread(target=load)
    thread.start()
    return thread


def replay(
    trace: TraceReader, parameters: Parameters, progress: Callable[[int], None] | None = None, audit_every: int | None = None
) -> Mmu:
    """Run every event of a trace through a fresh model of the readable core and return it.

    ``progress`` is called now and then with the number of events replayed; the model is audited after every
    ``audit_every`` events and at the end (``AuditError``). Raises ``UsageError`` where the parameters
    admit no run, and ``TraceError`` where the trace is damaged.
    """
    vcpus = trace.recording["vcpus"]
    with _usage_errors():
        mmu = Mmu(parameters, vcpus)
    for number, event in enumerate(trace.events(), 1):
        if event.vcpu >= vcpus:
            raise _no_such_vcpu(number, event.vcpu, vcpus)
        if event.kind == Kind.REGS and not parameters.strict and isinstance(event.extra, tuple):
            cr0, cr4, efer = event.extra
            if paging_mode(cr0 or 0, cr4 or 0, efer or 0) is Mode.LA57:
                raise _five_levels(number)
        try:
            feed(mmu, event)
        except ValueError as error:
            raise _damaged(trace, number, str(error)) from error
        if progress is not None and number % PROGRESS_EVENTS == 0:
            progress(number)
        if audit_every and number % audit_every == 0:
            audit(mmu)
    if audit_every:
        audit(mmu)
    return mmu


def replay_fast(
    trace: TraceReader, parameters: Parameters, progress: Callable[[int], None] | None = None, passed: Passed | None = None
) -> Kernel:
    """``replay`` on the fast core: the same errors, the same outcome. ``passed`` takes what a story needs, where one will be told."""
    from analyzer.model.kernel import Kernel

    with _usage_errors():
        kernel = Kernel(parameters, trace.recording["vcpus"])
    done = 0
    for columns in batches(trace):
        refuse(trace, columns, done, parameters.strict)
        kernel.feed(columns)
        if passed is not None:
            passed.take(columns)
        done += len(columns.kind)
        if progress is not None:
            progress(done)
    return kernel


def replay_best(trace: TraceReader, parameters: Parameters) -> Outcome:
    """What comes out of a trace on the best core there is. Raises as ``replay`` does."""
    if choose_core(None)[0] == "fast":
        return replay_fast(trace, parameters).outcome()
    return outcome(replay(trace, parameters))


def refuse(trace: TraceReader, columns: Columns, before: int, strict: bool) -> None:
    """Raise for the first event of a batch that no model takes, as ``replay`` does when it meets it; ``before`` events came earlier."""
    vcpus = trace.recording["vcpus"]
    strange = np.flatnonzero(columns.vcpu >= vcpus)[:1].tolist()
    five: list[int] = []
    if not strict:
        places = np.flatnonzero(columns.kind == Kind.REGS)
        _, cr0, cr4, efer = columns.registers[columns.value[places]].T
        five = places[(cr0 & CR0_PG != 0) & (cr4 & CR4_LA57 != 0) & (efer & EFER_LMA != 0)][:1].tolist()
    if strange and not (five and five < strange):
        raise _no_such_vcpu(before + strange[0] + 1, int(columns.vcpu[strange[0]]), vcpus)
    if five:
        raise _five_levels(before + five[0] + 1)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error), "shadowtrace replay --help lists the parameters") from error


def _no_such_vcpu(number: int, vcpu: int, vcpus: int) -> UsageError:
    return UsageError(f"event {number} is of vCPU {vcpu}, but the trace says it has {vcpus}", "the trace is damaged")


def _five_levels(number: int) -> UsageError:
    return UsageError(
        f"the guest turns on five-level paging (LA57) at event {number}: the models stop at four levels",
        "record it on a CPU without la57: record GUEST -o FILE -- -cpu qemu64",
    )


def _damaged(trace: TraceReader, number: int, reason: str) -> TraceError:
    return TraceError(f"{trace.path} is damaged: event {number}: {reason}", "record it again")


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
    core: str | None = None,
) -> tuple[Run, Outcome]:
    """Replay a trace on the wanted core, or the best there is, and gather its facts."""
    if trace.recording["source"] == kvmmmu.SOURCE:
        raise UsageError(f"{trace.path} holds what a live KVM did, not events that could be replayed", "shadowtrace report shows it")
    chosen, why = choose_core(core, bool(audit_every))
    start = time.perf_counter()
    passed = None
    if chosen == "fast":
        passed = Passed(trace)
        end = replay_fast(trace, parameters, progress, passed).outcome()
    else:
        end = outcome(replay(trace, parameters, progress, audit_every))
    seconds = time.perf_counter() - start
    return Run(model, parameters.as_dict(), version, chosen, end.counters.events_total, seconds, facts(end, story(trace, passed)), why), end


def without_cache(parameters: Parameters) -> Parameters:
    """The model that a model with a cache is compared with: of as many pages, without one."""
    return model_parameters("uncached", pages=parameters.pages, ram_pages=parameters.ram_pages, strict=parameters.strict)


def yardstick(
    trace: TraceReader,
    parameters: Parameters,
    version: str,
    wanted: bool | None,
    progress: Callable[[int], None] | None = None,
    core: str | None = None,
) -> tuple[Run | None, bool]:
    """A run of the trace without a cache, of as many pages, and whether it was made just now and can be kept.

    A kept one is taken where there is one. ``wanted`` says whether there is to be one at all; ``None``: on the fast core, which takes
    next to no time.
    """
    if wanted is None:
        wanted = choose_core(core)[0] == "fast"
    if not wanted or not parameters.caching:
        return None, False
    without = without_cache(parameters)
    if (known := kept(trace, "uncached", without, version, core)) is not None and _can_be_compared(known):
        return known, False
    return run(trace, "uncached", without, version, progress, core=core)[0], True


def _can_be_compared(done: Run) -> bool:
    """Whether the facts of a kept run, which may be anything that someone put into the file, have what a comparison asks for."""
    try:
        saved(done.facts, done.facts, Costs())
    except (LookupError, TypeError, ValueError, AttributeError):
        return False
    return True


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
        why=done.why,
        events=done.events,
        seconds=done.seconds,
        facts=json.dumps(done.facts),
    )


def kept(trace: TraceReader, model: str, parameters: Parameters, version: str, core: str | None = None) -> Run | None:
    """The newest kept run that a replay of this model on the wanted core, or the best there is, would only repeat, if there is one.

    A run on another core, or on that one for another reason, is none: what a report says would depend on what was replayed before.
    """
    wanted = (model, json.dumps(parameters.as_dict(), sort_keys=True), version, *choose_core(core), trace.count())
    for row in reversed(trace.rows("run")):
        if wanted == tuple(row[name] for name in ("model", "parameters", "version", "core", "why", "events")):
            try:
                told = json.loads(row["facts"])
            except (ValueError, RecursionError):
                return None
            if isinstance(told, dict) and told.get("form") == FORM:
                return Run(model, parameters.as_dict(), version, row["core"], row["events"], row["seconds"], told, row["why"])
    return None
