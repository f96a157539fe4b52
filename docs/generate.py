"""Writes the parts of docs/ that are made from the code: verbs.md, counters.md, schema.md, checks.md.

Run by ``make docs``; a test holds the files against what this would write.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import click
from sqlalchemy import Table

from analyzer.counters import SECTIONS, definitions
from analyzer.sharing import PARTS
from db.models import metadata
from db.schema import APPLICATION_ID, SCHEMA_VERSION, VIEWS
from db.verify import CHECKS
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
    "mmu_pages": "shadow pages there were",
    "hash_buckets": "buckets of the hash table",
    "get_page.by_role": "look-ups, hits and misses of each role, roots included, in order of the role word",
    "live.total": "shadow pages in use at the end",
    "live.free": "pages on the free list at the end",
    "live.roots_active": "pages that are a root in use",
    "live.orphans": "pages in use that are no root and have no parent",
    "live.max_parents": "most parents of one page",
    "live.by_role": "pages in use of each role",
    "hash.pages": "pages in the hash table",
    "hash.nonempty": "buckets that hold a page",
    "hash.longest": "pages in the fullest bucket",
    "hash.mean_nonempty": "pages for each bucket that holds one",
    "hash.mean_all": "pages for each bucket",
    "memory.nonzero_pages": "guest frames that are not all zero, as the model knows memory",
    "memory.crc32": "CRC-32 over them: 8 bytes of gfn, 4096 of content, by gfn",
    "roles": "of each role: look-ups, hits, pages made, alive now and at the most, deaths and emptied roots by cause",
    "frames.shadowed": "guest frames that have a shadow page at the end",
    "frames.told_apart_by": "frames with several shadow pages (`several`), and with two that differ in level, in glevels, in metaphysical,"
    " or in nothing but quadrant: now, and at the most",
    **{f"key.{part}": f"misses where a live page of the same frame differed in nothing but {part}" for part in PARTS},
    "frames.by_pages": "frames with exactly so many shadow pages: now, and at the most",
    "parents": "by level: pages alive, those with several parents, the most parents and whose, pte chains and those with a free slot",
}


def verbs() -> str:
    """docs/verbs.md."""
    context = click.Context(cli, info_name="shadowtrace")
    parts = [
        "# Verbs\n",
        "Each verb's own help. Exit codes: 0 done, 1 ours, 2 usage, 3 a limit that you set was missed, 130 interrupted.\n",
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
    rows = [f"| `{name}` | {text} |" for name, text in _FACTS.items()]
    parts.append("## Facts at the end\n\n| fact | what it is |\n| --- | --- |\n" + "\n".join(rows) + "\n")
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


PAGES = {"verbs.md": verbs, "counters.md": counters, "schema.md": schema, "checks.md": checks}


def main() -> None:
    """Write every page."""
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make())


if __name__ == "__main__":
    main()
