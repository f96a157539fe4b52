"""Writes the parts of docs/ that are made from the code: verbs.md, counters.md, schema.md, checks.md,
findings.md; and today's schema into db/history.

Run by ``make docs``; a test holds the files against what this would write.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
from sqlalchemy import Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from analyzer.facts.findings import RULES
from analyzer.facts.group_counts import COUNTS, MORE, UNCACHED
from analyzer.facts.grouping import KEYS
from analyzer.facts.sharing import PARTS
from analyzer.model.counters import SECTIONS, definitions
from db.check.verify import CHECKS
from db.models import metadata
from db.schema import APPLICATION_ID, SCHEMA_VERSION, VIEWS
from shadowtrace.__main__ import VERBS, cli

FOLDER = Path(__file__).parent

_SECTION_TITLES = {
    "events": "Events replayed",
    "access": "Accesses",
    "kvm_stat": "The kernel's own counters",
    "get_page": "Look-ups",
    "writes": "Stores",
    "zaps": "Zaps",
    "evictions": "Eviction",
    "multimapped": "Pages with several parents",
    "pte_chain": "pte chains",
    "rmap": "Reverse map",
    "mode": "Modes",
    "fills": "Shadow entries made",
    "contents": "Contents that arrived late",
    "roots": "Kept roots",
    "corner": "Corners where 2.6.20 itself breaks",
}

_FACTS = {
    "form": "the form of these facts, a number that changes with them",
    "mmu_pages": "shadow pages there were",
    "hash_buckets": "buckets of the hash table",
    "get_page.by_role": "look-ups, hits and misses of each role, roots included, in order of the role word",
    "roots.of_frame_0": "look-ups of PAE roots of frame 0: what 2.6.20 makes of an absent entry of the page-directory-pointer table",
    "roots.to_neighbours": "times a vCPU took roots of the frame beside the one before, only the lowest bit of the number changed:"
    " page-table isolation's way between its two top tables",
    "live.total": "shadow pages in use at the end",
    "live.free": "pages on the free list at the end",
    "live.peak": "most shadow pages in use at once",
    "live.keys_ever": "different keys that pages were made of: with so many pages and those that eviction keeps free it would never start",
    "live.roots_active": "pages that are a root in use",
    "live.orphans": "pages in use that are no root and have no parent",
    "live.max_parents": "most parents of one page",
    "live.by_role": "pages in use of each role",
    "hash.pages": "pages in the hash table",
    "hash.nonempty": "buckets that hold a page",
    "hash.longest": "pages in the fullest bucket",
    "hash.mean_nonempty": "pages for each bucket that holds one",
    "hash.mean_all": "pages for each bucket",
    "hash.chains": "how many buckets hold how many pages, empty buckets included",
    "hash.worst": "up to 8 buckets with several pages, the fullest first: pages, different frames and metaphysical pages in it, its roles,"
    " and why: most are metaphysical, or half are further pages of frames that have one there, or chance",
    "memory.nonzero_pages": "guest frames that are not all zero, as the model knows memory",
    "memory.crc32": "CRC-32 over them: 8 bytes of gfn, 4096 of content, by gfn",
    "roles": "of each role: look-ups, hits, pages made, alive now and at the most, deaths and emptied roots by cause; `orphans`: alive now, no"
    " root in use and without a parent; `stores`: intercepted stores to frames whose newest page is of this role; `lifetime`: median, mean"
    " and longest life of those that died, in events from birth to death, null where none did",
    "frames.shadowed": "guest frames that have a shadow page at the end",
    "frames.told_apart_by": "frames with several shadow pages (`several`), and with two that differ in level, in glevels, in metaphysical,"
    " or in nothing but quadrant: now, and at the most",
    **{f"key.{part}": f"misses where a live page of the same frame differed in nothing but {part}" for part in PARTS},
    "frames.by_pages": "frames with exactly so many shadow pages: now, and at the most",
    "frames.top": "up to 20 frames with several pages now, the most first: their roles, what tells those apart, and the names of the"
    " address spaces that any of them is part of",
    "frames.most_made": "up to 8 frames whose pages were made most often, twice at the least: how often, at which levels, in which"
    " address spaces",
    "parents": "by level: pages alive, those with several parents, the most parents and whose, pte chains, those with a free slot and those"
    " with two used slots of five or fewer; `histogram`: pages by number of parents",
    "parents_top": "up to 20 pages with several parents now, the most first: key, birth number, `kernel_half` (true where every way to it goes"
    " through entries 256 and up of a long-mode root, or through quadrant 3 of a two-level one; false where none does; null where both do"
    " or neither can be told), and the names of the address spaces that it is part of",
    "spaces": "address spaces in order of first use: paging levels, the root that cr3 names (its physical address; 0 without paging, one"
    " space for the machine), generation and name, `gfn 0x..` where none was learnt; `loads`: times a vCPU took its roots, by a cr3 load with"
    " paging on or a change of mode; look-ups, hits, pages made and faults while a vCPU was in it; first and last event of these;"
    " `pages_now`: live pages its roots lead to at the end. A generation begins where a root's content was recorded anew while it was not"
    " loaded, because its frame was freed and used again (in PAE where other pointers were there than at its last load), and with the cr3"
    " load during which the root got a second name, the first of several in a row; a fork's child has no name until it executes a program",
    "processes": "address spaces of one name together, those with the most look-ups first",
    "space_sharing.peak": "when most pages had several parents at once (after `event`; the end where none ever had). `by_level`: live pages"
    " that the roots of no address space lead to, of one, of several, and the most spaces that one page is part of;"
    " `histogram`: pages by number of spaces. The roots of a space are those its latest load looked up, while they live; of the generations of a root the newest counts. `matrix`: pages that two"
    " spaces have in common, for up to 24 spaces (`spaces`: their places in the list) with the most in common; on the diagonal all pages"
    " of one",
    "space_sharing.end": "the same at the end",
    "origin.roots": "hits of roots by who had made the page, the first that holds: a vCPU in another paging mode (never: glevels in the key"
    " keeps modes apart), another vCPU, the same vCPU in another address space, in the same. `age`: hits by events since the page was made,"
    " up to that power of two and more than the one before",
    "origin.tables": "the same for tables below the roots",
    "phases": "from one mark of the trace to the next (`start` before the first; the machine's creation is part of it): `cr3`: times a vCPU"
    " took roots; accesses and faults, look-ups, hits, pages made, zaps by cause, intercepted stores; `live_end`: pages in use when it ends",
    "over_time.bucket_events": "events in each slice of the replay; there are up to 200",
    "over_time.buckets": "for each slice what happened in it, as for a phase (`zapped`: of all causes), and how things stand after it: live"
    " pages by level, pages with several parents (`multi_parent`), frames with several shadow pages (`several_pages`), and of these those whose"
    " pages each part of the key tells apart (`told_apart_by`, as in `frames.told_apart_by`) and those with exactly so many (`by_pages`)",
    "saved": "only in a report that has a run without a cache to compare with: faults, exits, pages made and shadow entries filled with the"
    " cache and without, in all and for each cr3 load. Exits are faults, intercepted stores (once, where the trace has the store as an"
    " access too), cr3 loads and, without a cache, INVLPG. `cycles`: exits, faults and entries, each times its cost; the costs are"
    " `--cycles-exit`, `--cycles-fault` and `--cycles-fill`, round figures unless you set them",
    "findings": "what is worth a look: see [findings.md](findings.md). `TRACE` and `GUEST` in a command stand for the file and the guest",
}

_GUEST_FAULTS = """\
`access.guest_faults` need not be the number of accesses that were recorded as ended in a guest page fault (the `fault` of an access, "guest
page fault" in Perfetto). It is the model's judgement: it walks the guest's tables as it knows them when the access is replayed. It finds no
fault where a store to the entry came into the trace before the access although the guest made it after, or where the fault was over a
reserved bit or of SMEP or SMAP, which the model does not know; it finds one where an access is replayed whose entry the trace shows as absent
just then. And an access that the shadow tables still allow, because the guest cleared the entry without INVLPG, is no fault in the model.
"""

_KEYS = "## Keys of `report --by`\n\n| key | what it is |\n| --- | --- |\n"


def verbs() -> str:
    """docs/verbs.md."""
    context = click.Context(cli, info_name="shadowtrace")
    parts = [
        "# Verbs\n",
        "Each verb's own help. Exit codes: 0: done; 1: it failed (a full disk, a QEMU that crashed), or what `verify` or `doctor` looked at is"
        " not in order; 2: it cannot be done as asked, or a file is not a sound trace; 3: a limit that you set was missed, or captures"
        " differ; 130: interrupted by Ctrl-C.\n",
    ]
    for verb in VERBS:
        module = importlib.import_module(f"shadowtrace.{verb if verb != 'import' else 'import_'}")
        text = module.command.get_help(
            click.Context(module.command, info_name=verb, parent=context, terminal_width=100, max_content_width=100)
        )
        parts.append(f"## {verb}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def counters() -> str:
    """docs/counters.md."""
    known = definitions()
    parts = [
        "# Counters\n",
        "Everything a replay counts, as `shadowtrace replay --format json` names it. The model is described in [model.md](model.md).\n",
    ]
    for section in SECTIONS:
        rows = [f"| `{name}` | {text} |" for name, text in known.items() if name.startswith(f"{section}.")]
        parts.append(f"## {_SECTION_TITLES[section]}\n\n| counter | what it counts |\n| --- | --- |\n" + "\n".join(rows) + "\n")
        if section == "access":
            parts.append(_GUEST_FAULTS)
    rows = [f"| `{name}` | {text} |" for name, text in _FACTS.items()]
    parts.append("## Facts at the end\n\n| fact | what it is |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    parts.append(_KEYS + "\n".join(f"| `{name}` | {key.about} |" for name, key in KEYS.items()) + "\n")
    parts.append(
        "A row of the journal that has no answer to a key is left out: only hits have an origin and an age, only deaths a cause, and a fault is"
        " of no level.\n"
    )
    groups = (
        ("Counts of `report --by`", COUNTS),
        ("Counts with `--all`, and always in JSON and CSV", MORE),
        ("Counts with `--saved`", UNCACHED),
    )
    for title, counts in groups:
        rows = "\n".join(f"| `{name}` | {text} |" for name, text in counts.items())
        parts.append(f"## {title}\n\n| count | what it is |\n| --- | --- |\n{rows}\n")
    return "\n".join(parts)


def findings() -> str:
    """docs/findings.md."""
    parts = [
        "# Worth a look\n",
        "What a report ends with: rules over the facts, each with a threshold, below which it says nothing, and a command that looks closer.\n",
        *(f"## {rule.name}\n\nSpeaks from: {rule.threshold}.\n\n{rule.meaning}\n" for rule in RULES),
    ]
    return "\n".join(parts)


def _table(table: Table) -> str:
    rows = []
    for column in table.columns:
        kind = column.type.compile()
        kind = {"BLOB": "BLOB", "TEXT": "TEXT", "REAL": "REAL"}.get(kind, "INTEGER")
        rows.append(f"| `{column.name}` | {kind}{' or NULL' if column.nullable else ''} | {column.comment} |")
    return f"### {table.name}\n\n{table.comment}\n\n| column | type | what it holds |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def schema() -> str:
    """docs/schema.md."""
    parts = [
        "# The trace file\n",
        f'A trace is one SQLite database. `application_id` is {APPLICATION_ID:#x} ("ShTr"), `user_version` is the schema\'s version,'
        f" now {SCHEMA_VERSION}. All tables are STRICT. Numbers of 64 bits are stored in two's complement: SQLite's integers are signed, so an"
        " entry with NX reads as a negative number. The views show them in hex.\n",
        "While a recording runs the file is in WAL mode and has a `-wal` beside it; batches are committed at least every fifth of a second"
        " of arrivals. Sealing folds it into one file and fills `ended`, `events` and `lost` of `recording`. A file whose `ended` is NULL was"
        " never sealed: what is in it is whole up to its last event.\n",
        "## Tables\n",
        *(_table(table) for table in metadata.sorted_tables),
        "## Views\n",
        "| view | what it shows |\n| --- | --- |\n" + "\n".join(f"| `{name}` | {about} |" for name, about, _ in VIEWS) + "\n",
    ]
    return "\n".join(parts)


def checks() -> str:
    """docs/checks.md."""
    rows = "\n".join(f"| `{check.name}` | {check.claim} | {check.why} |" for check in CHECKS.values())
    return f"# Checks\n\nWhat `shadowtrace verify` looks at.\n\n| check | what it claims | why |\n| --- | --- | --- |\n{rows}\n"


def history() -> str:
    """What makes today's tables and views, for db/history: readers and writers of traces go by it."""
    tables = (
        re.sub(r"\s*\n", "\n", str(CreateTable(table).compile(dialect=sqlite.dialect()))).strip().expandtabs(4)
        for table in metadata.sorted_tables
    )
    views = (f"CREATE VIEW {name} AS {query}" for name, _, query in VIEWS)
    parts = [f"-- Schema {SCHEMA_VERSION}, from db/models.py and db/schema.py.", *(f"{sql};" for sql in (*tables, *views))]
    return "\n\n".join(parts) + "\n"


PAGES = {
    "verbs.md": verbs,
    "counters.md": counters,
    "schema.md": schema,
    "checks.md": checks,
    "findings.md": findings,
    f"../db/history/v{SCHEMA_VERSION}.sql": history,
}


def main() -> None:
    """Write every page."""
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make())


if __name__ == "__main__":
    main()
