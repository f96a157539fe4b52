"""Debian's packages without installing them: an apt with a state folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from db.errors import ShadowtraceError
from tracer import resources
from tracer.digest import sha256

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"

#: A machine without a network is told so soon: apt waits up to half a minute between two tries.
RETRIES = {"Acquire::Retries": "2", "Acquire::Retries::Delay::Maximum": "2"}

_SECONDS = 600

#: What a release is made of, the release itself first; of backports, what they are for, too.
_BACKPORTS = "-backports"


def sources(release: str) -> list[str]:
    """The lines of a sources.list for a release, or for a release's backports, without the ``deb`` before them."""
    base = release.removesuffix(_BACKPORTS)
    updates = [f"{MIRROR} {base}-updates main", f"{_SECURITY} {base}-security main"]
    return [f"{MIRROR} {base} main", *([f"{MIRROR} {release} main"] if release != base else updates)]


def complaint(stderr: str) -> str:
    """The first line in which one of apt's programs says what is wrong; the last line where none does."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wrong = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    return (wrong or lines[-1:] or ["it said nothing"])[0]


T = TypeVar("T")


class Apt:
    """apt with a state folder of its own, for any architecture and release; the system's packages are neither seen nor changed."""

    def __init__(self, folder: Path, arch: str, release: str) -> None:
        self._folder = folder
        self._sources = sources(release)
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
            # Backports are taken only where they are asked for; updates of a release go before it.
            **({"APT::Default-Release": release} if release.endswith(_BACKPORTS) else {}),
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            **RETRIES,
        }
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        (folder / "apt.conf").write_text("\n".join([*lines, f'APT::Architectures {{ "{arch}"; }};', ""]))
        try:
            self._update(self._sources)
        except ShadowtraceError:
            self._release_alone()

    def _release_alone(self) -> None:
        """A mirror may be in the middle of taking up an update, or have dropped what an update brought: the release itself will do."""
        del self._sources[1:]
        self._update(self._sources)

    def _also_without_updates(self, fetch: Callable[[], T]) -> T:
        try:
            return fetch()
        except ShadowtraceError:
            if len(self._sources) == 1:
                raise
        self._release_alone()
        return fetch()

    def _update(self, sources: list[str]) -> None:
        lines = [f"deb [signed-by={KEYRING}] {source}\n" for source in sources]
        (self._folder / "sources.list").write_text("".join(lines))
        self._run("apt-get", "update", "-qq", "--error-on=any")

    def _run(self, *command: str) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C"}
        try:
            done = subprocess.run(
                command, cwd=self._folder / "debs", env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ShadowtraceError(
                f"{' '.join(command)} took more than {_SECONDS} s", "does this machine reach Debian's packages?"
            ) from error
        except FileNotFoundError as error:
            raise ShadowtraceError(f"there is no {command[0]}", "guests are made from Debian's packages: this needs Debian") from error
        if done.returncode:
            raise ShadowtraceError(f"{' '.join(command)} failed: {complaint(done.stderr)}", "does this machine reach Debian's packages?")
        return done.stdout

    def _kernel_package(self, package: str) -> str:
        """The package with the kernel image that a kernel's meta package leads to; else the package itself."""
        for wanted in ("linux-image", "linux-binary"):
            shown = self._run("apt-cache", "show", "--no-all-versions", package)
            match = re.search(rf"^Depends:.*?({wanted}-\d[^\s,]*)", shown, re.MULTILINE)
            package = match[1] if match else package
        return package

    def unpack(self, package: str) -> Path:
        """A folder with a package's files in it, downloaded anew."""
        return self._also_without_updates(lambda: self._unpack(package))

    def _unpack(self, package: str) -> Path:
        deb = self._folder / "debs" / self._deb(package)
        self._run("apt-get", "download", "-qq", package)
        target = self._folder / "unpacked" / package
        target.mkdir(parents=True, exist_ok=True)
        self._run("dpkg-deb", "--extract", str(deb), str(target))
        deb.unlink()
        return target

    def _deb(self, package: str) -> str:
        """The name of a package's file, before it is downloaded."""
        return self._run("apt-get", "download", "--print-uris", package).split()[1]

    def file(self, package: str, path: str) -> tuple[Path, str]:
        """A file of a package, and the package that it came from, which a kernel's meta package leads to.

        ``path`` is a glob within the package, or several with a space between. The file is kept, and not downloaded again as long as
        the package is the same.
        """
        return self._also_without_updates(lambda: self._file(package, path))

    def _file(self, package: str, path: str) -> tuple[Path, str]:
        package = self._kernel_package(package)
        kept = resources.cache("packages") / f"{self._deb(package)}-{re.sub(r'[^a-z0-9]+', '-', path)}"
        digest = kept.with_name(f"{kept.name}.sha256")
        if not (kept.exists() and digest.exists() and digest.read_text() == sha256(kept)):
            unpacked = self._unpack(package)
            found = [file for glob in path.split() for file in unpacked.glob(glob)]
            if len(found) != 1:
                raise ShadowtraceError(f"the package {package} has {len(found)} files {path}", "has Debian changed its layout?")
            partial = kept.with_name(f"{kept.name}.{os.getpid()}")
            try:
                partial.write_bytes(found[0].read_bytes())
                digest.write_text(sha256(partial))
                partial.replace(kept)
            finally:
                partial.unlink(missing_ok=True)
        return kept, package
