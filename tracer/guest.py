"""Guest recipes: TOML files in qemu-scripts/guests made into values, and their QEMU arguments."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db.errors import UsageError, nearest
from tracer import images, resources
from tracer.expect import Expectation
from tracer.images import Images, Source, fetch
from tracer.system import System


@dataclass(frozen=True)
class Guest:
    """A guest we ship: which files it is made of, and how QEMU starts it."""

    name: str
    title: str
    mode: str
    """The paging modes it shows, in words."""
    seconds: int
    """About how long recording it takes."""
    events: int
    """About how many events that gives."""
    limit: float | None
    """Seconds after which it is stopped, for a guest that never ends by itself."""
    arch: str
    """Debian's name of the architecture its packages are for."""
    sources: Mapping[str, Source]
    """Where each of its files comes from, by the name that the arguments use."""
    options: tuple[str, ...]
    """QEMU's arguments, with ``{name}`` where a file's path goes."""
    expect: Expectation
    """What it must show."""

    def images(self) -> Images:
        """Its files, fetched and built if need be; raises ``ShadowtraceError`` where that fails."""
        return fetch(self.name, self.arch, self.sources)

    def bytes(self) -> int | None:
        """How large its files are; ``None`` where they have not been fetched."""
        return images.size(self.name)

    def arguments(self, images: Images) -> list[str]:
        """QEMU's arguments, with a serial console on its standard output."""
        common = ("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none")
        console = ("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")
        return [*common, *console, *(option.format_map(images.paths) for option in self.options)]


def names() -> list[str]:
    """The guests there are recipes for."""
    return sorted(path.parent.name for path in (resources.scripts() / "guests").glob("*/guest.toml"))


def load(name: str) -> Guest:
    """The recipe called ``name``; ``UsageError`` where there is none."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or name not in names():
        raise UsageError(
            f"there is no guest called {name!r}",
            f"{nearest(name, names())}guests: {', '.join(names())}; or your own: record -o FILE -- QEMU ARGS",
        )
    folder = resources.scripts() / "guests" / name
    with (folder / "guest.toml").open("rb") as file:
        recipe = tomllib.load(file)
    system = _system(recipe.get("system"))
    return Guest(
        name=name,
        title=recipe["title"],
        mode=recipe["mode"],
        seconds=recipe["seconds"],
        events=recipe["events"],
        limit=recipe.get("limit"),
        arch=recipe.get("arch", "amd64"),
        sources={file: _source(folder, source, system) for file, source in recipe["files"].items()},
        options=tuple(recipe["arguments"]),
        expect=Expectation.of(recipe["expect"]),
    )


def _source(folder: Path, recipe: dict[str, Any], system: System | None) -> Source:
    if recipe.get("system"):
        return Source(system=system)
    return Source(
        package=recipe.get("package", ""),
        path=recipe.get("path", ""),
        release=recipe.get("release", Source.release),
        processes=recipe.get("processes"),
        assembly=folder / recipe["assembly"] if "assembly" in recipe else None,
        program=folder / recipe["program"] if "program" in recipe else None,
    )


def _system(table: dict[str, Any] | None) -> System | None:
    return None if table is None else System(table["release"], tuple(table["packages"]), table["work"])
