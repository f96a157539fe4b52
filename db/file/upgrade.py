"""A trace of an older schema made into a file of today's."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from db.errors import UsageError
from db.file.guarded import connect
from db.file.locking import refuse_existing, storage_errors
from db.schema import SCHEMA_VERSION
from db.trace import TraceReader


def upgrade(source: Path, target: Path, force: bool, version: str) -> int:
    """Write an older trace into a new file of today's schema, which takes its name when it is whole; the schema it had.

    ``version`` is the shadowtrace that does it. Raises ``UsageError`` where there is nothing to upgrade.
    """
    refuse_existing(target, force)
    with TraceReader(source) as trace:
        if trace.upgraded_from is None:
            raise UsageError(f"{source} has schema {SCHEMA_VERSION}, today's, already", "there is nothing to do")
        partial = target.with_name(f".{target.name}.partial")
        try:
            shutil.copyfile(trace.file, partial)
            with storage_errors(target), contextlib.closing(connect(partial, "rw")) as connection:
                connection.execute("UPDATE recording SET upgraded_by = ?", (version,))
                connection.commit()
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return trace.upgraded_from
