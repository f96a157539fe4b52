"""Guest recipes: TOML files in qemu-scripts/guests made into values, and their QEMU arguments."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from db.errors import UsageError
from tracer import resources
from tracer.images import Images, fetch


@dataclass(frozen=True)
class Guest:
    """A guest we ship: which packages it is made of and how QEMU starts it."""

    name: str
    title: str
    mode: str
    """The paging mode it ends up in, in words."""
    seconds: int
    """About how long a traced boot takes."""
    arch: str
    """Debian's name of the architecture its packages are for."""
    kernel: str
    """The kernel's (meta) package."""
    append: str
    machine: str
    cpu: str
    memory_mib: int
    vcpus: int
    processes: int
    """Processes that init starts, one after the other, before it powers off."""

    def images(self) -> Images:
        """Its images, fetched and built if need be; raises ``ShadowtraceError`` where that fails."""
        return fetch(self.name, self.arch, self.kernel, self.processes)

    def arguments(self, images: Images) -> list[str]:
        """QEMU's arguments."""
        return [
            *("-M", self.machine, "-cpu", self.cpu, "-m", f"{self.memory_mib}M", "-smp", str(self.vcpus)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-kernel", str(images.kernel), "-initrd", str(images.initramfs), "-append", self.append),
        ]


def names() -> list[str]:
    """The guests there are recipes for."""
    return sorted(path.parent.name for path in (resources.scripts() / "guests").glob("*/guest.toml"))


def load(name: str) -> Guest:
    """The recipe called ``name``; ``UsageError`` where there is none."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or name not in names():
        raise UsageError(f"there is no guest called {name!r}", f"guests: {', '.join(names())}; or your own: record -o FILE -- QEMU ARGS")
    return _read(name, resources.scripts() / "guests" / name / "guest.toml")


def _read(name: str, path: Path) -> Guest:
    with path.open("rb") as file:
        recipe = tomllib.load(file)
    packages, machine = recipe["packages"], recipe["machine"]
    return Guest(
        name=name,
        title=recipe["title"],
        mode=recipe["mode"],
        seconds=recipe["seconds"],
        arch=packages["arch"],
        kernel=packages["kernel"],
        append=recipe["append"],
        machine=machine["type"],
        cpu=machine["cpu"],
        memory_mib=machine["memory_mib"],
        vcpus=machine.get("vcpus", 1),
        processes=recipe["processes"],
    )
