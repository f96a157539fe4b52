"""The queries behind the verbs that look into a trace, in words that any SQLite shell takes: ``--sql`` prints them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from db.trace import TraceReader
from x86.event import CR3_HAS_PDPTES, Kind, is_event
from x86.paging import BASE64, BASE_PDPT

#: The bit mask of all kinds.
EVERY_KIND = sum(1 << kind for kind in Kind)


@dataclass(frozen=True)
class Query:
    """A SELECT and the numbers bound in it; as text, one statement with the numbers written out."""

    sql: str
    parameters: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return re.sub(r":([a-z]+)", lambda name: str(self.parameters[name[1]]), self.sql) + ";"

    def rows(self, trace: TraceReader) -> Iterator[tuple[Any, ...]]:
        """Its rows, streamed; numbers as the file holds them."""
        return trace.stream(self.sql, self.parameters)


class Events(Query):
    """Rows of the event table, in order."""

    def rows(self, trace: TraceReader) -> Iterator[tuple[Any, ...]]:
        """Rows of seq, kind, vcpu, flags, addr, value; one of no known shape raises ``TraceError``, as in ``TraceReader.events``."""
        last = 0
        for row in super().rows(trace):
            if not is_event(*row) or row[0] <= last:
                raise trace.damaged(f"event {row[0]!r} is incomplete or of no known shape")
            last = row[0]
            yield row


#: Events of each kind and vCPU between two marks; 0 where no mark comes before.
BY_PHASE = Query(
    """\
WITH phase (id, after, upto) AS (
  SELECT id, seq, coalesce(lead(seq) OVER (ORDER BY seq, id), 1 << 62) FROM mark
  UNION ALL SELECT 0, -1, (SELECT coalesce(min(seq), 1 << 62) FROM mark)
)
SELECT phase.id, kind, vcpu, count(*), min(seq), max(seq)
FROM phase JOIN event ON seq > after AND seq <= upto
GROUP BY phase.id, kind, vcpu ORDER BY phase.id, kind, vcpu"""
)

#: Distinct frames whose content was recorded, how often, and the bytes of it.
CONTENTS = Query(
    "SELECT count(DISTINCT addr), count(*), coalesce(sum(length(words)), 0) FROM event JOIN content USING (seq) WHERE kind = 4"
)

#: The tables that the guest had at the end, by level.
END_TABLES = Query("SELECT level, count(*) FROM end_table GROUP BY level ORDER BY level DESC")

#: The address of the root that a cr3 load names: of 32 bytes where PAE's PDPTEs were read with it (flag 1), else a page.
ROOT = f"iif(kind = {Kind.CR3:d} AND flags & {CR3_HAS_PDPTES}, addr & {BASE_PDPT:#x}, addr & {BASE64:#x})"

#: Where roots come from: cr3 loads (kind 2), and pages whose content was recorded (kind 4).
ROOTS = Query(
    f"SELECT seq, kind, vcpu, {ROOT} AS root, entry0, entry1, entry2, entry3\n"
    "FROM event LEFT JOIN pdptes USING (seq) WHERE kind IN (2, 4) ORDER BY seq"
)

#: Which vCPU loaded which root when.
LOADS = Query(f"SELECT seq, vcpu, {ROOT} AS root\nFROM event WHERE kind = 2 ORDER BY seq")

#: Stores to tables: when, where, and the instruction that made each.
STORES = Query("SELECT seq, addr, pc FROM event LEFT JOIN store_origin USING (seq) WHERE kind = 3 ORDER BY seq")


def writers(instruction: bool, limit: int) -> Query:
    """The functions, or instructions, that stored to tables, the busiest first, up to ``limit``: stores, and frames stored to."""
    place = "pc" if instruction else "coalesce(s.address, pc)"
    code = f"iif({place} = s.address, s.name, s.name || printf('+0x%x', {place} - s.address))"
    return Query(
        f"SELECT coalesce({code}, iif(pc IS NULL, '(no instruction seen)', printf('0x%x', pc))) AS code,\n"
        f"  iif(pc IS NULL, NULL, printf('0x%x', {place})) AS address, count(*) AS stores, count(DISTINCT addr >> 12) AS tables\n"
        "FROM event LEFT JOIN store_origin USING (seq) LEFT JOIN symbol s ON pc BETWEEN s.address AND s.address + s.size - 1\n"
        f"WHERE kind = 3 GROUP BY {place} ORDER BY stores DESC, code LIMIT :limit",
        {"limit": limit},
    )


def events(first: int, last: int, kinds: int = EVERY_KIND, vcpus: int = -1) -> Query:
    """Events ``first`` to ``last``; ``kinds`` and ``vcpus`` are bit masks by number. Where none is left out, a row of no kind is not either."""
    sql = "SELECT seq, kind, vcpu, flags, addr, value FROM event\nWHERE seq BETWEEN :first AND :last"
    sql += " AND :kinds >> kind & 1" if kinds != EVERY_KIND else ""
    sql += " AND :vcpus >> vcpu & 1" if vcpus != -1 else ""
    return Events(sql + " ORDER BY seq", {"first": first, "last": last, "kinds": kinds, "vcpus": vcpus})


def by_bucket(width: int) -> Query:
    """Events of each kind, and accesses that ended in a guest page fault (kind 0), in buckets of ``width`` events."""
    return Query(
        "SELECT (seq - 1) / :width AS bucket, kind, count(*), sum(kind = 5 AND flags & 8 != 0) FROM event GROUP BY bucket, kind",
        {"width": width},
    )
