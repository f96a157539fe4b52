"""How the rooms of the fast core are compiled, and where what was compiled is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

import x86

F = TypeVar("F", bound=Callable[..., Any])


def _cache_folder() -> Path:
    """A folder of this very source: numba itself would only look whether the outermost function's file has changed.

    The numbers that the model and the architecture define are compiled in as well.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    rooms = (Path(__file__).parent.parent, Path(x86.__file__).parent)
    for source in sorted(source for room in rooms for source in room.rglob("*.py")):
        digest.update(source.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "shadowtrace" / "compiled" / digest.hexdigest()[:16]


if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(_cache_folder())  # type: ignore[attr-defined]


def compiled(function: F) -> F:
    """Compile a function that others of the fast core call, and Python never: without the wrappers for that it takes less time."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, numba.njit(nogil=True, error_model="numpy", **options)(function))


def entry(function: F) -> F:
    """Compile a function that Python calls, and keep the result; no other thread waits for it while it runs."""
    return cast(F, numba.njit(nogil=True, error_model="numpy", cache=True)(function))


def is_kept(function: Callable[..., Any]) -> bool:
    """Whether what an entry was compiled to lies in the cache, so that calling it compiles nothing."""
    return any(Path(function.stats.cache_path).glob(f"*.{function.__name__}-*.nbi"))  # type: ignore[attr-defined]
