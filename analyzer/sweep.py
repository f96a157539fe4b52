"""A grid of parameters over one or many traces: each trace decoded once, its runs on all cores, each finished run kept at once.

A unit is one trace with one model and its parameters. Its result is one JSON object, a line of the sweep's file; a unit whose
line is there already is not run again, so a sweep that was interrupted goes on, and the files of shards can be put together.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analyzer.model.counters import as_sections
from analyzer.model.journal import Journal, What
from analyzer.model.outcome import Outcome, outcome
from analyzer.model.parameters import MODELS, Parameters, parameters
from analyzer.model.role import unpack
from analyzer.replay import choose_core, refuse, replay
from db.columns import Columns, batches, digest
from db.errors import StorageError, UsageError, nearest
from db.trace import TraceReader

Result = dict[str, Any]

#: What tells a unit's line from another's.
_KEY = ("digest", "model", "parameters", "version")

#: How each line begins.
_BEGIN = b'{"trace": '


@dataclass(frozen=True)
class Unit:
    """One trace to be run through one model with these parameters."""

    trace: Path
    digest: str
    events: int
    vcpus: int
    model: str
    parameters: Parameters
    version: str

    def names(self) -> Result:
        """What its line begins with: the trace's file name, not where it lies, so that other machines' lines are the same."""
        return {
            "trace": self.trace.name,
            "digest": self.digest,
            "events": self.events,
            "model": self.model,
            "parameters": self.parameters.as_dict(),
            "version": self.version,
        }


def grid(traces: Sequence[Path], models: Sequence[str], axes: dict[str, Sequence[Any]], version: str) -> list[Unit]:
    """Every combination of the values of ``axes`` (by parameter name) with every model and trace, in that order.

    ``UsageError`` where there is no such model, or where a combination admits no run.
    """
    units = []
    for path in traces:
        with TraceReader(path) as trace:
            told, events, vcpus = digest(trace), trace.count(), trace.recording["vcpus"]
        for model, *values in itertools.product(models, *axes.values()):
            if model not in MODELS:
                raise UsageError(f"there is no model called {model!r}", f"{nearest(model, MODELS)}models: {', '.join(MODELS)}")
            chosen = parameters(model, **dict(zip(axes, values, strict=True)))
            try:
                chosen.check(vcpus)
            except ValueError as error:
                raise UsageError(f"{model} on {path.name}: {error}", "leave that value out of the sweep") from error
            units.append(Unit(path, told, events, vcpus, model, chosen, version))
    return list(dict.fromkeys(units))


def shard(units: Sequence[Unit], number: int, of: int) -> list[Unit]:
    """The units of shard ``number`` (from 1) of ``of``: every one is in exactly one."""
    return list(units[number - 1 :: of])


def _key(result: Result) -> str:
    return json.dumps([result[name] for name in _KEY], sort_keys=True)


class Kept:
    """The sweep's file: a line for each unit that is done. A line that a crash cut short is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.results: dict[str, Result] = {}
        try:
            if path.exists() and not path.is_file():
                raise ValueError("no file that can be added to")
            whole = path.read_bytes() if path.exists() else b""
            good = whole[: whole.rfind(b"\n") + 1]
            for line in good.splitlines():
                result = json.loads(line)
                self.results[_key(result)] = result
            torn = whole[len(good) :]
            if not _BEGIN.startswith(torn[: len(_BEGIN)]):
                raise ValueError("the last line is of something else")
            if torn:
                os.truncate(path, len(good))
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}", "name another file with -o") from error
        except (ValueError, TypeError, LookupError) as error:
            raise UsageError(f"{path} is no sweep: it is not continued", "name another file with -o") from error

    def add(self, result: Result) -> None:
        """Keep a line, on the disk when this returns."""
        try:
            with self._lock, self.path.open("a") as out:
                out.write(json.dumps(result) + "\n")
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}", "name another file with -o") from error
        self.results[_key(result)] = result

    def missing(self, units: Iterable[Unit]) -> list[Unit]:
        """The units that have no line yet."""
        return [unit for unit in units if _key(unit.names()) not in self.results]

    def of(self, units: Iterable[Unit]) -> list[Result]:
        """The lines of these units, in their order, as far as they are there."""
        return [self.results[key] for unit in units if (key := _key(unit.names())) in self.results]


