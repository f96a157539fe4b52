"""The command line in processes forked from one that has imported it: what hundreds of them spend on starting is spent once.

Each command has a process of its own with its own arguments, folder, environment, standard output and standard error, and begins in
``shadowtrace.start.main`` as the installed command does.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

#: What a verb imports when it is called.
_IMPORTED = (
    "shadowtrace.start",
    "shadowtrace.__main__",
    "shadowtrace.report",
    "shadowtrace.replay",
    "analyzer.model.kernel",
    "analyzer.sweep",
)


class Forked:
    """A process that forks one for each command; a context manager that ends it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
        root = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=root, stdin=subprocess.DEVNULL)
        theirs.close()

    def run(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            request = json.dumps([list(arguments), str(folder), dict(environment)]).encode()
            socket.send_fds(self._ours, [len(request).to_bytes(4, "little")], [out.fileno(), err.fileno()])
            self._ours.sendall(request)
            answer = self._ours.recv(4)
            if len(answer) < 4:
                raise RuntimeError("the process that forks commands is gone")
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(io.TextIOWrapper(io.BytesIO(file.read()), "utf-8").read())
        return int.from_bytes(answer, "little", signed=True), texts[0], texts[1]

    def close(self) -> None:
        """End it."""
        self._ours.close()
        self._process.wait()


def _serve(channel: socket.socket) -> None:
    for module in _IMPORTED:
        importlib.import_module(module)
    while True:
        size, fds, _, _ = socket.recv_fds(channel, 4, 2)
        if not size:
            return
        request = b""
        while len(request) < int.from_bytes(size, "little"):
            request += channel.recv(1 << 16)
        arguments, folder, environment = json.loads(request)
        child = os.fork()
        if child == 0:
            channel.close()
            _become(arguments, folder, environment, fds)
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(child, 0)
        channel.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))


def _become(arguments: list[str], folder: str, environment: dict[str, str], fds: list[int]) -> None:
    """Be the command, in a new child: never returns."""
    code = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for fd, target in zip(fds, (1, 2), strict=True):
            os.dup2(fd, target)
            os.close(fd)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", write_through=False)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
        sys.argv = ["shadowtrace", *arguments]
        from shadowtrace.start import main

        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code or 0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
