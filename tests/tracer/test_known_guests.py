"""Bare-metal guests whose every paging event is known: recorded, they give exactly that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from db.trace import TraceReader
from tests.tracer.touches import first_touches
from tracer.qemu import Capture
from tracer.record import record
from tracer.request import Outcome, Request
from x86.event import ACCESS_FAULT, ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, WRITE_SIZE, Event, Kind

pytestmark = pytest.mark.boot

GUESTS = ("walk32", "walkpae", "walk64", "walkall")


def arguments(folder: Path, name: str) -> list[str]:
    def loader(file: str, address: str) -> tuple[str, str]:
        return "-device", f"loader,file={folder / name / file},addr={address},force-raw=on"

    return [
        *("-accel", "tcg", "-cpu", "qemu64", "-m", "16", "-M", "pc,usb=off", "-bios", str(folder / "stub.rom")),
        *loader("low.bin", "0x1000"),
        *loader("high.bin", "0x100000"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        *("-vga", "none", "-nic", "none", "-display", "none", "-serial", "none", "-monitor", "none", "-no-reboot"),
    ]


def number(value: Any) -> int:
    return int(value, 0) if isinstance(value, str) else int(value)


@pytest.fixture(scope="module", params=GUESTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["tlb", "callbacks"])
def capture(request: pytest.FixtureRequest) -> Capture:
    return Capture(callbacks=request.param)


@pytest.fixture(scope="module")
def walked(name: str, capture: Capture, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Event], Outcome]:
    """What a guest does, what was recorded of it, how that ended."""
    trace = tmp_path_factory.mktemp("walk") / "walk.db"
    outcome = record(Request(trace, arguments=arguments(shared / "guests", name), capture=capture, version="test"))
    expected = [json.loads(line) for line in (shared / "guests" / name / "events.jsonl").read_text().splitlines()]
    with TraceReader(trace) as opened:
        return expected, list(opened.events()), outcome


def is_subsequence(part: list[Any], whole: list[Any]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


def test_cr3_loads_are_exactly_the_guest_s(walked: Any) -> None:
    expected, recorded, _ = walked
    assert [e.addr for e in recorded if e.kind == Kind.CR3] == [number(e["value"]) for e in expected if e["ev"] == "cr3"]


def test_invlpgs_are_exactly_the_guest_s(walked: Any) -> None:
    expected, recorded, _ = walked
    assert [e.addr for e in recorded if e.kind == Kind.INVLPG] == [number(e["va"]) for e in expected if e["ev"] == "invlpg"]


def test_no_store_is_invented(walked: Any) -> None:
    expected, recorded, _ = walked
    theirs = [(number(e["gpa"]), e["size"], number(e["value"])) for e in expected if e["ev"] == "write"]
    ours = [(e.addr, e.flags & WRITE_SIZE, e.value) for e in recorded if e.kind == Kind.WRITE]
    assert ours
    assert is_subsequence(ours, theirs)


def accesses(expected: list[Any], faulted: bool) -> list[tuple[int, ...]]:
    return [
        (number(e["va"]), *(number(e.get(key, 0)) for key in ("write", "user", "fetch")))
        for e in expected
        if e["ev"] == "access" and (not faulted or e.get("fault"))
    ]


def recorded_accesses(recorded: list[Event], faulted: bool) -> list[tuple[int, ...]]:
    bits = (ACCESS_WRITE, ACCESS_USER, ACCESS_FETCH)
    found = [e for e in recorded if e.kind == Kind.ACCESS and (not faulted or e.flags & ACCESS_FAULT)]
    return [(e.addr, *(int(bool(e.flags & bit)) for bit in bits)) for e in found]


def test_page_faults_are_exactly_the_guest_s(walked: Any) -> None:
    expected, recorded, _ = walked
    assert recorded_accesses(recorded, True) == accesses(expected, True)


@pytest.fixture(scope="module")
def every(name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The same guest with every access recorded."""
    trace = tmp_path_factory.mktemp("every") / "walk.db"
    record(Request(trace, arguments=arguments(shared / "guests", name), version="test", every_access=True))
    with TraceReader(trace) as opened:
        return list(opened.events())


