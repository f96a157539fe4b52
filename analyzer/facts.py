"""A replay's outcome as plain data: what JSON, the trace file and every renderer take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from analyzer.cache import ShadowPage
from analyzer.context import PT_SHADOW_IO_MARK, PT_SHADOW_USER_MASK, PT_SHADOW_WRITABLE_MASK
from analyzer.counters import as_sections
from analyzer.mmu import Mmu
from analyzer.role import unpack
from x86.paging import PRESENT, USER, WRITABLE

Facts = dict[str, Any]


def facts(mmu: Mmu) -> Facts:
    """Everything a replay tells, by name; docs/counters.md defines each entry."""
    pages = list(mmu.cache.active.values())
    out: Facts = {"mmu_pages": mmu.parameters.pages, "hash_buckets": mmu.parameters.buckets}
    out |= as_sections(mmu.counters)
    roles = sorted(mmu.sharing.roles.items())
    out["get_page"]["by_role"] = [
        {**unpack(role)._asdict(), "lookups": f.lookups, "hits": f.hits, "misses": f.misses} for role, f in roles if f.lookups
    ]
    out["live"] = _live(mmu, pages)
    out["hash"] = _hash(mmu, len(pages))
    out["memory"] = mmu.memory.digest()
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
    out["frames"] = {
        "shadowed": len(mmu.sharing.frames),
        "told_apart_by": {name: {"now": spread.now, "peak": spread.peak} for name, spread in mmu.sharing.spread.items()},
        "by_pages": [{"pages": n, "now": now, "peak": peak} for n, (now, peak) in mmu.sharing.pages_per_frame().items()],
    }
    out["parents"] = _parents(pages)
    return out


def _live(mmu: Mmu, pages: list[ShadowPage]) -> Facts:
    by_role = Counter(page.role for page in pages)
    return {
        "total": len(pages),
        "free": len(mmu.cache.free),
        "roots_active": sum(1 for page in pages if page.root_count),
        "orphans": sum(1 for page in pages if not page.root_count and not page.parents()),
        "max_parents": max((len(page.parents()) for page in pages), default=0),
        "by_role": [{**unpack(role)._asdict(), "pages": n} for role, n in sorted(by_role.items())],
    }


def _hash(mmu: Mmu, pages: int) -> Facts:
    lengths = [len(bucket) for bucket in mmu.cache.buckets]
    nonempty = sum(1 for length in lengths if length)
    return {
        "pages": sum(lengths),
        "nonempty": nonempty,
        "longest": max(lengths),
        "mean_nonempty": round(pages / nonempty, 6) if nonempty else 0.0,
        "mean_all": round(sum(lengths) / len(lengths), 6),
    }


def _parents(pages: list[ShadowPage]) -> list[Facts]:
    """By level: live pages with several parents now, the most parents and whose, chains in use and with a free slot."""
    rows = []
    for level in sorted({page.level for page in pages}):
        here = [page for page in pages if page.level == level]
        shared = [page for page in here if len(page.parents()) > 1]
        chains = [chain for page in here for chain in page.parent_ptes]
        top = max(here, key=lambda page: (len(page.parents()), -page.gfn))
        rows.append(
            {
                "level": level,
                "pages": len(here),
                "several_parents": len(shared),
                "most_parents": len(top.parents()),
                "most_shared_gfn": top.gfn if shared else None,
                "chains": len(chains),
                "chains_not_full": sum(1 for chain in chains if len(chain) < 5),
            }
        )
    return rows


def state(mmu: Mmu) -> Iterator[Facts]:
    """Every live shadow page, newest allocation first, in the form of the state file of docs/formats.md."""
    for page in reversed(mmu.cache.active.values()):
        entries: dict[str, Any] = {}
        for index, entry in enumerate(page.entries):
            if not entry:
                continue
            if page.level == 1:
                entries[str(index)] = _leaf_text(entry)
            else:
                child = mmu.cache.child(entry)
                entries[str(index)] = [child.gfn, hex(child.role)]
        yield {
            "gfn": page.gfn,
            "role": hex(page.role),
            "root_count": page.root_count,
            "multimapped": int(page.multimapped),
            "parents": len(page.parents()),
            "entries": entries,
        }


def _leaf_text(spte: int) -> str:
    bits = ((PRESENT, "P"), (WRITABLE, "W"), (USER, "U"), (PT_SHADOW_WRITABLE_MASK, "w"), (PT_SHADOW_USER_MASK, "u"))
    return "".join(letter if spte & bit else "-" for bit, letter in bits) + ("i" if spte & PT_SHADOW_IO_MARK else "")
