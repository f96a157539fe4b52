"""Where the command begins: it imports nothing that takes time before Ctrl-C has its answer."""

from __future__ import annotations

import atexit
import os
import sys


def main() -> int:
    """Run the command line, as ``shadowtrace.__main__.main`` does; interrupted while that is imported it is as it is later: 130."""
    try:
        from shadowtrace.__main__ import main as run

        code = run()
    except KeyboardInterrupt:
        sys.stderr.write("shadowtrace: interrupted\n")
        code = 130
    if "numba" in sys.modules:
        _leave(code)
    return code


def _leave(code: int) -> None:
    """End the process as it stands: to take apart what numba has loaded takes a sixth of the time of a replay.

    Where the output does not take what is left of it, Python's own way of ending says so.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(code)
