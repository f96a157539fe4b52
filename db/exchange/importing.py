"""A trace file from what another program wrote."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from db.errors import UsageError
from db.exchange.jsonl import read_jsonl
from db.file.locking import refuse_existing
from db.writer import TraceWriter

_BATCH = 65536


@contextlib.contextmanager
def new_trace(source: Path, target: Path, force: bool) -> Iterator[TraceWriter]:
    """A trace made from ``source``. It is written beside the target and takes its name when it is whole: a bad line leaves what was
    there as it was. Whoever writes it seals it. Raises ``UsageError`` where there is no such file.
    """
    if not source.is_file():
        raise UsageError(f"there is no file {source}", "shadowtrace import FILE -o TRACE.db")
    refuse_existing(target, force)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with TraceWriter(partial, force=True, alone=True) as writer:
            yield writer
        partial.replace(target)
    finally:
        for path in (partial, *(partial.with_name(partial.name + suffix) for suffix in ("-wal", "-shm"))):
            path.unlink(missing_ok=True)


def import_jsonl(source: Path, target: Path, force: bool, version: str) -> int:
    """Read JSON Lines into a new, sealed trace file; how many events."""
    with new_trace(source, target, force) as writer:
        vcpus = 1
        events = read_jsonl(source)
        while batch := list(itertools.islice(events, _BATCH)):
            writer.append(batch)
            vcpus = max(vcpus, *(event.vcpu + 1 for event in batch))
        if not writer.events:
            raise UsageError(f"there is no event in {source}", "docs/formats.md has the format; shadowtrace export writes it")
        writer.describe(source="import", guest=source.name, title=f"events from {source.name}", vcpus=vcpus, version=version)
        writer.seal("import", f"imported from {source.name}")
    return writer.events