def told_of_data(expected: list[Any]) -> list[tuple[int, ...]]:
    """Loads and stores but those by which the processor enters a page fault's handler, of which QEMU tells nothing."""
    found, entering = [], False
    for event in expected:
        if event["ev"] == "access":
            entering = entering and not event.get("fetch")
            found += accesses([event], False) if not entering and not event.get("fetch") else []
            entering = entering or bool(event.get("fault"))
    return found


def without_second_halves(found: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """QEMU loads a descriptor, or a table register's operand, in two parts; the list has the first. All lie in one page."""
    kept: list[tuple[int, ...]] = []
    for access in found:
        half = bool(kept) and access[0] >> 12 == 1 and access[0] - kept[-1][0] in (2, 4) and not any((*access[1:], *kept[-1][1:]))
        kept += [] if half and not kept[-1][0] % 4 else [access]
    return kept


def test_every_load_and_store_is_the_guest_s(walked: Any, every: list[Event]) -> None:
    data = [e for e in every if e.kind == Kind.ACCESS and not (e.flags & ACCESS_FETCH and not e.flags & ACCESS_FAULT)]
    assert without_second_halves(recorded_accesses(data, False)) == told_of_data(walked[0])


#: A fetch: address, whether by user code. What makes fetches touches again, and ends QEMU's blocks as well, comes as ``None``.
Fetches = list[tuple[int, int] | None]


def recorded_fetches(every: list[Event]) -> Fetches:
    """Those after the one at the reset vector, from where stub.rom jumps to the guest's first instruction."""
    found: Fetches = []
    for event in every:
        if event.kind in (Kind.CR3, Kind.INVLPG, Kind.REGS):
            found.append(None)
        elif event.kind == Kind.ACCESS and event.flags & ACCESS_FETCH and not event.flags & ACCESS_FAULT:
            found.append((event.addr, int(bool(event.flags & ACCESS_USER))))
    found.remove((0xFFFFFFF0, 0))
    return found


def fetches(expected: list[Any]) -> Fetches:
    """One for each instruction that the guest executes."""
    found: Fetches = []
    registers = None
    for event in expected:
        kind, before = event["ev"], registers
        if kind == "regs":
            registers = (event["cr0"], event["cr4"], event["efer"])
        if kind in ("cr3", "invlpg") or registers != before:
            found.append(None)
        elif kind == "access" and event.get("fetch") and not event.get("fault"):
            found.append((number(event["va"]), number(event["user"])))
    return found


def pages_in_turn(found: Fetches) -> list[list[tuple[int, int]]]:
    """Between one flush and the next: the pages of code, by privilege, in the order in which each is first fetched from."""
    turns: list[list[tuple[int, int]]] = [[]]
    for fetch in found:
        if fetch is None:
            turns.append([])
        elif (page := (fetch[0] >> 12, fetch[1])) not in turns[-1]:
            turns[-1].append(page)
    return turns


def test_every_fetch_is_of_an_instruction_of_the_guest_s(walked: Any, every: list[Event]) -> None:
    """A block is told by its first instruction: those, in order, are a part of the guest's instructions."""
    found = recorded_fetches(every)
    assert len(found) > 40
    assert is_subsequence(found, fetches(walked[0]))


def test_no_page_of_code_goes_unfetched_between_two_flushes(walked: Any, every: list[Event]) -> None:
    expected = pages_in_turn(fetches(walked[0]))
    assert pages_in_turn(recorded_fetches(every)) == expected
    assert len({page for turn in expected for page in turn}) > 1
    assert max(len(turn) for turn in expected) > 1


def test_first_touches_are_those_of_every_access(walked: Any, every: list[Event]) -> None:
    assert [event for event in walked[1] if event.kind == Kind.ACCESS] == first_touches(every)


def test_mode_changes_are_the_guest_s(walked: Any) -> None:
    """A register written with the value it has is no change."""
    expected, recorded, _ = walked
    theirs = [tuple(number(e[key]) for key in ("cr0", "cr4", "efer")) for e in expected if e["ev"] == "regs"]
    changes = [after for before, after in zip([None, *theirs], theirs, strict=False) if before != after]
    assert [e.extra for e in recorded if e.kind == Kind.REGS] == changes


def test_the_tables_are_rebuilt(walked: Any) -> None:
    _, _, outcome = walked
    assert outcome.lost == 0
    assert outcome.verdict.details == []
    assert (outcome.verdict.missing, outcome.verdict.different) == (0, 0)
    assert outcome.verdict.entries > 500
