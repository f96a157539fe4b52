"""Events as Arrow tables, for Parquet and notebooks (the ``arrow`` extra)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzer.export.csv_columns import COLUMNS, extras
from db.errors import UsageError
from db.queries import Query
from db.trace import TraceReader
from x86.event import ACCESS_FAULT, ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, WRITE_SEEN_SHIFT, WRITE_SIZE, Kind, Seen

if TYPE_CHECKING:
    import pandas
    import pyarrow

_ROWS = 1 << 16

_KINDS = [kind.name.lower() for kind in Kind]
_SEEN = [seen.name.lower() for seen in Seen]


def library() -> Any:
    """The module ``pyarrow``; ``UsageError`` where it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise UsageError("this needs pyarrow, which is not installed", "pip install 'shadowtrace[arrow]'") from error
    return pyarrow


def schema() -> pyarrow.Schema:
    """The columns' types: numbers unsigned, kinds and ways of seeing as dictionaries; each with its meaning as metadata."""
    pa = library()
    types = {
        "seq": pa.uint64(),
        "vcpu": pa.uint8(),
        "kind": pa.dictionary(pa.int8(), pa.string()),
        "size": pa.uint8(),
        "seen": pa.dictionary(pa.int8(), pa.string()),
        "words": pa.binary(),
    }
    types |= dict.fromkeys(("write", "user", "fetch", "fault"), pa.bool_())
    return pa.schema(
        [pa.field(name, types.get(name, pa.uint64()), metadata={"about": about} if about else None) for name, about in COLUMNS.items()]
    )


def batches(trace: TraceReader, query: Query) -> Iterator[pyarrow.RecordBatch]:
    """The events of a query, some ten thousand at a time, with ``schema``'s columns."""
    pa, shape, extra = library(), schema(), extras(trace)
    events = query.rows(trace)
    while block := list(itertools.islice(events, _ROWS)):
        seq, kind, vcpu, flags, addr, value = np.array(block, np.int64).T
        access, write = kind == Kind.ACCESS, kind == Kind.WRITE
        sides = [extra(row[0]) if row[1] in (Kind.REGS, Kind.CR3, Kind.PAGE) else None for row in block]
        columns = {
            "seq": pa.array(seq.astype(np.uint64)),
            "vcpu": pa.array(vcpu.astype(np.uint8)),
            "kind": pa.DictionaryArray.from_arrays((kind - 1).astype(np.int8), _KINDS),
            "addr": pa.array(addr.astype(np.uint64), mask=kind == Kind.REGS),
            "value": pa.array(value.astype(np.uint64), mask=~write),
            "size": pa.array((flags & WRITE_SIZE).astype(np.uint8), mask=~write),
            "seen": pa.DictionaryArray.from_arrays(pa.array((flags >> WRITE_SEEN_SHIFT).astype(np.int8), mask=~write), _SEEN),
            "words": pa.array([side and side[2] for side in sides], pa.binary()),
        }
        for name, bit in (("write", ACCESS_WRITE), ("user", ACCESS_USER), ("fetch", ACCESS_FETCH), ("fault", ACCESS_FAULT)):
            columns[name] = pa.array(flags & bit != 0, mask=~access)
        for i, name in enumerate(("cr0", "cr4", "efer")):
            columns[name] = pa.array([side and side[0][i] for side in sides], pa.uint64())
        for i in range(4):
            columns[f"pdpte{i}"] = pa.array([side and side[1][i] for side in sides], pa.uint64())
        yield pa.RecordBatch.from_arrays([columns[name] for name in COLUMNS], schema=shape)


def as_pandas(table: pyarrow.Table) -> pandas.DataFrame:
    """A table as a DataFrame with Arrow's types; ``UsageError`` where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UsageError("this needs pandas, which is not installed", "pip install 'shadowtrace[arrow]'") from error
    frame: pandas.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def write_parquet(trace: TraceReader, query: Query, path: Path) -> None:
    """Write the events of a query as a Parquet file, compressed with Zstandard."""
    library()
    from pyarrow import parquet

    with parquet.ParquetWriter(path, schema(), compression="zstd") as writer:
        for batch in batches(trace, query):
            writer.write_batch(batch)
