"""A trace in a notebook: its events as Arrow, pandas or NumPy, its marks and address spaces, replays with their facts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from analyzer import replay
from analyzer.export import fact_tables
from analyzer.model.parameters import MODELS, parameters
from analyzer.replay import Run
from analyzer.trace.inventory import Inventory, inventory
from analyzer.trace.residency import History, Space, Stay
from analyzer.trace.timeline import Timeline, timeline
from db import VERSION
from db.errors import UsageError
from db.marks import Phase, first_event, last_event, phases
from db.queries import EVERY_KIND, Query, events
from db.sql import Session
from db.trace import TraceReader
from x86.event import Kind

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from pandas import DataFrame

#: The dtype of ``Trace.numpy``: a row of the table ``event``, numbers unsigned.
EVENT = np.dtype([("seq", "<u8"), ("kind", "u1"), ("vcpu", "u1"), ("flags", "u1"), ("addr", "<u8"), ("value", "<u8")])

_BLOCK = 1 << 16


class Trace:
    """An open trace; use ``analyzer.open``. A context manager; nothing in the file is changed.

    Every argument ``first`` and ``last`` is an event's number or a mark's name; ``kind`` is ``"cr3"`` or several such
    names (``regs``, ``cr3``, ``write``, ``page``, ``access``, ``invlpg``); ``vcpu`` a number. What is left out means all.
    Errors are ``db.errors.ShadowtraceError``: a sentence and a hint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = TraceReader(path)
        self._history: History | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return self._reader.count()

    def __repr__(self) -> str:
        return f"<trace {self.path}: {self.recording['guest']}, {len(self):,} events>"

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()

    @property
    def recording(self) -> dict[str, Any]:
        """What was recorded and how it ended: the row of the table ``recording``."""
        return self._reader.recording

    @property
    def marks(self) -> dict[str, int]:
        """The first event after each mark, by its name."""
        return {row["name"]: row["seq"] + 1 for row in self._reader.rows("mark")}

    @property
    def phases(self) -> list[Phase]:
        """What lies between the marks."""
        return phases(self._reader)

    @property
    def address_spaces(self) -> list[Space]:
        """Every address space that was loaded, in order of appearance."""
        return self._read_history().spaces

    @property
    def stays(self) -> list[Stay]:
        """Every stretch of events in which an address space was loaded on a vCPU, in the order in which they end."""
        return self._read_history().stays

    def inventory(self) -> Inventory:
        """What ``shadowtrace stat`` shows."""
        return inventory(self._reader)

    def timeline(self, buckets: int = 100, most: int | None = None) -> Timeline:
        """The share of each stretch of the trace in which each address space was loaded."""
        return timeline(self._reader, buckets, most)

    def events(
        self,
        kind: str | Iterable[str] | None = None,
        first: int | str = 1,
        last: int | str | None = None,
        vcpu: int | None = None,
    ) -> pyarrow.Table:
        """Events as an Arrow table, with the columns of docs/api.md. Needs pyarrow (the ``arrow`` extra)."""
        from analyzer.export.arrow import batches, library, schema

        table: pyarrow.Table = library().Table.from_batches(batches(self._reader, self._query(kind, first, last, vcpu)), schema())
        return table

    def pandas(
        self,
        kind: str | Iterable[str] | None = None,
        first: int | str = 1,
        last: int | str | None = None,
        vcpu: int | None = None,
    ) -> pandas.DataFrame:
        """The same as a pandas DataFrame, with columns that may be empty in Arrow's types: 64 bits stay 64 bits."""
        from analyzer.export.arrow import as_pandas

        return as_pandas(self.events(kind, first, last, vcpu))

    def numpy(
        self,
        kind: str | Iterable[str] | None = None,
        first: int | str = 1,
        last: int | str | None = None,
        vcpu: int | None = None,
    ) -> NDArray[np.void]:
        """Events as a NumPy array of dtype ``EVENT``; ``x86.event`` says what flags, addr and value mean for each kind."""
        rows = self._query(kind, first, last, vcpu).rows(self._reader)
        blocks = [np.empty(0, EVENT)]
        while block := list(islice(rows, _BLOCK)):
            numbers = np.array(block, np.int64)
            blocks.append(np.empty(len(block), EVENT))
            for column, name in enumerate(EVENT.names or ()):
                blocks[-1][name] = numbers[:, column].astype(EVENT[name])
        return np.concatenate(blocks)

    def replay(self, model: str = "kvm-2.6.20", **changes: Any) -> Run:
        """Run the trace through a model; ``changes`` are parameters such as ``pages=64``. ``Run.facts`` has what came out.

        Raises ``UsageError`` where there is no such model or parameter, or no run is possible with it.
        """
        if model not in MODELS:
            raise UsageError(f"there is no model called {model!r}", f"models: {', '.join(MODELS)}")
        try:
            chosen = parameters(model, **changes)
        except TypeError as error:
            known = ", ".join(MODELS[model].parameters.as_dict())
            raise UsageError(f"a parameter is unknown: {', '.join(changes)}", f"parameters: {known}") from error
        run, _ = replay.run(self._reader, model, chosen, VERSION)
        return run

    @staticmethod
    def fact_objects(run: Run) -> Any:
        """All facts of a run as frozen dataclasses: ``fact_objects(run).get_page.hits``."""
        return fact_tables.objects(run.facts)

    @staticmethod
    def fact_table(run: Run, name: str) -> pyarrow.Table:
        """A fact of a run that is a list (``roles``, ``spaces``, ``over_time.buckets``, ...) as an Arrow table, a row an entry."""
        return fact_tables.table(run.facts, name)

    @staticmethod
    def fact_frame(run: Run, name: str) -> DataFrame:
        """The same as a DataFrame."""
        return fact_tables.frame(run.facts, name)

    def sql(self, query: str) -> list[dict[str, Any]]:
        """The rows of a read-only query; numbers as the file holds them, 64 bits in two's complement."""
        with Session(self.path) as session:
            columns, rows = session.ask(query)
            return [dict(zip(columns, row, strict=True)) for row in rows]

    def _query(self, kind: str | Iterable[str] | None, first: int | str, last: int | str | None, vcpu: int | None) -> Query:
        names = {kind} if isinstance(kind, str) else set(kind or ())
        kinds = EVERY_KIND if kind is None else sum(1 << _kind(name) for name in names)
        begin = first_event(self._reader, str(first))
        end = len(self) if last is None else last_event(self._reader, str(last))
        return events(begin, end, kinds, -1 if vcpu is None else 1 << vcpu)

    def _read_history(self) -> History:
        if self._history is None:
            self._history = History(self._reader)
        return self._history


def _kind(name: str) -> Kind:
    try:
        return Kind[name.upper()]
    except KeyError as error:
        raise UsageError(f"there is no kind of event called {name!r}", f"kinds: {', '.join(kind.name.lower() for kind in Kind)}") from error
