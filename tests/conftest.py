"""What tests share: where the reference material lies, a command line, one real boot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tracer import guest, resources
from tracer.apt import Apt
from tracer.record import record
from tracer.request import Outcome, Request

# Hundreds of commands are started: each would compile every module anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

#: The files that take longest: begun last, one of them would run alone while other workers have nothing left to do.
LONGEST = (
    "tests/tracer/test_guests.py",
    "tests/tracer/test_gdb_engine.py",
    "tests/test_docs.py",
    "tests/analyzer/test_cases.py",
    "tests/tracer/test_names.py",
    "tests/tracer/test_smp.py",
    "tests/analyzer/test_cores.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_runtest_setup() -> None:
    # A test that wants a width says which. libreadline, wherever it is imported, gives processes one that os.environ knows nothing of.
    os.environ.pop("COLUMNS", None)
    os.unsetenv("COLUMNS")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference cases and guests; a test that needs it is skipped where it is not there."""
    if not (SHARED / "cases").is_dir():
        pytest.skip("the reference material (../shared) is not here")
    return SHARED


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run the installed command with these arguments."""
    program = Path(sys.executable).with_name("shadowtrace")

    def run(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            timeout=600,
            env={**os.environ, **environment},
        )

    return run


@dataclass(frozen=True)
class Boot:
    """A recorded boot: the trace, how it ended, and QEMU's own log of cr3 loads and interrupts of the same run."""

    trace: Path
    log: Path
    outcome: Outcome


def record_boot(folder: Path, events: int | None = None) -> Boot:
    """A boot of Debian's cloud kernel, whole or up to so many events."""
    request = Request(
        folder / "boot.db",
        guest=guest.load("cloud-amd64"),
        arguments=["-d", "mmu,int", "-D", str(folder / "qemu.log")],
        marks=["run_init_process"],
        events=events,
        version="test",
    )
    return Boot(folder / "boot.db", folder / "qemu.log", record(request))


@pytest.fixture(scope="session")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """One whole boot."""
    folder = tmp_path_factory.mktemp("boot")
    yield record_boot(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def qemu_of_backports() -> str:
    """A QEMU of Debian's backports, unpacked beside the installed one: the path of a program that runs it."""
    folder = resources.cache("tests") / "qemu-of-backports"
    program = folder / "qemu-system-x86_64"
    if not program.exists():
        mirror = "http://deb.debian.org/debian"
        shutil.rmtree(folder, ignore_errors=True)
        apt = Apt(folder / "apt", "amd64", [f"{mirror} bookworm main", f"{mirror} bookworm-backports main"])
        packages = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
        roots = {name: apt.unpack(f"{name}/bookworm-backports") for name in packages}
        binary = roots["qemu-system-x86"] / "usr/bin/qemu-system-x86_64"
        modules = roots["qemu-system-common"] / "usr/lib/x86_64-linux-gnu/qemu"
        firmware = [roots["qemu-system-data"] / "usr/share/qemu", roots["seabios"] / "usr/share/seabios"]
        search = " ".join(f"-L {path}" for path in firmware)
        program.write_text(f'#!/bin/sh\nexport QEMU_MODULE_DIR={modules}\nexec {binary} {search} "$@"\n')
        program.chmod(0o755)
    return str(program)
