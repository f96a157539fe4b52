"""The trace file's identity, the history of its schema, and the views that make it readable."""

from __future__ import annotations

from x86.event import ACCESS_FAULT, ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, WRITE_SEEN_SHIFT, WRITE_SIZE, Kind

#: SQLite's application_id: "ShTr" in ASCII.
APPLICATION_ID = 0x53685472

#: SQLite's user_version. History:
#:
#: 1. The first.
#: 2. Which instruction made a store, and the kernel's functions that did; where the kernel lay; the numbers that a loss spans;
#:    command lines and exact roots of address spaces; who upgraded a file.
#:
#: db/history has the tables and views of each version, today's made from db/models.py; tests/data a file of each earlier one.
SCHEMA_VERSION = 2


def _hex(column: str) -> str:
    return f"printf('0x%x', {column})"


#: Name, what it shows, and the query, for each view.
VIEWS = (
    (
        "v_cr3_load",
        "cr3 loads, with the last name that was learnt for the root before, though the frame be another address space by now: `stat` knows better",
        f"SELECT e.seq, e.vcpu, {_hex('e.addr')} AS cr3, {_hex('p.entry0')} AS pdpte0, {_hex('p.entry1')} AS pdpte1,"
        f" {_hex('p.entry2')} AS pdpte2, {_hex('p.entry3')} AS pdpte3,"
        " (SELECT a.comm FROM address_space a WHERE a.root_gfn = (e.addr >> 12) & 0xffffffffff AND a.seq < e.seq"
        " AND (p.seq IS NULL OR a.root IS NULL OR a.root = e.addr & 0xffffffe0)"
        " ORDER BY a.seq DESC, a.id DESC LIMIT 1) AS comm"
        f" FROM event e LEFT JOIN pdptes p USING (seq) WHERE e.kind = {Kind.CR3:d}",
    ),
    (
        "v_pt_write",
        "stores to page tables",
        f"SELECT seq, vcpu, {_hex('addr')} AS gpa, flags & {WRITE_SIZE} AS size, {_hex('value')} AS value,"
        f" CASE flags >> {WRITE_SEEN_SHIFT} WHEN 0 THEN 'exact' WHEN 1 THEN 'net' WHEN 2 THEN 'snapshot' ELSE 'foreign' END AS seen,"
        f" iif(o.pc IS NULL, NULL, {_hex('o.pc')}) AS pc,"
        " (SELECT s.name FROM symbol s WHERE o.pc - s.address BETWEEN 0 AND s.size - 1) AS function"
        f" FROM event LEFT JOIN store_origin o USING (seq) WHERE kind = {Kind.WRITE:d}",
    ),
    (
        "v_access",
        "accesses: first touches, and those that ended in a guest page fault",
        f"SELECT seq, vcpu, {_hex('addr')} AS va, (flags & {ACCESS_WRITE}) != 0 AS write, (flags & {ACCESS_USER}) != 0 AS user,"
        f" (flags & {ACCESS_FETCH}) != 0 AS fetch, (flags & {ACCESS_FAULT}) != 0 AS fault FROM event WHERE kind = {Kind.ACCESS:d}",
    ),
    (
        "v_mode_change",
        "mode-register changes",
        f"SELECT e.seq, e.vcpu, {_hex('m.cr0')} AS cr0, {_hex('m.cr4')} AS cr4, {_hex('m.efer')} AS efer"
        f" FROM event e JOIN mode_registers m USING (seq) WHERE e.kind = {Kind.REGS:d}",
    ),
    (
        "v_table_content",
        "pages whose content was recorded, with how many words were not zero",
        f"SELECT e.seq, e.vcpu, {_hex('e.addr')} AS gpa, length(c.words) / 10 AS words"
        f" FROM event e JOIN content c USING (seq) WHERE e.kind = {Kind.PAGE:d}",
    ),
    ("v_invlpg", "INVLPG instructions", f"SELECT seq, vcpu, {_hex('addr')} AS va FROM event WHERE kind = {Kind.INVLPG:d}"),
    (
        "v_event_count",
        "events by kind",
        "SELECT CASE kind WHEN 1 THEN 'mode registers' WHEN 2 THEN 'cr3 load' WHEN 3 THEN 'store to a table'"
        " WHEN 4 THEN 'table content' WHEN 5 THEN 'access' ELSE 'INVLPG' END AS kind, count(*) AS events FROM event GROUP BY event.kind",
    ),
)
