"""Every guest we ship: recorded by name, its tables rebuilt, its trace verified."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyzer.reports.recorded import text
from db.check.verify import verify
from db.columns import event_rows
from db.trace import TraceReader
from tests.analyzer.test_kernel import assert_cores_agree
from tests.conftest import Cli
from tests.tracer import names
from tracer import guest, resources
from tracer.expect import Expectation
from tracer.record import record
from tracer.request import Outcome, Request
from x86.event import ACCESS_FAULT, WRITE_SIZE, Kind

pytestmark = pytest.mark.boot

#: These guests are recorded by other tests.
ELSEWHERE = {"cloud-amd64", "cloud-amd64-smp", "debian12", "debian13", "xen"}
HERE = sorted(set(guest.names()) - ELSEWHERE)

#: Random stops that are asked for. The bare guest is over in a few milliseconds: none comes in time.
CHECKS = 6
TOO_SHORT = {"bare"}


def recorded(name: str, folder: Path, *arguments: str, program: str | None = None, checks: int = 0) -> tuple[Path, Outcome]:
    recipe = guest.load(name)
    trace = folder / f"{name}.db"
    return trace, record(Request(trace, recipe, arguments, program, seconds=recipe.limit, checks=checks, version="test"))


def assert_every_check_found_the_same(trace: TraceReader, least: int) -> None:
    checks = trace.rows("memory_check")
    assert len([row for row in checks if row["entries"]]) >= least
    assert [row["seq"] for row in checks if row["missing"] or row["different"] or row["leaves_different"]] == []
    assert [row["detail"] for row in checks if row["detail"]] == []
    assert [row["seq"] for row in checks] == sorted(row["seq"] for row in checks)


@pytest.mark.parametrize("name", HERE)
def test_a_guest_s_tables_are_rebuilt_its_trace_verified_and_both_cores_agree(name: str, tmp_path: Path, cli: Cli) -> None:
    trace, outcome = recorded(name, tmp_path, checks=CHECKS)
    expect = guest.load(name).expect
    assert outcome.not_shown == []
    assert outcome.ended == expect.ended
    assert outcome.lost == 0
    with TraceReader(trace) as opened:
        assert_every_check_found_the_same(opened, least=0 if name in TOO_SHORT else 2)
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []
        if expect.names:
            names.check(opened)
        if "LA57" not in expect.modes:
            # A guest that ran on was refused no register, so the model has to take every one.
            assert assert_cores_agree(opened).counters.mode_gp_injected == 0
    if "LA57" in expect.modes:
        refused = cli("report", trace)
        assert refused.returncode == 2
        assert "models stop at four levels" in refused.stderr


def test_every_recipe_says_what_its_guest_must_show() -> None:
    for name in guest.names():
        expect = guest.load(name).expect
        assert expect.modes, name
        assert expect.cr3 > 0, name
        assert expect.stores > 0, name


def test_what_a_guest_did_not_show_is_said_and_fails_nothing(tmp_path: Path) -> None:
    recipe = guest.load("bare")
    wrong = Expectation("poweroff", ("PAE", "LA57"), ("hello",), ("init",), cr3=8, stores=20, faults=3, invlpg=4, quadrants=5)
    outcome = record(Request(tmp_path / "bare.db", replace(recipe, expect=wrong), seconds=recipe.limit, version="test"))
    assert list(outcome.not_shown) == [
        "it ends with 'poweroff', not with 'exit'",
        "it turns on LA57 paging",
        "it prints 'hello'",
        "it runs 'init' in an address space of that name",
        "it gives 8 cr3 loads or more, not 7",
        "it gives 4 INVLPGs or more, not 3",
        "it gives 3 guest page faults or more, not 2",
        "it gives 5 quadrants or more, not 2",
    ]
    shown = text("bare.db", "exit", "", 1, 0, None, "bare", outcome.not_shown)
    assert "bare did not show what it must: it prints 'hello'" in shown.splitlines()


def test_a_guest_that_was_ended_early_owes_nothing(tmp_path: Path) -> None:
    outcome = record(Request(tmp_path / "short.db", guest.load("cloud-amd64"), events=1000, version="test"))
    assert (outcome.ended, list(outcome.not_shown)) == ("events", [])


def test_the_list_of_guests_has_size_mode_and_time(cli: Cli) -> None:
    guest.load("bare").images()
    done = cli("guests")
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["guest", "paging", "boot", "events", "size", "what", "it", "is"]
    assert [row.split()[0] for row in rows] == guest.names()
    assert re.search(r"^bare +two-level, PAE, 4-level +1 s +500 +64 KiB  bare metal", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("stock", [True, False], ids=["stock QEMU", "QEMU of backports"])
def test_the_bare_metal_guest_gives_exactly_its_events(stock: bool, qemu_of_backports: str, tmp_path: Path) -> None:
    trace, _ = recorded("bare", tmp_path, program=None if stock else qemu_of_backports)
    expected = json.loads((resources.scripts() / "guests" / "bare" / "expect.json").read_text())
    with TraceReader(trace) as opened:
        events = list(opened.events())
    assert [hex(e.addr) for e in events if e.kind == Kind.CR3] == expected["cr3"]
    assert [hex(e.addr) for e in events if e.kind == Kind.INVLPG] == expected["invlpg"]
    stores = [{"gpa": hex(e.addr), "size": e.flags & WRITE_SIZE, "value": hex(e.value)} for e in events if e.kind == Kind.WRITE]
    assert stores == expected["write"]
    faults = [e for e in events if e.kind == Kind.ACCESS and e.flags & ACCESS_FAULT]
    as_lines = [{"va": hex(e.addr), "write": e.flags & 1, "user": e.flags >> 1 & 1, "fetch": e.flags >> 2 & 1} for e in faults]
    assert as_lines == expected["faults"]
    # As a processor reads them: QEMU's walker had marked them as accessed in memory.
    loads = [[hex(entry) for entry in e.extra or () if isinstance(entry, int)] for e in events if e.kind == Kind.CR3 and e.extra]
    assert loads == expected["pdptes"]
    assert [[hex(value) for value in e.extra or () if isinstance(value, int)] for e in events if e.kind == Kind.REGS] == expected["modes"]


def test_page_tables_only(tmp_path: Path) -> None:
    """Without touches the same tables are there, and no access."""
    from tracer.qemu import Capture

    trace = tmp_path / "tables.db"
    outcome = record(Request(trace, guest.load("cloud-amd64"), capture=Capture(touch_entries=0), version="test"))
    verdict = outcome.verdict
    assert verdict is not None
    assert (outcome.lost, verdict.missing, verdict.different, verdict.leaves_different) == (0, 0, 0, 0)
    with TraceReader(trace) as opened:
        kinds = [event.kind for event in opened.events()]
        assert Kind.ACCESS not in kinds
        assert kinds.count(Kind.CR3) > 1000
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []


def test_a_real_boot_on_the_qemu_of_backports(qemu_of_backports: str, tmp_path: Path) -> None:
    trace, outcome = recorded("cloud-amd64", tmp_path, program=qemu_of_backports)
    verdict = outcome.verdict
    assert verdict is not None
    assert (outcome.ended, outcome.lost) == ("poweroff", 0)
    assert (verdict.missing, verdict.different, verdict.leaves_different) == (0, 0, 0)
    with TraceReader(trace) as opened:
        assert int(opened.recording["qemu_version"].split(".")[0]) >= 10
        assert opened.recording["plugin_api"] >= 2


def test_random_stops_of_a_boot_are_checked(tmp_path: Path) -> None:
    trace = tmp_path / "checked.db"
    record(Request(trace, guest.load("cloud-amd64"), checks=8, version="test"))
    with TraceReader(trace) as opened:
        checks = opened.rows("memory_check")
    assert len(checks) > 4
    assert sum(check["missing"] + check["different"] + (check["leaves_different"] or 0) for check in checks) == 0
    assert [check["seq"] for check in checks] == sorted(check["seq"] for check in checks)
    assert checks[-1]["seq"] > checks[0]["seq"]


def test_deterministic_recordings_are_the_same_but_for_the_very_end(tmp_path: Path) -> None:
    """After the guest has asked to be powered off it runs on until QEMU's main loop stops it: a moment more or less."""
    recordings, sides = [], []
    for number in (1, 2):
        trace = tmp_path / f"{number}.db"
        record(Request(trace, guest.load("cloud-amd64"), deterministic=True, version="test"))
        with TraceReader(trace) as opened:
            recordings.append(np.concatenate(list(event_rows(opened)), axis=1))
            sides.append([opened.side("mode_registers"), opened.side("pdptes"), opened.contents()])
    first, second = recordings
    length = min(first.shape[1], second.shape[1])
    assert length > 1_000_000
    assert abs(first.shape[1] - second.shape[1]) < 1000
    assert np.array_equal(first[:, :length], second[:, :length])
    for one, other in zip(*sides, strict=True):
        assert {seq: row for seq, row in one.items() if seq <= length} == {seq: row for seq, row in other.items() if seq <= length}
