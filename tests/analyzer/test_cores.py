"""Both cores behind one command: which one runs and why, and that damaged traces end the same way on each."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from analyzer.model.kernel import Kernel
from analyzer.model.parameters import parameters
from analyzer.replay import CORES, choose_core
from db.errors import UsageError
from db.trace import TraceReader
from db.writer import TraceWriter
from tests.analyzer.test_kernel import assert_cores_agree
from tests.conftest import Boot, Cli
from x86.event import Event, Kind, pack_words

LONG = (0x80010011, 0x30, 0x500)

GUEST = [
    *(Event(Kind.PAGE, addr=gfn << 12, extra=pack_words([(0, (gfn + 1) << 12 | 0x67)])) for gfn in range(1, 5)),
    Event(Kind.CR3, addr=0x1000),
    Event(Kind.REGS, extra=LONG),
    Event(Kind.ACCESS, flags=1),
    Event(Kind.WRITE, flags=8, addr=0x4008, value=1 << 63 | 0x9067),
    Event(Kind.CR3, addr=0x1000, extra=(1, 2, 3, 4)),
    Event(Kind.INVLPG, addr=(1 << 64) - 4096),
    Event(Kind.ACCESS, flags=7, addr=(1 << 64) - 4096),
]


def test_a_core_is_loaded_ahead_where_it_will_run() -> None:
    """What runs is asked for by its name: a process of its own shows what has been imported."""
    code = (
        "import sys; from analyzer import replay; from analyzer.model.parameters import parameters\n"
        "for wanted, audit in (('reference', False), (None, True), (None, False)):\n"
        "    replay.prepare(parameters('kvm-2.6.20'), wanted, audit).join()\n"
        "    print('analyzer.model.kernel' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["False", "False", "True"], "")


def test_nothing_is_compiled_ahead(tmp_path: Path) -> None:
    """Ctrl-C, or a trace that is refused, would wait for it."""
    code = "from analyzer import replay; from analyzer.model.parameters import parameters; replay.prepare(parameters('kvm-2.6.20'), 'fast').join()"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.rglob("*.nbi"))


def write(path: Path, events: list[Event], vcpus: int = 1) -> Path:
    with TraceWriter(path) as writer:
        writer.append(events)
        writer.describe(source="import", guest="test", title="test", vcpus=vcpus, version="test")
        writer.seal("poweroff", "the guest powered off")
    return path


def damage(path: Path, statement: str) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    return path


@pytest.mark.boot
def test_a_real_boot_comes_out_the_same(boot: Boot) -> None:
    with TraceReader(boot.trace) as trace:
        for model in ("kvm-2.6.20", "uncached"):
            assert_cores_agree(trace, model)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_trace_of_every_kind_comes_out_the_same(sealed: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "t.db", GUEST * 3)
    if not sealed:
        # Not sealed: its pages may still change, so SQLite reads it.
        damage(path, "UPDATE recording SET ended = NULL")
    with TraceReader(path) as trace:
        assert_cores_agree(trace)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE event SET vcpu = 1 WHERE seq = 7", "event 7 is of vCPU 1"),
        ("UPDATE event SET vcpu = 1000 WHERE seq = 7", "event 7 is incomplete"),
        ("UPDATE event SET vcpu = -1 WHERE seq = 7", "event 7 is incomplete"),
        ("UPDATE event SET kind = 9 WHERE seq = 8", "event 8 is incomplete"),
        ("DELETE FROM mode_registers", "event 6 is incomplete"),
        ("DELETE FROM content WHERE seq = 3", "event 3 is incomplete"),
        ("UPDATE content SET words = x'00' WHERE seq = 2", "the content at event 2 is none of a page"),
        ("UPDATE content SET words = x'00020000000000000001' WHERE seq = 4", "the content at event 4 is none of a page"),
        ("UPDATE event SET flags = 9 WHERE seq = 8", "event 8 is incomplete"),
        ("UPDATE event SET flags = 1 << 16 WHERE seq = 7", "event 7 is incomplete"),
        ("UPDATE event SET addr = addr + 1 WHERE seq = 3", "event 3 is incomplete"),
        ("UPDATE event SET addr = (1 << 52) - 4 WHERE seq = 8", "event 8 is incomplete"),
        ("UPDATE mode_registers SET cr4 = 0x1030", "five-level paging (LA57) at event 6"),
    ],
)
def test_a_damaged_trace_ends_the_same_on_both_cores(statement: str, said: str, tmp_path: Path, cli: Cli) -> None:
    registers = "UPDATE mode_registers SET efer = 0x500 | 0x400"
    path = damage(damage(write(tmp_path / "t.db", GUEST), registers), statement)
    ends = [cli("replay", path, "--core", core) for core in CORES]
    assert said in ends[0].stderr
    assert {(end.returncode, end.stdout, end.stderr) for end in ends} == {(ends[0].returncode, "", ends[0].stderr)}


def test_pages_that_are_garbage_end_the_same_on_both_cores(tmp_path: Path, cli: Cli) -> None:
    path = write(tmp_path / "t.db", [Event(Kind.ACCESS, addr=i << 12) for i in range(5000)])
    content = bytearray(path.read_bytes())
    with sqlite3.connect(path) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'event'").fetchone()
    leaf = int.from_bytes(content[(root - 1) * 4096 + 8 :][:4], "big")
    for place in (root, leaf):
        content[(place - 1) * 4096 : place * 4096] = bytes([0x55]) * 4096
        path.write_bytes(content)
        ends = {(end.returncode, end.stderr) for core in CORES if (end := cli("replay", path, "--core", core))}
        assert len(ends) == 1
        assert "damaged" in next(iter(ends))[1]


def test_the_report_says_which_core_ran_and_why(tmp_path: Path, cli: Cli) -> None:
    path = write(tmp_path / "t.db", GUEST)
    assert "replayed by the fast core (numba " in cli("replay", path).stdout
    assert "replayed by the reference core (asked for)" in cli("replay", path, "--core", "reference").stdout
    assert "replayed by the reference core (--audit needs it)" in cli("replay", path, "--audit", "1").stdout


def test_the_audit_refuses_the_fast_core(tmp_path: Path, cli: Cli) -> None:
    done = cli("replay", write(tmp_path / "t.db", GUEST), "--core", "fast", "--audit", "1")
    assert done.returncode == 2
    assert "the audit looks into the readable core" in done.stderr


def test_without_numba_the_reference_core_runs_and_says_so(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('not here')\n")
    path = write(tmp_path / "t.db", GUEST)
    done = cli("replay", path, PYTHONPATH=str(tmp_path))
    assert "replayed by the reference core (the fast one cannot run: not here)" in done.stdout
    done = cli("replay", path, "--core", "fast", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install" in done.stderr


def test_parameters_that_admit_no_run_end_the_same(tmp_path: Path, cli: Cli) -> None:
    path = write(tmp_path / "t.db", GUEST)
    ends = {cli("replay", path, "--core", core, "--pages", "20").stderr for core in CORES}
    assert len(ends) == 1


def test_a_bad_choice_is_refused_by_name() -> None:
    with pytest.raises(UsageError):
        choose_core("fast", audit=True)
    with pytest.raises(ValueError, match="too few"):
        Kernel(parameters("kvm-2.6.20", pages=10))
