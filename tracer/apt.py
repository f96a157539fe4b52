"""Debian's packages without installing them: an apt with a state folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from db.errors import ShadowtraceError

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASE = "http://deb.debian.org/debian bookworm main"
UPDATES = (
    "http://deb.debian.org/debian bookworm-updates main",
    "http://deb.debian.org/debian-security bookworm-security main",
)


class Apt:
    """apt with a state folder of its own, for any architecture; the system's packages are neither seen nor changed."""

    def __init__(self, folder: Path, arch: str, sources: Sequence[str] = (RELEASE, *UPDATES)) -> None:
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
            "Acquire::Retries": "3",
        }
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        (folder / "apt.conf").write_text("\n".join([*lines, f'APT::Architectures {{ "{arch}"; }};', ""]))
        try:
            self._update(*sources)
        except ShadowtraceError:
            # A mirror may be in the middle of taking up an update: the release itself will do.
            self._update(sources[0])

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
        """A folder with a package's files in it; ``package`` may say ``name/release``."""
        name = package.split("/", maxsplit=1)[0]
        self._run("apt-get", "download", "-qq", package)
        debs = list((self._folder / "debs").glob(f"{name}_*.deb"))
        if len(debs) != 1:
            raise ShadowtraceError(f"apt-get download {package} brought {len(debs)} files", "has Debian changed its packages?")
        target = self._folder / "unpacked" / name
        target.mkdir(parents=True)
        self._run("dpkg-deb", "--extract", str(debs[0]), str(target))
        return target
