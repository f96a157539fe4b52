"""A trace's events in files that other programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from analyzer import replay
from analyzer.export import csv_columns, perfetto
from analyzer.export.arrow import write_parquet
from analyzer.export.tracks import Item, recorded, replayed
from analyzer.model.parameters import Parameters
from db.file.outputs import new_file
from db.queries import events
from db.trace import TraceReader


def csv(trace: TraceReader) -> Iterator[str]:
    """The events as CSV, in pieces."""
    return csv_columns.csv(trace, events(1, trace.count()))


def to_parquet(trace: TraceReader, output: Path) -> None:
    """Write the events as a Parquet file."""
    with new_file(output) as path:
        write_parquet(trace, events(1, trace.count()), path)


def to_perfetto(trace: TraceReader, output: Path, more: Iterable[Item] = ()) -> None:
    """Write the trace for Perfetto, with whatever slices, instants and counter samples there are besides."""
    with new_file(output) as path, path.open("wb") as out:
        out.writelines(perfetto.packets(chain(recorded(trace), more)))


def replay_tracks(
    trace: TraceReader, model: str, parameters: Parameters, version: str, progress: Callable[[int], None] | None = None
) -> Iterator[Item]:
    """Replay a trace; the tracks of what the model did."""
    _, outcome = replay.run(trace, model, parameters, version, progress)
    return replayed(model, outcome.journal)
