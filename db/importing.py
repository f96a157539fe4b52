"""A trace file from events that another program wrote."""

from __future__ import annotations

import itertools
from pathlib import Path

from db.errors import UsageError
from db.interchange import read_jsonl
from db.storage import refuse_existing
from db.trace import TraceWriter

_BATCH = 65536


def import_jsonl(source: Path, target: Path, force: bool, version: str) -> int:
    """Read JSON Lines into a new, sealed trace file; how many events.

    It is written beside the target and takes its name when it is whole: a bad line leaves what was there as it was.
    """
    if not source.is_file():
        raise UsageError(f"there is no file {source}", "shadowtrace import EVENTS.jsonl -o FILE.db")
    refuse_existing(target, force)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with TraceWriter(partial, force=True) as writer:
            vcpus = 1
            events = read_jsonl(source)
            while batch := list(itertools.islice(events, _BATCH)):
                writer.append(batch)
                vcpus = max(vcpus, *(event.vcpu + 1 for event in batch))
            writer.describe(source="import", guest=source.name, title=f"events from {source.name}", vcpus=vcpus, version=version)
            writer.seal("import", f"imported from {source.name}")
        partial.replace(target)
        return writer.events
    finally:
        for path in (partial, *(partial.with_name(partial.name + suffix) for suffix in ("-wal", "-shm"))):
            path.unlink(missing_ok=True)
