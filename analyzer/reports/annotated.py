"""Which guest code writes page tables: for a terminal and in the formats of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analyzer.reports import rows
from analyzer.reports.text import columns, number, printable, share
from analyzer.trace.writers import Tally

Row = tuple[str, int | None, Tally]


def text(found: Sequence[Row], most: int | None, model: str | None) -> str:
    """The first ``most`` rows as a table, and what there is in all; without a model what a store costs is left out."""
    whole = sum(tally.stores for _, _, tally in found)
    table = [("code", "stores", "%", "tables", *(("emulated", "floods", "zaps") if model else ()), "address", "")]
    table += [_cells(name, address, tally, whole, model) for name, address, tally in found[:most]]
    lines = [columns(table)]
    left = len(found) - len(found[:most])
    if left:
        lines.append(f"{left:,} more; --limit 0 shows them")
    emulated, floods, zaps = (sum(getattr(tally, what) for _, _, tally in found) for what in ("emulated", "floods", "zaps"))
    cost = f"; {model}: {emulated:,} emulated, {floods:,} floods, {zaps:,} pages zapped" if model else ""
    return "\n".join([*lines, f"{whole:,} stores to tables{cost}"])


def _cells(name: str, address: int | None, tally: Tally, whole: int, model: str | None) -> tuple[str, ...]:
    cost = (number(tally.emulated), number(tally.floods), number(tally.zaps)) if model else ()
    where = "" if address is None else f"{address:#x}"
    return (printable(name), number(tally.stores), share(tally.stores, whole), number(len(tally.frames)), *cost, where, "")


def as_rows(form: str, found: Sequence[Row], model: str | None) -> Iterator[str]:
    """CSV, JSON and the like in pieces."""
    names = ("code", "address", "stores", "tables", *(("emulated", "floods", "zaps") if model else ()))
    return rows.render(form, names, (_values(name, address, tally, model) for name, address, tally in found))


def _values(name: str, address: int | None, tally: Tally, model: str | None) -> tuple[object, ...]:
    cost = (tally.emulated, tally.floods, tally.zaps) if model else ()
    return (name, None if address is None else hex(address), tally.stores, len(tally.frames), *cost)
