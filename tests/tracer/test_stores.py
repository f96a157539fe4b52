"""64-bit code that stores to page tables in every way: the recording has each store that the guest's source makes, and no other."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from db.check.verify import verify
from db.trace import TraceReader
from tests.tracer.metal import SOURCES, recorded
from tracer.qemu import Capture
from tracer.request import Outcome
from x86.event import ACCESS_FETCH, WRITE_SEEN_SHIFT, WRITE_SIZE, Kind, Seen

pytestmark = pytest.mark.boot


@dataclass(frozen=True)
class Store:
    """A store to a table: where, how many bytes, what."""

    gpa: int
    size: int
    value: int


@dataclass(frozen=True)
class Line:
    """A line of a guest's list: the stores that an instruction makes, or, where it may divide them as it likes, the area and its bytes."""

    kind: str
    stores: list[Store]
    area: range = range(0)
    image: dict[int, int] | None = None


def image(area: int, parts: dict[int, bytes]) -> dict[int, int]:
    """What each byte of an area must be, from the parts that the manual defines."""
    return {area + offset + i: byte for offset, part in parts.items() for i, byte in enumerate(part)}


# The state of the x87 and SSE when it is stored: zero on top of one, four registers in use, all condition codes of a comparison.
CONTROL, STATUS, TAGS, IN_USE, MXCSR = (struct.pack("<H", word) for word in (0x37F, 0x7000, 0x1FFF, 0xC0, 0x1F80))
ZERO, ONE = bytes(10), struct.pack("<QH", 1 << 63, 0x3FFF)
XMM = [(0x5500600060, 0), (0x6600700060, 0), (0x5500600060, 0x6600700060), (0x8000800000800080, 0)]
#: wide.S's register of 32 bytes, whose upper half lies apart from the lower one.
PATTERN = (0x1122330060, 0x2233440060, 0x3344550060, 0x4455660060)
ENVIRONMENT = {0: CONTROL, 4: STATUS, 8: TAGS}
#: By kind: how long the area is, and what is in it.
AREAS = {
    "fbstp": (10, {0: b"\1" + bytes(9)}),
    "fnstenv": (28, ENVIRONMENT),
    "fnsave": (108, {**ENVIRONMENT, 28: ZERO, 38: ONE}),
    "fxsave": (
        512,
        {
            0: CONTROL,
            2: STATUS,
            4: IN_USE[:1],
            24: MXCSR,
            32: ZERO,
            48: ONE,
            **{160 + 16 * i: struct.pack("<QQ", *halves) for i, halves in enumerate(XMM)},
        },
    ),
    "xsave": (512 + 64 + 256, {0: CONTROL, 160: struct.pack("<QQ", *PATTERN[:2]), 576: struct.pack("<QQ", *PATTERN[2:])}),
}


def lines(guest: str) -> Iterator[Line]:
    """What a guest's list of stores says."""
    for text in (SOURCES / f"{guest}.events").read_text().splitlines():
        if not text or text.startswith("#"):
            continue
        place, size, rest = text.split(maxsplit=2)
        gpa = int(place, 16)
        if size == "area":
            length, parts = AREAS[rest]
            yield Line(rest, [], range(gpa, gpa + length), image(gpa, parts))
            continue
        value, kind = rest.split(maxsplit=1)
        if size == "zeros":
            yield Line(kind, [Store(gpa + 8 * i, 8, 0) for i in range(int(value))])
        else:
            yield Line(kind, [Store(gpa, int(size, 16), int(value, 16))])


def stores(trace: Path, seen: Seen = Seen.EXACT) -> list[Store]:
    """Those that were recorded, and seen in this way."""
    with TraceReader(trace) as opened:
        found = [event for event in opened.events((Kind.WRITE,)) if event.flags >> WRITE_SEEN_SHIFT == seen]
    return [Store(event.addr, event.flags & WRITE_SIZE, event.value) for event in found]


def assert_stores(found: list[Store], expected: list[Line]) -> None:
    """That they are these, in order: areas by their bytes, all others one by one."""
    at = 0
    for line in expected:
        held: dict[int, int] = {}
        while line.image is not None and at < len(found) and found[at].gpa in line.area:
            store = found[at]
            held |= {store.gpa + i: byte for i, byte in enumerate(store.value.to_bytes(store.size, "little"))}
            at += 1
        assert {byte: held.get(byte) for byte in line.image or ()} == (line.image or {}), line.kind
        assert set(held) <= set(line.area), line.kind
        for store in line.stores:
            assert at < len(found), line.kind
            assert found[at] == store, line.kind
            at += 1
    assert found[at:] == []


@dataclass(frozen=True)
class Run:
    """A recording of the guest, and how it ended."""

    trace: Path
    outcome: Outcome

    def addresses(self, kind: Kind) -> list[int]:
        """Of the events of a kind."""
        with TraceReader(self.trace) as opened:
            return [event.addr for event in opened.events((kind,))]


def recorded_long(folder: Path, program: str | None = None, vcpus: int = 1, **capture: Any) -> Run:
    """The guest, recorded on so many vCPUs."""
    return Run(*recorded("long", folder, "-m", "16M", "-smp", str(vcpus), program=program, capture=Capture(**capture)))


