"""Guest images from Debian's packages and our own sources, kept in a cache and checked by digest before they are used."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from db.errors import ShadowtraceError
from tracer import resources
from tracer import system as systems
from tracer.apt import Apt
from tracer.digest import sha256
from tracer.system import System

#: What init does: processes one after the other, each a fork and an exec; then the machine goes off. It prints the command lines of
#: some of them, and the process ids that they had, so that the names in a trace can be held against something.
_INIT = """\
#!/bin/busybox sh
echo shadowtrace: init
i=0
while [ $i -lt {processes} ]; do
    /bin/busybox true
    i=$((i + 1))
done
for words in "ls -l /bin" "cat /init" "wc -c /init"; do
    /bin/busybox $words > /dev/null &
    wait $!
    echo "shadowtrace: process $!: busybox $words"
done
echo shadowtrace: $i processes
/bin/busybox poweroff -f
"""


#: Room that building takes at the most: lists of packages and a kernel's package with its modules; a system's packages, files and image.
_PACKAGES_BYTES, _SYSTEM_BYTES = 768 << 20, 2 << 30

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Source:
    """Where a guest's file comes from: a path in a package, an initramfs around a package's busybox, assembly of our own, or a system."""

    package: str = ""
    path: str = ""
    """A glob within the package, or several with a space between; a file that is gzipped is unpacked."""
    release: str = "bookworm"
    """The package's Debian release, or a release's backports."""
    processes: int | None = None
    """For an initramfs: processes that init starts, one after the other, before it powers off."""
    assembly: Path | None = None
    """A BIOS of our own."""
    program: Path | None = None
    """A static 32-bit program of our own, in assembly."""
    system: System | None = None
    """A whole system, of which this is the file of that name."""


@dataclass(frozen=True)
class Images:
    """A guest's files by name, what they are, and the package that its kernel came from."""

    paths: Mapping[str, Path]
    kernel_package: str | None


def fetch(name: str, arch: str, sources: Mapping[str, Source]) -> Images:
    """The images of a guest: from the cache, checked by digest, or fetched and built. Raises ``ShadowtraceError``."""
    folder = resources.cache("guests") / name
    recipe = _recipe(sources)
    kept = _kept(folder, recipe)
    if kept is not None:
        return kept
    _check_room(folder.parent, sources)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
            made = Path(work) / "made"
            made.mkdir()
            package = _make(made, Path(work), arch, sources)
            digests = {file: sha256(made / file) for file in sources}
            (made / "manifest.json").write_text(json.dumps({"recipe": recipe, "package": package, "sha256": digests}))
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    except OSError as error:
        raise ShadowtraceError(
            f"the images of {name} cannot be kept in {folder}: {error.strerror}", "set XDG_CACHE_HOME to a folder with room"
        ) from error
    done = _kept(folder, recipe)
    if done is None:
        raise ShadowtraceError(f"the images in {folder} are not what was written", "is the disk full or failing?")
    return done


def _check_room(folder: Path, sources: Mapping[str, Source]) -> None:
    """Raise ``ShadowtraceError`` where there is no room to build in: apt would wait for it for ever."""
    needed = _SYSTEM_BYTES if any(source.system for source in sources.values()) else _PACKAGES_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ShadowtraceError(
            f"{free >> 20} MiB are free in {folder}: building the guest's images takes up to {needed >> 20}",
            "set XDG_CACHE_HOME to a folder with room",
        )


def _recipe(sources: Mapping[str, Source]) -> dict[str, list[str]]:
    """What the images are made from, to tell whether those in the cache are still right."""
    return {
        name: [
            *(
                source.release,
                repr(source.system),
                source.package,
                source.path,
                str(source.processes),
                sha256(source.assembly) if source.assembly else "",
            ),
            *([sha256(source.program)] if source.program else []),
            # What init is, and the files around it.
            *([hashlib.sha256(initramfs(b"", source.processes)).hexdigest()] if source.processes is not None else []),
        ]
        for name, source in sorted(sources.items())
    }