def sweep(units: Sequence[Unit], kept: Kept, jobs: int, progress: Callable[[int], None], core: str | None = None) -> None:
    """Run every unit that is not kept yet on ``jobs`` threads of this machine; ``progress`` hears how many are done.

    Interrupted, it lets go of what is running and has lost nothing that was done.
    """
    name, _ = choose_core(core)
    done = 0
    for _, group in itertools.groupby(kept.missing(units), key=lambda unit: unit.trace):
        todo = list(group)
        columns = load(todo[0]) if name == "fast" else []
        stop = threading.Event()
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(_run_and_keep, unit, columns, name, stop, kept) for unit in todo]
            try:
                for future in as_completed(futures):
                    future.result()
                    done += 1
                    progress(done)
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


def _run_and_keep(unit: Unit, columns: list[Columns], core: str, stop: threading.Event, kept: Kept) -> None:
    """In its own thread: what is done is kept, whatever the others come to."""
    result = run(unit, columns, core, stop)
    if not stop.is_set():
        kept.add(result)


def sweep_on_dask(units: Sequence[Unit], kept: Kept, address: str, progress: Callable[[int], None]) -> None:
    """Run every unit that is not kept yet on the workers of a dask cluster, which find the traces under the same paths.

    Each worker decodes a trace once for its share of the units. ``UsageError`` where dask or the cluster is not there.
    """
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise UsageError(f"dask cannot be used here: {error}", "pip install 'shadowtrace[dask]'") from error
    try:
        client: Any = distributed.Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"there is no dask scheduler at {address}: {error}", "dask scheduler prints its address") from error
    with client:
        workers = max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)
        shares: list[list[Unit]] = []
        for _, group in itertools.groupby(kept.missing(units), key=lambda unit: unit.trace):
            todo = list(group)
            shares += [share for i in range(workers) if (share := todo[i::workers])]
        done = 0
        futures: Any = distributed.as_completed([client.submit(run_share, share, pure=False) for share in shares])
        for future in futures:
            for result in future.result():
                kept.add(result)
                done += 1
                progress(done)


def run_share(units: Sequence[Unit]) -> list[Result]:
    """Run units of one trace, one after the other: what a dask worker is given."""
    name, _ = choose_core(None)
    columns = load(units[0]) if name == "fast" else []
    return [run(unit, columns, name, threading.Event()) for unit in units]


def load(unit: Unit) -> list[Columns]:
    """A trace's events in columns, with the errors that a replay would end in."""
    loaded, before = [], 0
    with TraceReader(unit.trace) as trace:
        for columns in batches(trace):
            refuse(trace, columns, before, unit.parameters.strict)
            before += len(columns.kind)
            loaded.append(columns)
    return loaded


def run(unit: Unit, columns: list[Columns], core: str, stop: threading.Event) -> Result:
    """One unit's result."""
    if core == "fast":
        end = _run_fast(unit, columns, stop)
    else:
        with TraceReader(unit.trace) as trace:
            end = outcome(replay(trace, unit.parameters))
    return {**unit.names(), "core": core, "facts": told(end)}


def _run_fast(unit: Unit, columns: list[Columns], stop: threading.Event) -> Outcome:
    from analyzer.model.kernel import Kernel

    kernel = Kernel(unit.parameters, unit.vcpus)
    for batch in columns:
        if stop.is_set():
            break
        kernel.feed(batch)
    return kernel.outcome()


def told(end: Outcome) -> Result:
    """What a sweep keeps of a replay: every counter, and look-ups by role, as ``facts`` has them."""
    sections: Result = as_sections(end.counters)
    sections["get_page"]["by_role"] = list(_by_role(end.journal))
    return {**sections, "memory": {"nonzero_pages": end.nonzero_pages, "crc32": f"0x{end.memory_crc32:08x}"}}


def _by_role(journal: Journal) -> Iterator[dict[str, int]]:
    asked = journal.rows[np.isin(journal.rows["what"], (What.ALLOC, What.HIT))]
    roles, which = np.unique(journal.births["role"], return_inverse=True)
    role_of = which[asked["page"]]
    lookups = np.bincount(role_of, minlength=len(roles))
    hits = np.bincount(role_of[asked["what"] == What.HIT], minlength=len(roles))
    for role, many, found in zip(roles.tolist(), lookups.tolist(), hits.tolist(), strict=True):
        yield {**unpack(role)._asdict(), "lookups": many, "hits": found, "misses": many - found}