@pytest.fixture(
    scope="module", params=["1 tlb touches", "1 tlb tables", "1 callbacks touches", "1 callbacks tables", "2 touches", "2 tables"]
)
def how(request: pytest.FixtureRequest) -> tuple[int, dict[str, Any]]:
    """On how many vCPUs it is recorded, and how. With two QEMU makes locked instructions in another way."""
    vcpus, *words = request.param.split()
    tables = {} if "touches" in words else {"touch_entries": 0, "user_stores": True}
    return int(vcpus), {**tables, "callbacks": "callbacks" in words}


@pytest.fixture(scope="module", params=[True, False], ids=["stock QEMU", "QEMU of backports"])
def run(
    request: pytest.FixtureRequest, how: tuple[int, dict[str, Any]], qemu_of_backports: str, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The guest on a QEMU; the second vCPU sleeps."""
    vcpus, capture = how
    done = recorded_long(tmp_path_factory.mktemp("long"), None if request.param else qemu_of_backports, vcpus, **capture)
    with TraceReader(done.trace) as opened:
        by_tlb = request.param and vcpus == 1 and not capture["callbacks"]
        assert opened.recording["told_by"] == ("tlb" if by_tlb else "callbacks")
    return done


def test_every_store_is_recorded_and_no_other(run: Run) -> None:
    assert_stores(stores(run.trace), list(lines("long")))
    assert stores(run.trace, Seen.FOREIGN) == []


def test_each_invlpg_has_its_address(run: Run) -> None:
    """By each form of its operand; long.S has them in this order."""
    assert [hex(address) for address in run.addresses(Kind.INVLPG)] == [
        *("0xffff800000345678", "0xffff800000345670", "0xffff80000034e678"),
        *("0x201234", "0x7010", "0x1234", "0x400000"),
        *("0x7fff0000", "0xfffffffffffff000"),
        *("0x345678", "0xfffffffffffff000"),
        *("0x400000", "0x402020", "0xfff00000", "0x456789"),
        *("0x31300", "0x1000", "0x430300", "0x1000"),
    ]


def test_each_load_of_a_root_is_recorded(run: Run) -> None:
    """Of the same value, and of the same root with other bits, too."""
    assert run.addresses(Kind.CR3) == [0x20000, 0x20000, 0x20000, 0x20018, 0x24000, 0x20000]


def test_the_tables_at_the_end_are_the_guest_s_and_the_trace_is_verified(run: Run) -> None:
    # Newer QEMUs take the debug port for a power-off.
    assert run.outcome.ended in ("exit", "poweroff")
    assert run.outcome.lost == 0
    verdict = run.outcome.verdict
    assert verdict is not None
    assert verdict.details == []
    assert (verdict.missing, verdict.different, verdict.leaves_different or 0) == (0, 0, 0)
    assert verdict.entries > 30
    with TraceReader(run.trace) as opened:
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []


@pytest.mark.parametrize("callbacks", [False, True])
def test_stores_of_user_code_are_seen_only_where_that_is_asked_for(callbacks: bool, tmp_path: Path) -> None:
    """Without touches; what they left is found when the guest stands still, by words, as nobody's."""
    run = recorded_long(tmp_path, touch_entries=0, callbacks=callbacks)
    assert_stores(stores(run.trace), [line for line in lines("long") if not line.kind.startswith("ring 3")])
    left = [Store(0x30400, 8, 0x71060), Store(0x30408, 8, 0x72060), Store(0x30410, 8, 0x71060), Store(0x30420, 8, 0x106000)]
    assert stores(run.trace, Seen.FOREIGN) == left
    assert len([line for line in lines("long") if line.kind.startswith("ring 3")]) == len(left)


@pytest.mark.parametrize(("stock", "callbacks"), [(True, False), (True, True), (False, True)])
def test_every_store_of_wider_registers_is_recorded(stock: bool, callbacks: bool, qemu_of_backports: str, tmp_path: Path) -> None:
    program, capture = None if stock else qemu_of_backports, Capture(callbacks=callbacks)
    trace, outcome = recorded("wide", tmp_path, "-m", "16M", "-cpu", "max", program=program, capture=capture)
    assert_stores(stores(trace), list(lines("wide")))
    verdict = outcome.verdict
    assert verdict is not None
    assert (outcome.lost, verdict.missing, verdict.different) == (0, 0, 0)


def test_both_qemus_give_the_same_events(qemu_of_backports: str, tmp_path: Path) -> None:
    """Fetches aside: where a block ends is QEMU's affair."""
    found = []
    for number, program in enumerate((None, qemu_of_backports)):
        (tmp_path / str(number)).mkdir()
        with TraceReader(recorded_long(tmp_path / str(number), program).trace) as opened:
            events = [event for event in opened.events() if event.kind != Kind.ACCESS or not event.flags & ACCESS_FETCH]
        found.append([(event.kind, event.addr, event.flags, event.value) for event in events])
    assert found[0] == found[1]
    assert len(found[0]) > 1000
