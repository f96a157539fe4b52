"""A replay's outcome as plain data: what JSON, the trace file and every renderer take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from analyzer.facts import hashing, parents
from analyzer.facts.findings import findings
from analyzer.facts.grouped_sums import pairs
from analyzer.facts.grouped_sums import peak as running_peak
from analyzer.facts.journal_columns import Rows, lives, rows_of
from analyzer.facts.origins import origins
from analyzer.facts.overtime import over_time, phases
from analyzer.facts.sharing import Sharing, crowds_of, sharing_of, told_apart_by
from analyzer.facts.spaces import Spaces, spaces, to_neighbours
from analyzer.facts.tree import Moment, moment, most_shared_row, shared
from analyzer.model.context import PT32E_ROOT_LEVEL, PT_SHADOW_IO_MARK, PT_SHADOW_USER_MASK, PT_SHADOW_WRITABLE_MASK
from analyzer.model.counters import as_sections
from analyzer.model.journal import AS_ROOT, What
from analyzer.model.outcome import LivePage, Outcome
from analyzer.model.role import unpack
from analyzer.trace.context import Story
from x86.paging import PRESENT, USER, WRITABLE

Facts = dict[str, Any]

#: The form of these facts. It changes when a fact is added or changes its meaning, so that older kept runs are not taken for new.
FORM = 6

#: Frames with several shadow pages that are named, at most; and frames whose pages were made most often.
TOP_FRAMES = 20
TOP_REMADE = 8

_NOTHING_KNOWN = Story()


def facts(outcome: Outcome, story: Story = _NOTHING_KNOWN) -> Facts:
    """Everything a replay tells, by name; docs/counters.md defines each entry.

    ``story`` is what the trace knows of phases and programs.
    """
    rows = rows_of(outcome.journal)
    alive = lives(rows)
    crowds = crowds_of(rows, alive)
    shares = sharing_of(rows, alive, crowds)
    known = spaces(rows, story)
    end, peak = moment(rows, known, len(rows.event) - 1), moment(rows, known, most_shared_row(rows))
    orphans = Counter(page.role for page in outcome.pages if not page.root_count and not page.parents)
    events, accesses = outcome.counters.events_total, outcome.counters.events_access

    out: Facts = {"form": FORM, "mmu_pages": outcome.parameters.pages, "hash_buckets": outcome.parameters.buckets}
    out |= as_sections(outcome.counters)
    out["get_page"]["by_role"] = [
        {**unpack(role)._asdict(), "lookups": f.lookups, "hits": f.hits, "misses": f.misses}
        for role, f in shares.roles.items()
        if f.lookups
    ]
    out["roots"] |= {"of_frame_0": _pae_roots_of_frame_0(rows), "to_neighbours": to_neighbours(rows)}
    out["live"] = {**_live(outcome), "peak": running_peak(alive.delta), "keys_ever": _keys_ever(rows)}
    out["hash"] = {
        **hashing.summary(outcome),
        "chains": hashing.chains(outcome),
        "worst": [asdict(bucket) for bucket in hashing.worst(outcome)],
    }
    out["memory"] = {"nonzero_pages": outcome.nonzero_pages, "crc32": f"0x{outcome.memory_crc32:08x}"}
    out["key"] = shares.key
    out["roles"] = _roles(shares, orphans)
    out["frames"] = {**_frames(shares), "top": _top_frames(outcome.pages, end, known), "most_made": _most_made(rows, known)}
    out["parents"] = [asdict(level) for level in parents.by_level(outcome.pages)]
    out["parents_top"] = [asdict(page) for page in parents.most_shared(outcome.pages, end, known)]
    out["spaces"] = _spaces(known, end)
    out["processes"] = _processes(known)
    out["space_sharing"] = {"peak": shared(peak), "end": shared(end)}
    out["origin"] = {which: asdict(origin) for which, origin in origins(rows, known).items()}
    out["phases"] = [asdict(phase) for phase in phases(rows, alive, story, events, accesses)]
    out["over_time"] = asdict(over_time(rows, alive, crowds, events))
    out["findings"] = [asdict(finding) for finding in findings(out, outcome.parameters)]
    return out


def _roles(shares: Sharing, orphans: Counter[int]) -> list[Facts]:
    return [
        {
            **unpack(role)._asdict(),
            "lookups": f.lookups,
            "hits": f.hits,
            "made": f.misses,
            "live": f.live,
            "peak": f.peak,
            "orphans": orphans[role],
            "stores": f.stores,
            "deaths": f.deaths,
            "emptied": f.emptied,
            "lifetime": None if f.lifetime is None else asdict(f.lifetime),
        }
        for role, f in shares.roles.items()
    ]


def _frames(shares: Sharing) -> Facts:
    return {
        "shadowed": shares.shadowed,
        "told_apart_by": {name: asdict(spread) for name, spread in shares.spread.items()},
        "by_pages": [{"pages": n, **asdict(spread)} for n, spread in shares.pages_per_frame.items()],
    }


def _top_frames(pages: list[LivePage], end: Moment, known: Spaces) -> list[Facts]:
    """The frames with the most shadow pages now, those of several only."""
    by_frame: dict[int, list[LivePage]] = {}
    for page in pages:
        by_frame.setdefault(page.gfn, []).append(page)
    top = sorted((gfn for gfn, mine in by_frame.items() if len(mine) > 1), key=lambda gfn: (-len(by_frame[gfn]), gfn))
    found = []
    for gfn in top[:TOP_FRAMES]:
        roles = [unpack(page.role) for page in sorted(by_frame[gfn], key=lambda page: (page.role, page.birth))]
        members = sorted({i for page in by_frame[gfn] for i in end.members(page.birth)})
        found.append(
            {
                "gfn": gfn,
                "pages": len(roles),
                "roles": [role._asdict() for role in roles],
                "names": list(parents.names(members, known)),
                "told_apart_by": told_apart_by(roles),
            }
        )
    return found


def _most_made(rows: Rows, known: Spaces) -> list[Facts]:
    """The frames that shadow pages were made of most often, of those twice or more, and in which address spaces."""
    times = np.bincount(rows.frame)
    gfns = np.unique(rows.gfn).tolist()
    found = []
    for frame in np.argsort(-times, kind="stable")[:TOP_REMADE].tolist():
        if times[frame] > 1:
            made = rows.made[rows.frame == frame]
            levels = sorted(set(rows.level[rows.page[made]].tolist()))
            members = np.unique(known.of_row[made]).tolist()
            found.append({"gfn": gfns[frame], "made": len(made), "levels": levels, "names": list(parents.names(members, known))})
    return found


def _pae_roots_of_frame_0(rows: Rows) -> int:
    """Look-ups of PAE roots of frame 0: what 2.6.20 makes of absent entries of the page-directory-pointer table."""
    at = rows.of(What.ALLOC, What.HIT)
    pages = rows.page[at[rows.cause[at] == AS_ROOT]]
    return int(np.count_nonzero((rows.gfn[pages] == 0) & (rows.role[pages] & 15 == PT32E_ROOT_LEVEL)))


def _keys_ever(rows: Rows) -> int:
    """Different keys that pages were made of."""
    return len(np.unique(pairs(rows.frame, rows.role)))


def _spaces(known: Spaces, end: Moment) -> list[Facts]:
    pages = Counter(i for page in end.spaces for i in end.members(page))
    return [{**asdict(space), "pages_now": pages[i]} for i, space in enumerate(known.all)]


def _processes(known: Spaces) -> list[Facts]:
    """Address spaces of one name together, those with the most look-ups first."""
    counts = ("loads", "lookups", "hits", "made", "faults")
    found: dict[str, Facts] = {}
    for space in known.all:
        entry = found.setdefault(space.name, {"name": space.name, "spaces": 0, **dict.fromkeys(counts, 0)})
        entry["spaces"] += 1
        for count in counts:
            entry[count] += getattr(space, count)
    return sorted(found.values(), key=lambda entry: -int(entry["lookups"]))


def _live(outcome: Outcome) -> Facts:
    pages = outcome.pages
    by_role = Counter(page.role for page in pages)
    return {
        "total": len(pages),
        "free": outcome.free,
        "roots_active": sum(1 for page in pages if page.root_count),
        "orphans": sum(1 for page in pages if not page.root_count and not page.parents),
        "max_parents": max((page.parents for page in pages), default=0),
        "by_role": [{**unpack(role)._asdict(), "pages": n} for role, n in sorted(by_role.items())],
    }


def state(outcome: Outcome) -> Iterator[Facts]:
    """Every live shadow page, newest allocation first, in the form of the state file of docs/formats.md."""
    for page in outcome.pages:
        entries = {
            str(index): _leaf_text(entry) if isinstance(entry, int) else [entry[0], hex(entry[1])] for index, entry in page.entries.items()
        }
        yield {
            "gfn": page.gfn,
            "role": hex(page.role),
            "root_count": page.root_count,
            "multimapped": int(page.multimapped),
            "parents": page.parents,
            "entries": entries,
        }


def _leaf_text(spte: int) -> str:
    bits = ((PRESENT, "P"), (WRITABLE, "W"), (USER, "U"), (PT_SHADOW_WRITABLE_MASK, "w"), (PT_SHADOW_USER_MASK, "u"))
    return "".join(letter if spte & bit else "-" for bit, letter in bits) + ("i" if spte & PT_SHADOW_IO_MARK else "")
