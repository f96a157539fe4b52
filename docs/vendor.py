"""Fetches the chart library of the HTML report from npm into analyzer/reports/html/vendor. Run by ``make vendor``.

The files are kept in the repository, so that neither set-up nor a report needs npm. A version and both digests change
together, here; tests hold the kept files to them.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "analyzer" / "reports" / "html" / "vendor"


@dataclass(frozen=True)
class Library:
    """A package of npm and the one file that we take from it, besides its licence."""

    name: str
    package: str
    version: str
    integrity: str
    """What npm's registry says of the package: base64 of its SHA-512."""
    member: str
    sha256: str
    """Of the file that is kept."""


#: In the order in which a page has to load them. d3 is of the version that Plot was built with.
LIBRARIES = (
    Library(
        name="d3",
        package="d3",
        version="7.9.0",
        integrity="e1U46jVP+w7Iut8Jt8ri1YsPOvFpg46k+K8TpCb0P+zjCkjkPnV7WzfDJzMHy1LnA+wj5pLT1wjO901gLXeEhA==",
        member="dist/d3.min.js",
        sha256="f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539",
    ),
    Library(
        name="plot",
        package="@observablehq/plot",
        version="0.6.17",
        integrity="/qaXP/7mc4MUS0s4cPPFASDRjtsWp85/TbfsciqDgU1HwYixbSbbytNuInD8AcTYC3xaxACgVX06agdfQy9W+g==",
        member="dist/plot.umd.min.js",
        sha256="4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
    ),
)


def fetch(library: Library, folder: Path) -> tuple[bytes, bytes]:
    """The file and the licence of a library, fetched by npm into ``folder``; ends the program where a digest is another."""
    packed = ["npm", "pack", "--silent", "--pack-destination", folder, f"{library.package}@{library.version}"]
    archive = folder / subprocess.run(packed, check=True, capture_output=True, text=True).stdout.strip()
    _hold(f"{library.package} {library.version}", hashlib.sha512(archive.read_bytes()), base64.b64decode(library.integrity))
    with tarfile.open(archive) as tar:
        file, licence = (tar.extractfile(f"package/{name}") for name in (library.member, "LICENSE"))
        assert file is not None
        assert licence is not None
        content = file.read()
        _hold(library.member, hashlib.sha256(content), bytes.fromhex(library.sha256))
        return content, licence.read()


def _hold(what: str, found: hashlib._Hash, wanted: bytes) -> None:
    if found.digest() != wanted:
        sys.exit(f"{what} is not what was pinned: its {found.name} is {found.hexdigest()}")


def main() -> None:
    """Write each library as NAME.min.js and NAME.LICENSE."""
    VENDOR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for library in LIBRARIES:
            content, licence = fetch(library, Path(folder))
            (VENDOR / f"{library.name}.min.js").write_bytes(content)
            (VENDOR / f"{library.name}.LICENSE").write_bytes(licence)
            sys.stdout.write(f"{library.package} {library.version}: {len(content):,} bytes\n")


if __name__ == "__main__":
    main()
