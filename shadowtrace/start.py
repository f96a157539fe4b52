"""Where the command begins: it imports nothing that takes time before Ctrl-C has its answer."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line, as ``shadowtrace.__main__.main`` does; interrupted while that is imported it is as it is later: 130."""
    try:
        from shadowtrace.__main__ import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("shadowtrace: interrupted\n")
        return 130
