"""Where qemu-scripts lies: inside the installed package, or beside it in a checkout; and where caches go."""

from __future__ import annotations

import os
from pathlib import Path


def scripts() -> Path:
    """The qemu-scripts folder."""
    installed = Path(__file__).with_name("scripts")
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "qemu-scripts"


def cache(name: str) -> Path:
    """A folder of ours under the user's cache folder (XDG_CACHE_HOME), made if it is missing."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "shadowtrace" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
