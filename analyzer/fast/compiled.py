"""How the rooms of the fast core are compiled, and where what was compiled is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def _cache_folder() -> Path:
    """A folder of this very source: numba itself would only look whether the outermost function's file has changed."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "shadowtrace" / "compiled" / digest.hexdigest()[:16]


if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(_cache_folder())  # type: ignore[attr-defined]


def compiled(function: F) -> F:
    """Compile a function that others of the fast core call."""
    return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


def entry(function: F) -> F:
    """Compile a function that Python calls, and keep the result; no other thread waits for it while it runs."""
    return cast(F, numba.njit(nogil=True, error_model="numpy", cache=True)(function))


def is_kept(function: Callable[..., Any]) -> bool:
    """Whether what an entry was compiled to lies in the cache, so that calling it compiles nothing."""
    return any(Path(function.stats.cache_path).glob(f"*.{function.__name__}-*.nbi"))  # type: ignore[attr-defined]
