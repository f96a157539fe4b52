"""Facts for notebooks: all as dataclasses; those that are lists as Arrow tables and pandas frames (the ``arrow`` extra)."""

from __future__ import annotations

import json
from dataclasses import make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from analyzer.export.arrow import library
from analyzer.facts.collect import Facts
from db.errors import UsageError

if TYPE_CHECKING:
    import pandas
    import pyarrow

#: Facts that count by cause: only causes that occurred are there.
_BY_CAUSE = {"deaths", "emptied", "zaps"}


def names(facts: Facts, prefix: str = "") -> list[str]:
    """Which facts are lists of the same kind of thing: their names, with dots, as ``over_time.buckets``."""
    found = []
    for key, value in facts.items():
        if isinstance(value, dict):
            found += names(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and all(isinstance(entry, dict) for entry in value):
            found.append(prefix + key)
    return found


def table(facts: Facts, name: str) -> pyarrow.Table:
    """The fact called ``name`` as an Arrow table: a row for each entry, what is nested in one by names with dots.

    Lists within an entry are text, as JSON. ``UsageError`` where no such fact is a list.
    """
    if name not in names(facts):
        raise UsageError(f"no fact called {name!r} is a list", f"lists: {', '.join(names(facts))}")
    entries: Any = facts
    for part in name.split("."):
        entries = entries[part]
    rows = [_flat(entry) for entry in entries]
    columns = dict.fromkeys(column for row in rows for column in row)
    return library().table({column: [row.get(column) for row in rows] for column in columns})


def frame(facts: Facts, name: str) -> pandas.DataFrame:
    """``table`` as a DataFrame."""
    try:
        return table(facts, name).to_pandas()
    except ImportError as error:
        raise UsageError("this needs pandas, which is not installed", "pip install 'shadowtrace[arrow]'") from error


def _flat(entry: Facts, prefix: str = "") -> Facts:
    row: Facts = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            row |= _flat(value, f"{prefix}{key}.")
        else:
            row[prefix + key] = json.dumps(value) if isinstance(value, list | tuple) else value
    return row


def objects(facts: Facts) -> Any:
    """The facts as frozen dataclasses: ``facts["get_page"]["hits"]`` is ``.get_page.hits``, a list a tuple of dataclasses.

    A class is named after the fact, as ``Roles``. What counts by causes or numbers that happened to occur, such as deaths and histograms,
    stays a dictionary. ``dataclasses.asdict`` gives ``facts`` again, with tuples for lists.
    """
    return _object("facts", facts)


def _object(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_object(name, entry) for entry in value)
    if not isinstance(value, dict):
        return value
    fields = {key: _object(key, entry) for key, entry in value.items()}
    return fields if name in _BY_CAUSE or not all(key.isidentifier() for key in fields) else _class(name, tuple(fields))(**fields)


@cache
def _class(name: str, fields: tuple[str, ...]) -> type[Any]:
    return make_dataclass(name.title().replace("_", ""), fields, frozen=True)
