"""Address spaces: which one each row of a journal belongs to, what they are called, and what each did.

An address space is the paging levels in force and the root that cr3 names; without paging there is one for the whole machine.
A root is that of one address space after another, its generations: ``analyzer.trace.residency`` has told them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyzer.facts.grouped_sums import Ints, count
from analyzer.facts.journal_columns import Rows
from analyzer.model.journal import ROOT_SHIFT, What
from analyzer.trace.context import Root, Story, place
from x86.paging import PAGE_SHIFT

_NEVER = 1 << 62


@dataclass(frozen=True)
class AddressSpace:
    """An address space, and what was done in it."""

    glevels: int
    root: int
    """Physical address of the top table, or of PAE's PDPTEs; 0 without paging."""
    generation: int
    """From 0, for each root."""
    name: str
    """The program's, raw, as the guest has it; ``gfn 0x..`` where none is known, with how far into that frame the root lies behind a plus
    sign, and the generation behind a point from 1 on."""
    loads: int
    """Times a vCPU took its roots: cr3 loads with paging on, and changes of mode."""
    lookups: int
    hits: int
    made: int
    faults: int
    first_event: int
    last_event: int
    """Of the last row of the journal in it."""


@dataclass(frozen=True)
class Spaces:
    """The address spaces of a replay, in order of their first use."""

    all: list[AddressSpace]
    of_row: Ints
    """The address space of each row of the journal: the one that its vCPU was in."""


def spaces(rows: Rows, story: Story) -> Spaces:
    """Find the address spaces of a journal and give each row its own."""
    switches = rows.of(What.ROOTS_LOADED)
    glevels = rows.cause[switches]
    root = np.where(glevels > 0, rows.page[switches] | rows.other[switches] << 32, 0)
    firsts = _firsts(story.roots)
    generation = _generations(rows.event[switches], np.where(glevels > 0, root, -1), firsts)
    keys = np.stack((glevels, root, generation), axis=1)
    unique, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    of_row = position[which.reshape(-1)][_switch_of(rows, switches)]
    return Spaces(_describe(rows, unique[order].tolist(), of_row, firsts), of_row)


def _switch_of(rows: Rows, switches: Ints) -> Ints:
    """For each row, which of ``switches`` its vCPU made last; the first for rows before any of its own."""
    out = np.zeros(len(rows.event), np.int64)
    for vcpu in np.unique(rows.vcpu).tolist():
        mine = np.flatnonzero(rows.vcpu == vcpu)
        own = np.flatnonzero(rows.vcpu[switches] == vcpu)
        if len(own):
            out[mine] = own[np.maximum(np.searchsorted(switches[own], mine, side="right") - 1, 0)]
    return out


def _firsts(roots: tuple[Root, ...]) -> dict[int, list[Root]]:
    """The generations of each root, by its address as the journal has it."""
    found: dict[int, list[Root]] = {}
    for root in roots:
        found.setdefault(root.address >> ROOT_SHIFT, []).append(root)
    return found


def _generations(events: Ints, root: Ints, known: dict[int, list[Root]]) -> Ints:
    """For switches at these events to these roots, the last generation that has begun."""
    generation = np.zeros(len(events), np.int64)
    for where, roots in known.items():
        if len(roots) > 1:
            at = np.flatnonzero(root == where)
            generation[at] = np.searchsorted([root.first for root in roots[1:]], events[at], side="right")
    return generation


def to_neighbours(rows: Rows) -> int:
    """Switches from one frame to the frame beside it, so that only the lowest bit of the number changes.

    Page-table isolation goes that way, from the kernel's tables to the user's and back.
    """
    switches = rows.of(What.ROOTS_LOADED)
    total = 0
    for vcpu in np.unique(rows.vcpu[switches]).tolist():
        own = switches[(rows.vcpu[switches] == vcpu) & (rows.cause[switches] > 0)]
        gfn = (rows.page[own] | rows.other[own] << 32) >> PAGE_SHIFT - ROOT_SHIFT
        total += int(np.count_nonzero(gfn[1:] ^ gfn[:-1] == 1))
    return total


def _describe(rows: Rows, keys: list[list[int]], of_row: Ints, known: dict[int, list[Root]]) -> list[AddressSpace]:
    size = len(keys)
    by_what = {what: count(of_row[rows.of(what)], size) for what in (What.ROOTS_LOADED, What.HIT, What.ALLOC, What.FAULT)}
    first = np.full(size, _NEVER, np.int64)
    last = np.zeros(size, np.int64)
    np.minimum.at(first, of_row, rows.event)
    np.maximum.at(last, of_row, rows.event)
    found = []
    for i, (glevels, root, generation) in enumerate(keys):
        hits, made = by_what[What.HIT][i], by_what[What.ALLOC][i]
        found.append(
            AddressSpace(
                glevels,
                root << ROOT_SHIFT,
                generation,
                _name(root, generation, known) if glevels else "no paging",
                by_what[What.ROOTS_LOADED][i],
                hits + made,
                hits,
                made,
                by_what[What.FAULT][i],
                int(first[i]),
                int(last[i]),
            )
        )
    return found


def _name(root: int, generation: int, known: dict[int, list[Root]]) -> str:
    name = known[root][generation].name if root in known else None
    return unnamed(root << ROOT_SHIFT, generation) if name is None else name


def unnamed(root: int, generation: int) -> str:
    """What the address space of a root is called whose program is not known."""
    return f"gfn {place(root)}" + (f".{generation}" if generation else "")
