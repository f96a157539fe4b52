"""Guests that mean harm: the recording ends well, its tables are right, memory stays bounded, nothing of theirs is shown raw."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from db.check.verify import verify
from db.trace import TraceReader
from tests.conftest import Cli
from tests.tracer import metal
from tracer.qemu import Capture
from tracer.request import Outcome
from x86.event import Kind
from x86.registers import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA

pytestmark = pytest.mark.boot

SOURCES = Path(__file__).with_name("hostile")


def recorded(name: str, folder: Path, *more: str, **request: Any) -> tuple[Path, Outcome]:
    trace, outcome = metal.recorded(name, folder, *more, sources=SOURCES, **request)
    assert outcome.ended == "exit", outcome.detail
    return trace, outcome


def right(outcome: Outcome) -> bool:
    verdict = outcome.verdict
    return verdict is not None and (verdict.missing, verdict.different) == (0, 0)


@pytest.mark.parametrize("touch_entries", [1024, 0])
def test_tables_in_circles_and_outside_ram(touch_entries: int, tmp_path: Path) -> None:
    trace, outcome = recorded("cycle", tmp_path, capture=Capture(touch_entries=touch_entries))
    assert outcome.lost == 0
    assert right(outcome)
    with TraceReader(trace) as opened:
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []
        kinds = [event.kind for event in opened.events()]
    assert kinds.count(Kind.CR3) == 401
    assert kinds.count(Kind.WRITE) == 200 * 5


def test_more_translations_than_anybody_wants_to_hear_of(tmp_path: Path) -> None:
    """QEMU's list of a million would break the line to it, and the guest's reset would never be noticed."""
    trace, outcome = metal.recorded("wide", tmp_path, sources=SOURCES, checks=2)
    assert outcome.ended == "reset"
    assert right(outcome)
    with TraceReader(trace) as opened:
        checks = opened.rows("memory_check")
    assert {(row["tables"], row["entries"], row["leaves"]) for row in checks if row["entries"]} == {(2, 2048, None)}


def test_storms_of_cr3_and_garbage_in_it(tmp_path: Path) -> None:
    trace, outcome = recorded("registers", tmp_path, capture=Capture(touch_entries=0))
    assert outcome.lost == 0
    assert right(outcome)
    with TraceReader(trace) as opened:
        loads = [event.addr for event in opened.events((Kind.CR3,))]
    assert len(loads) == 1000 + 1 + 100_000
    assert len(set(loads)) > 1000


@pytest.mark.parametrize("touch_entries", [1024, 0])
def test_garbage_in_the_registers_that_make_a_mode(touch_entries: int, tmp_path: Path, cli: Cli) -> None:
    trace, outcome = recorded("modes", tmp_path, capture=Capture(touch_entries=touch_entries))
    assert outcome.lost == 0
    assert right(outcome)
    modes = Counter[tuple[bool, ...]]()
    with TraceReader(trace) as opened:
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []
        for event in opened.events((Kind.REGS,)):
            cr0, cr4, efer = (register or 0 for register in event.extra)
            modes[bool(cr0 & CR0_PG), bool(cr0 & CR0_PE), bool(cr4 & CR4_PAE), bool(efer & EFER_LMA)] += 1
    # Paging in each mode, with and without protection; each more often than chance forbids.
    assert all(
        modes[True, protected, pae, long] > 300
        for protected in (True, False)
        for pae, long in ((False, False), (True, False), (True, True))
    )
    for arguments in (["report", trace], ["replay", trace, "--core", "reference"], ["verify", trace]):
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr


def test_more_tables_than_are_tracked(tmp_path: Path) -> None:
    most = 2000
    trace, outcome = recorded("tables", tmp_path, "-m", "128M", capture=Capture(touch_entries=0, max_tables=most))
    assert outcome.lost > 24
    with TraceReader(trace) as opened:
        assert len({event.addr for event in opened.events((Kind.PAGE,))}) == most
        (loss,) = opened.rows("loss")
        assert loss["count"] == outcome.lost == opened.recording["lost"]
        assert "beyond the limit" in loss["cause"]


ROOT = Path(__file__).resolve().parents[2]

_RECORD = """
import resource, sys
from pathlib import Path
from tests.tracer.test_hostile_guest import recorded, right
from tracer.qemu import Capture
trace, outcome = recorded(sys.argv[1], Path(sys.argv[2]), "-m", sys.argv[3], capture=Capture(touch_entries=0))
print(outcome.lost, right(outcome), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def kibibytes_taken(name: str, ram: str, folder: Path) -> int:
    """What QEMU takes for this guest, at the most; nothing may be lost, and the tables be right."""
    # In a process of its own, whose children are this recording's alone.
    done = subprocess.run([sys.executable, "-c", _RECORD, name, folder, ram], cwd=ROOT, capture_output=True, text=True, check=True)
    lost, good, kibibytes = done.stdout.split()
    assert (lost, good) == ("0", "True")
    return int(kibibytes)


def test_every_frame_a_table(tmp_path: Path) -> None:
    """24 thousand links; what QEMU takes for it is bounded by RAM's frames."""
    # The guest's RAM, QEMU itself, and a copy of each table.
    assert 100_000 < kibibytes_taken("tables", "128M", tmp_path) < 1_000_000
    with TraceReader(tmp_path / "tables.db") as opened:
        assert sum(1 for _ in opened.events((Kind.PAGE,))) > 20_000


def test_garbage_for_ever_takes_no_memory(tmp_path: Path) -> None:
    assert kibibytes_taken("modes", "16M", tmp_path) < 100_000


def test_operands_that_never_come_again(tmp_path: Path) -> None:
    trace, outcome = recorded("operands", tmp_path)
    assert outcome.lost == 0
    with TraceReader(trace) as opened:
        assert [event.addr for event in opened.events((Kind.INVLPG,))] == [
            *(number << 12 for number in range(100_000)),
            *(0xF0000, 0xF1000, 0x8000),
        ]


def test_lines_of_the_console_that_are_not_kept_are_counted(tmp_path: Path, cli: Cli) -> None:
    trace, outcome = recorded("lines", tmp_path, "-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line")
    assert outcome.lost == 0
    with TraceReader(trace) as opened:
        assert [row["line"] for row in opened.rows("console")] == ["x"] * 100_000
        (loss,) = opened.rows("loss")
        assert (loss["vcpu"], loss["first"], loss["last"], loss["count"]) == (0, None, None, 0)
        assert 0 <= loss["seq"] <= opened.count()
        # No event was lost with them: nothing is left unchecked.
        assert [finding.not_applicable for finding in verify(opened) if finding.check.name in ("known-table", "linked")] == ["", ""]
        assert opened.recording["lost"] == 0
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []
    said = f"LOST after event {loss['seq']:,}: 700 lines of the console after the first 100,000"
    for verb in ("stat", "report"):
        assert said in cli(verb, trace, COLUMNS="200").stdout


def test_megabytes_and_escapes_on_the_console(tmp_path: Path, cli: Cli) -> None:
    trace, _ = recorded("console", tmp_path, "-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line")
    with TraceReader(trace) as opened:
        lines = [row["line"] for row in opened.rows("console")]
        assert opened.count() > 0
    # A million bytes without an end of a line, of which none is left out, and what follows on the last of them.
    assert max(len(line) for line in lines) == 4096
    assert "".join(lines).startswith("A" * 1_000_000 + "\x1b]0;owned")
    assert sum("DROP TABLE event; --" in line for line in lines) == 20_000
    for verb in ("report", "verify"):
        done = cli(verb, trace)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
