"""What tests share: where the reference material lies, a command line, one real boot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forked import Forked
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
    "tests/tracer/test_systems.py",
    "tests/tracer/test_gdb_engine.py",
    "tests/tracer/test_kernels.py",
    "tests/test_docs.py",
    "tests/analyzer/test_cases.py",
    "tests/tracer/test_names.py",
    "tests/tracer/test_smp.py",
    "tests/analyzer/test_cores.py",
)


#: What boots no guest and takes long all the same, or needs a browser: `make quick` leaves it out.
SLOW = re.compile(
    "tests/(analyzer/test_(html|properties|sweep|cores|kernel|findings)|fuzz/.*|faults/.*|shadowtrace/test_(completion|width)).py.*"
    "|tests/analyzer/test_cases.py::test_a_whole_real_boot.*"
    "|tests/db/test_hostile.py::test_a_(row_of_no_known_shape|value_of_another_type).*"
    "|tests/tracer/test_systems.py.*|tests/test_docs.py::test_wheel.*|tests/test_supply.py::test_pip.*"
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)
    for item in items:
        if SLOW.fullmatch(item.nodeid):
            item.add_marker(pytest.mark.slow)


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


#: What a command that starts anew is not needed for.
_READ_WHEN_CALLED = re.compile("COLUMNS|LINES|TERM|NO_COLOR|FORCE_COLOR|SHADOWTRACE_.*")


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """The command line, imported once."""
    server = Forked()
    yield server
    server.close()


@pytest.fixture(scope="session")
def cli(forked: Forked) -> Cli:
    """Run the command with these arguments; one whose environment Python itself reads is started as it is installed."""
    program = Path(sys.executable).with_name("shadowtrace")

    def run(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        everything = {**os.environ, **environment}
        if all(_READ_WHEN_CALLED.fullmatch(name) for name in environment):
            return subprocess.CompletedProcess([program, *words], *forked.run(words, cwd or Path.cwd(), everything))
        return subprocess.run([program, *words], capture_output=True, text=True, check=False, cwd=cwd, timeout=600, env=everything)

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
        shutil.rmtree(folder, ignore_errors=True)
        apt = Apt(folder / "apt", "amd64", "bookworm-backports")
        packages = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
        roots = {name: apt.unpack(name) for name in packages}
        binary = roots["qemu-system-x86"] / "usr/bin/qemu-system-x86_64"
        modules = roots["qemu-system-common"] / "usr/lib/x86_64-linux-gnu/qemu"
        firmware = [roots["qemu-system-data"] / "usr/share/qemu", roots["seabios"] / "usr/share/seabios"]
        search = " ".join(f"-L {path}" for path in firmware)
        program.write_text(f'#!/bin/sh\nexport QEMU_MODULE_DIR={modules}\nexec {binary} {search} "$@"\n')
        program.chmod(0o755)
    return str(program)
