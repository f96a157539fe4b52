"""Ctrl-C, remembered: Python drops an exception that a callback of SQLite's, of ctypes' or of the collector's raises, this one too."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_came = threading.Event()


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """While inside, Ctrl-C raises ``KeyboardInterrupt`` as ever, and ``came`` knows of it. Where it was ignored it stays ignored."""
    _came.clear()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = signal.signal(signal.SIGINT, _remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def came() -> bool:
    """Whether Ctrl-C came."""
    return _came.is_set()


def raise_again() -> None:
    """Raise ``KeyboardInterrupt`` where Ctrl-C came: whoever still runs then has not heard of it."""
    if _came.is_set():
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    _came.set()
    signal.default_int_handler(number, frame)
