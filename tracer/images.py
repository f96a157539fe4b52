"""Guest images from Debian's packages: downloaded and unpacked in a private apt folder, never installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from db.errors import ShadowtraceError
from tracer import resources
from tracer.symbols import sha256

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_RELEASE = "http://deb.debian.org/debian bookworm main"
_UPDATES = (
    "http://deb.debian.org/debian bookworm-updates main",
    "http://deb.debian.org/debian-security bookworm-security main",
)

#: What init does: processes one after the other, each a fork and an exec; then the machine goes off.
_INIT = """\
#!/bin/busybox sh
echo shadowtrace: init
i=0
while [ $i -lt {processes} ]; do
    /bin/busybox true
    i=$((i + 1))
done
echo shadowtrace: $i processes
/bin/busybox poweroff -f
"""


@dataclass(frozen=True)
class Images:
    """A guest's files, and what they are."""

    kernel: Path
    initramfs: Path
    kernel_package: str
    kernel_sha256: str


def fetch(name: str, arch: str, kernel_package: str, processes: int) -> Images:
    """The images of a guest: from the cache, checked by digest, or fetched and built. Raises ``ShadowtraceError``."""
    folder = resources.cache("guests") / name
    kept = _kept(folder)
    if kept is not None:
        return kept
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
        made = Path(work) / "made"
        made.mkdir()
        apt = _Apt(Path(work) / "apt", arch)
        package = apt.versioned(kernel_package)
        unpacked = apt.unpack(package)
        kernels = list(unpacked.glob("boot/vmlinuz-*"))
        if len(kernels) != 1:
            raise ShadowtraceError(f"the package {package} has no kernel image in it", "has Debian changed its layout?")
        shutil.copyfile(kernels[0], made / "vmlinuz")
        busybox = apt.unpack("busybox-static") / "bin" / "busybox"
        (made / "initramfs").write_bytes(initramfs(busybox.read_bytes(), processes))
        digests = {file: sha256(made / file) for file in ("vmlinuz", "initramfs")}
        (made / "manifest.json").write_text(json.dumps({"package": package, "sha256": digests}))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    done = _kept(folder)
    if done is None:
        raise ShadowtraceError(f"the images in {folder} are not what was written", "is the disk full or failing?")
    return done


def _kept(folder: Path) -> Images | None:
    """The images in a cache folder, if they are there and are what the manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        digests = manifest["sha256"]
        if any(sha256(folder / file) != digests[file] for file in ("vmlinuz", "initramfs")):
            return None
        return Images(folder / "vmlinuz", folder / "initramfs", manifest["package"], digests["vmlinuz"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Apt:
    """apt with a state folder of its own, for any architecture; the system's packages are neither seen nor changed."""

    def __init__(self, folder: Path, arch: str) -> None:
        self._folder = folder
        for path in ("state/lists/partial", "cache/archives/partial", "debs"):
            (folder / path).mkdir(parents=True)
        (folder / "status").touch()
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": arch,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        (folder / "apt.conf").write_text("\n".join([*lines, f'APT::Architectures {{ "{arch}"; }};', ""]))
        try:
            self._update(_RELEASE, *_UPDATES)
        except ShadowtraceError:
            # A mirror may be in the middle of taking up an update: the release itself will do.
            self._update(_RELEASE)

    def _update(self, *sources: str) -> None:
        lines = [f"deb [signed-by={_KEYRING}] {source}\n" for source in sources]
        (self._folder / "sources.list").write_text("".join(lines))
        self._run("apt-get", "update", "-qq")

    def _run(self, *command: str) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C"}
        try:
            done = subprocess.run(command, cwd=self._folder / "debs", env=environment, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ShadowtraceError(f"there is no {command[0]}", "guests are made from Debian's packages: this needs Debian") from error
        if done.returncode:
            raise ShadowtraceError(
                f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}", "does this machine reach Debian's packages?"
            )
        return done.stdout

    def versioned(self, package: str) -> str:
        """The package with the kernel image that a kernel's meta package depends on; else the package itself."""
        shown = self._run("apt-cache", "show", "--no-all-versions", package)
        match = re.search(r"^Depends:.*?(linux-image-\d[^\s,]*)", shown, re.MULTILINE)
        return match[1] if match else package

    def unpack(self, package: str) -> Path:
        """A folder with a package's files in it."""
        self._run("apt-get", "download", "-qq", package)
        debs = list((self._folder / "debs").glob(f"{package}_*.deb"))
        if len(debs) != 1:
            raise ShadowtraceError(f"apt-get download {package} brought {len(debs)} files", "has Debian changed its packages?")
        target = self._folder / "unpacked" / package
        target.mkdir(parents=True)
        self._run("dpkg-deb", "--extract", str(debs[0]), str(target))
        return target


def initramfs(busybox: bytes, processes: int) -> bytes:
    """A newc cpio archive: busybox, a console, and an init that starts processes and powers off."""
    files = (
        ("dev", 0o40755, b"", (0, 0)),
        ("dev/console", 0o20600, b"", (5, 1)),
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
