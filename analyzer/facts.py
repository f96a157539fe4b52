"""A replay's outcome as plain data: what JSON, the trace file and every renderer take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from analyzer.cache import NR_PTE_CHAIN_ENTRIES
from analyzer.context import PT_SHADOW_IO_MARK, PT_SHADOW_USER_MASK, PT_SHADOW_WRITABLE_MASK
from analyzer.counters import as_sections
from analyzer.outcome import LivePage, Outcome
from analyzer.role import unpack
from analyzer.sharing import Sharing, sharing
from x86.paging import PRESENT, USER, WRITABLE

Facts = dict[str, Any]


def facts(outcome: Outcome) -> Facts:
    """Everything a replay tells, by name; docs/counters.md defines each entry."""
    shared = sharing(outcome.journal)
    out: Facts = {"mmu_pages": outcome.parameters.pages, "hash_buckets": outcome.parameters.buckets}
    out |= as_sections(outcome.counters)
    roles = sorted(shared.roles.items())
    out["get_page"]["by_role"] = [
        {**unpack(role)._asdict(), "lookups": f.lookups, "hits": f.hits, "misses": f.misses} for role, f in roles if f.lookups
    ]
    out["live"] = _live(outcome)
    out["hash"] = _hash(outcome)
    out["memory"] = {"nonzero_pages": outcome.nonzero_pages, "crc32": f"0x{outcome.memory_crc32:08x}"}
    out["key"] = dict(shared.key)
    out["roles"] = [
        {
            **unpack(role)._asdict(),
            "lookups": f.lookups,
            "hits": f.hits,
            "made": f.misses,
            "live": f.live,
            "peak": f.peak,
            "deaths": dict(sorted(f.deaths.items())),
            "emptied": dict(sorted(f.emptied.items())),
        }
        for role, f in roles
    ]
    out["frames"] = _frames(shared)
    out["parents"] = _parents(outcome.pages)
    return out


def _frames(shared: Sharing) -> Facts:
    return {
        "shadowed": len(shared.frames),
        "told_apart_by": {name: {"now": spread.now, "peak": spread.peak} for name, spread in shared.spread.items()},
        "by_pages": [{"pages": n, "now": now, "peak": peak} for n, (now, peak) in shared.pages_per_frame().items()],
    }


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


def _hash(outcome: Outcome) -> Facts:
    lengths = outcome.buckets
    nonempty = sum(1 for length in lengths if length)
    return {
        "pages": sum(lengths),
        "nonempty": nonempty,
        "longest": max(lengths),
        "mean_nonempty": round(len(outcome.pages) / nonempty, 6) if nonempty else 0.0,
        "mean_all": round(sum(lengths) / len(lengths), 6),
    }


def _parents(pages: list[LivePage]) -> list[Facts]:
    """By level: live pages with several parents now, the most parents and whose, chains in use and with a free slot."""
    rows = []
    for level in sorted({unpack(page.role).level for page in pages}):
        here = [page for page in pages if unpack(page.role).level == level]
        shared = [page for page in here if page.parents > 1]
        chains = [used for page in here for used in page.chains]
        top = max(here, key=lambda page: (page.parents, -page.gfn))
        rows.append(
            {
                "level": level,
                "pages": len(here),
                "several_parents": len(shared),
                "most_parents": top.parents,
                "most_shared_gfn": top.gfn if shared else None,
                "chains": len(chains),
                "chains_not_full": sum(1 for used in chains if used < NR_PTE_CHAIN_ENTRIES),
            }
        )
    return rows


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
