"""What we depend on: bounds on both sides, the lowest of them tested, licences listed."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


#: Extras whose lowest versions are not tried: no quick test needs them.
_OPTIONAL = {"fuzz"}


def requirements(every: bool = True) -> dict[str, Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    optional = {line for name in _OPTIONAL for line in extras.get(name, "").split("\n")}
    lists = [config["options"]["install_requires"], *extras.values()]
    if not every:
        lists = ["\n".join(line for line in text.split("\n") if line not in optional) for text in lists]
    return {found.name: found for text in lists for line in text.split("\n") if line.strip() for found in [Requirement(line)]}


def bound(requirement: Requirement, operator: str) -> Version:
    (found,) = [Version(specifier.version) for specifier in requirement.specifier if specifier.operator == operator]
    return found


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    assert len(requirements()) > 10
    for requirement in requirements().values():
        assert bound(requirement, ">=") < bound(requirement, "<"), requirement


def test_the_lowest_versions_that_are_tested_are_the_bounds() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    lowest = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#"))  # type: ignore[union-attr]
    expected = {name: bound(requirement, ">=") for name, requirement in requirements(every=False).items()}
    assert {name: Version(version) for name, version in lowest.items()} == expected


def test_pip_builds_nothing_but_this_package() -> None:
    """A bare Debian has no headers of Python: whatever set-up installs comes as a wheel."""
    extras = ["fast", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"--editable '\.\[([\w,]+)\]'", makefile)) == {"fast", "fast,test", "fuzz"}
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--report",
        "-",
        f"{ROOT}[{','.join(extras)}]",
    ]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    files = {entry["metadata"]["name"]: entry["download_info"]["url"] for entry in report["install"]}
    assert len(files) > 20
    assert [name for name, url in files.items() if not url.endswith(".whl") and name != "shadowtrace"] == []


def test_every_dependency_s_licence_is_listed() -> None:
    listed = (ROOT / "docs" / "licences.md").read_text()
    for name in requirements():
        assert f"| {name} |" in listed, "run python docs/licences.py"
