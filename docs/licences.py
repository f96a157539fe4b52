"""Writes docs/licences.md: what shadowtrace is installed with and runs, and under which licence each says it is."""

from __future__ import annotations

import configparser
import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

FOLDER = Path(__file__).parent

_PURPOSE = {"test": "tests", "fuzz": "fuzzing"}

#: Not Python packages: run as programs, never linked with or shipped.
_PROGRAMS = (
    ("QEMU", "GPL-2.0-only", "runs the guest; the capture plugin is loaded into it"),
    ("gdb", "GPL-3.0-or-later", "drives the recording"),
    ("gcc", "GPL-3.0-or-later with runtime exception", "builds the plugin and the bare-metal guest"),
    ("SQLite", "public domain", "the trace file, through Python's sqlite3"),
    ("Debian's kernels, busybox, firmware", "GPL-2.0 and others, each package's copyright file", "guests; fetched, never shipped"),
)


def licence(name: str) -> str:
    """What a package's own metadata says; `unknown` where it says nothing."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return "not installed here"
    stated = about.get("License-Expression")
    if stated:
        return str(stated)
    classified = [entry.split(" :: ")[-1] for entry in about.get_all("Classifier") or [] if entry.startswith("License ::")]
    first = (about.get("License") or "").strip().split("\n")[0]
    return ", ".join(classified) or first[:60] or "unknown"


def page() -> str:
    """The page's text."""
    config = configparser.ConfigParser()
    config.read(FOLDER.parent / "setup.cfg")
    lists = {"at run time": config["options"]["install_requires"]}
    lists |= {_PURPOSE.get(extra, extra): text for extra, text in config["options.extras_require"].items()}
    rows = []
    for purpose, text in lists.items():
        for line in filter(None, (line.strip() for line in text.split("\n"))):
            requirement = Requirement(line)
            bounds = ", ".join(sorted((str(specifier) for specifier in requirement.specifier), reverse=True))
            rows.append(f"| {requirement.name} | {re.sub(r'[|]', '/', licence(requirement.name))} | {bounds} | {purpose} |")
    programs = [f"| {name} | {terms} | {use} |" for name, terms, use in _PROGRAMS]
    return "\n".join(
        [
            "# Licences",
            "",
            "shadowtrace is under the MIT licence. Its Python dependencies, as their metadata says (`python docs/licences.py` writes this):",
            "",
            "| package | licence | versions | used |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "Programs that it runs:",
            "",
            "| program | licence | what for |",
            "| --- | --- | --- |",
            *programs,
            "",
        ]
    )


if __name__ == "__main__":
    (FOLDER / "licences.md").write_text(page())
