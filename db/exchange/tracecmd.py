"""The files of Linux's trace-cmd, which only that program reads: it is asked for their text."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from db.errors import UsageError

#: What they begin with.
_MAGIC = b"\x17\x08\x44tracing"

#: For a file that is one of trace-cmd's and still cannot be read.
HINT = "is the file whole? docs/peers.md says which are read"

#: Of what trace-cmd says is wrong no more than this is shown.
_SAID = 200


def is_trace_dat(path: Path) -> bool:
    """Whether a file begins like one of trace-cmd's. Raises ``OSError`` where it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


@contextlib.contextmanager
def text_of(path: Path) -> Iterator[IO[str]]:
    """The text of a trace.dat, as ``trace-cmd report -R`` prints it: to be read to its end. An error on the way ends that program.

    Raises ``UsageError`` where there is no trace-cmd, and at the end where it could not read the whole file.
    """
    program = shutil.which("trace-cmd")
    if program is None:
        raise UsageError(
            f"{path} is a trace.dat, which trace-cmd alone reads, and that is not installed",
            f"apt-get install trace-cmd, or where it was recorded: trace-cmd report -R -N -i {shlex.quote(path.name)} > kvm.trace",
        )
    with tempfile.TemporaryFile() as errors, _started([program, "report", "-R", "-N", "-i", str(path.absolute())], errors) as process:
        assert process.stdout is not None
        yield process.stdout
        if process.wait() != 0:
            raise UsageError(f"trace-cmd cannot read {path}: {_said(errors)}", HINT)


@contextlib.contextmanager
def _started(command: list[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", errors="backslashreplace"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _said(errors: IO[bytes]) -> str:
    """The last thing that trace-cmd said, or that it said nothing."""
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - _SAID))
    lines = errors.read().decode(errors="backslashreplace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "it ended without a word"