def size(name: str) -> int | None:
    """Bytes of a guest's files in the cache; ``None`` where they have not been fetched."""
    folder = resources.cache("guests") / name
    if not (folder / "manifest.json").is_file():
        return None
    return sum(path.stat().st_size for path in folder.iterdir())


def _kept(folder: Path, recipe: dict[str, list[str]]) -> Images | None:
    """The images in a cache folder, if they are there and are what the manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        digests = manifest["sha256"]
        if manifest["recipe"] != recipe or any(sha256(folder / file) != digest for file, digest in digests.items()):
            return None
        return Images({file: folder / file for file in digests}, manifest["package"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _make(made: Path, work: Path, arch: str, sources: Mapping[str, Source]) -> str | None:
    """Build every file; the package of the one called ``kernel``."""
    releases: dict[str, Apt] = {}
    built: dict[System, dict[str, Path]] = {}
    kernel_package = None
    for name, source in sources.items():
        if source.system is not None:
            if source.system not in built:
                (work / name).mkdir()
                built[source.system] = systems.build(source.system, arch, work / name)
            built[source.system][name].rename(made / name)
        elif source.assembly is not None:
            assemble(source.assembly, made / name)
        elif source.program is not None:
            link(source.program, made / name)
        elif source.package:
            if source.release not in releases:
                releases[source.release] = Apt(work / f"apt-{source.release}", arch, source.release)
            path = "bin/busybox usr/bin/busybox" if source.processes is not None else source.path
            file, package = releases[source.release].file(source.package, path)
            content = file.read_bytes()
            if source.processes is not None:
                content = initramfs(content, source.processes)
            elif content.startswith(_GZIP):
                content = gzip.decompress(content)
            (made / name).write_bytes(content)
            if name == "kernel":
                kernel_package = package
        else:
            raise ShadowtraceError(f"the guest's file {name} comes from nowhere", "its recipe is wrong")
    return kernel_package


def assemble(source: Path, target: Path) -> None:
    """Make a flat binary of an assembly source: a BIOS of 64 KiB, for address 0xf0000. Raises ``ShadowtraceError`` with what the assembler said."""
    with tempfile.TemporaryDirectory() as folder:
        elf = Path(folder) / "guest.elf"
        link(source, elf, "-Wl,-Ttext=0xf0000")
        _run("objcopy", "-O", "binary", "-j", ".text", str(elf), str(target), source=source)


def link(source: Path, target: Path, *options: str) -> None:
    """Make a static 32-bit ELF file of an assembly source. Raises ``ShadowtraceError`` with what the assembler said."""
    _run("cc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", *options, "-o", str(target), str(source), source=source)


def _run(*command: str, source: Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ShadowtraceError(f"there is no {command[0]}", "apt-get install gcc") from error
    if done.returncode:
        raise ShadowtraceError(f"{source.name} does not assemble: {done.stderr.strip()[-1000:]}", "is gcc complete?")


def initramfs(busybox: bytes, processes: int) -> bytes:
    """A newc cpio archive: busybox, a console, and an init that starts processes and powers off."""
    files = (
        ("dev", 0o40755, b"", (0, 0)),
        ("dev/console", 0o20600, b"", (5, 1)),
        ("dev/null", 0o20666, b"", (1, 3)),
        ("proc", 0o40755, b"", (0, 0)),
        ("bin", 0o40755, b"", (0, 0)),
        ("bin/busybox", 0o100755, busybox, (0, 0)),
        ("init", 0o100755, _INIT.format(processes=processes).encode(), (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    )
    archive = bytearray()
    for inode, (name, mode, data, device) in enumerate(files, 1):
        path = name.encode() + b"\0"
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % number for number in numbers) + path
        archive += bytes(-len(archive) % 4)
        archive += data
        archive += bytes(-len(archive) % 4)
    return bytes(archive + bytes(-len(archive) % 512))
