"""Where a store to a table came from: the instruction, and the kernel's function."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from db.trace import TraceReader
from tests.conftest import Boot
from tests.tracer.metal import recorded
from tracer import guest, kernelimage, symbols
from tracer.record import record
from tracer.request import Request
from x86.event import ACCESS_FAULT, ACCESS_WRITE, WRITE_SIZE, Kind, unsigned

FIRMWARE = 0xF0000


def origins(trace: TraceReader) -> dict[int, int]:
    return {row["seq"]: unsigned(row["pc"]) for row in trace.rows("store_origin")}


def test_the_nearest_function_below_an_address_is_the_one_it_lies_in() -> None:
    known = symbols.Symbols(64, {}, {}, [(0x1000, "first"), (0x1010, "second"), (0x1400, "end")])
    slide = 0x20_0000
    pcs = [slide + 0x1000, slide + 0x100F, slide + 0x13FF, slide + 0xFFF, slide + 0x1400, slide + 0x9000]
    assert symbols.functions_at(known, slide, pcs) == [(slide + 0x1000, 0x10, "first"), (slide + 0x1010, 0x3F0, "second")]
    assert symbols.functions_at(known, slide, pcs[3:]) == []


@pytest.mark.boot
@pytest.mark.parametrize("stock", [True, False], ids=["stock QEMU", "QEMU of backports"])
def test_one_instruction_at_two_addresses(stock: bool, qemu_of_backports: str, tmp_path: Path) -> None:
    """Newer QEMUs translate it once for both; what counts is where it ran."""
    trace, _ = recorded("alias", tmp_path, program=None if stock else qemu_of_backports)
    where = FIRMWARE + (tmp_path / "alias.bin").read_bytes().index(bytes.fromhex("c705002c0200"))
    with TraceReader(trace) as opened:
        assert list(origins(opened).values()) == [where, where + 0x1000000, where]
        paging = max(seq for seq, event in enumerate(opened.events(), 1) if event.kind == Kind.REGS)
        found = [event.addr for event in opened.events() if event.kind == Kind.ACCESS and event.flags & 4]
        assert found[-5:] == [where - 0x1D, where - 0x18, where + 0x1000000, where - 0xC, where - 7]
        assert len([seq for seq, e in enumerate(opened.events(), 1) if seq > paging and e.kind == Kind.ACCESS and e.flags & 4]) == 5


@pytest.mark.boot
@pytest.mark.parametrize("stock", [True, False], ids=["stock QEMU", "QEMU of backports"])
def test_faults_of_a_handler_at_two_addresses(stock: bool, qemu_of_backports: str, tmp_path: Path) -> None:
    """Its page is mapped twice, and the gate is moved from one mapping to the other: the faults are those of QEMU's log."""
    log = tmp_path / "int.log"
    trace, _ = recorded("gate", tmp_path, "-d", "int", "-D", str(log), program=None if stock else qemu_of_backports)
    logged = [int(address, 16) for address in re.findall(r"v=0e .* CR2=(\w+)", log.read_text())]
    with TraceReader(trace) as opened:
        found = [event for event in opened.events() if event.kind == Kind.ACCESS]
    assert [event.addr for event in found if event.flags & 8] == logged == [0x500000, 0x500004, 0x500008]
    handlers = [event.addr for event in found if event.flags & 4 and event.addr >> 24 == 1]
    assert len(handlers) == 2
    assert handlers[0] == handlers[1]


@pytest.mark.boot
@pytest.mark.parametrize("stock", [True, False], ids=["stock QEMU", "QEMU of backports"])
def test_faults_of_a_handler_whose_gate_lies_in_rom(stock: bool, qemu_of_backports: str, tmp_path: Path) -> None:
    trace, _ = recorded("rom", tmp_path, program=None if stock else qemu_of_backports)
    with TraceReader(trace) as opened:
        found = [event for event in opened.events() if event.kind == Kind.ACCESS and event.flags & ACCESS_FAULT]
    assert [(event.addr, event.flags & ~ACCESS_FAULT) for event in found] == [(0x500000, 0), (0x500004, ACCESS_WRITE)]


@pytest.mark.boot
@pytest.mark.parametrize("stock", [True, False], ids=["stock QEMU", "QEMU of backports"])
def test_a_store_across_two_tables_is_one_access_to_each(stock: bool, qemu_of_backports: str, tmp_path: Path) -> None:
    trace, _ = recorded("cross", tmp_path, program=None if stock else qemu_of_backports)
    with TraceReader(trace) as opened:
        events = list(opened.events())
    paging = min(at for at, event in enumerate(events) if event.kind == Kind.REGS and event.extra[0] >> 31 & 1)
    tables = [event for event in events[paging:] if 0x22000 <= event.addr < 0x24000]
    assert [(e.kind, e.addr, e.flags & WRITE_SIZE) for e in tables if e.kind in (Kind.ACCESS, Kind.WRITE)] == [
        (Kind.ACCESS, 0x22FFE, 1),
        (Kind.WRITE, 0x22FFE, 2),
        (Kind.ACCESS, 0x23000, 1),
        (Kind.WRITE, 0x23000, 2),
        (Kind.ACCESS, 0x22FFC, 1),
        (Kind.WRITE, 0x22FFC, 4),
        (Kind.ACCESS, 0x23000, 1),
        (Kind.WRITE, 0x23000, 4),
        (Kind.ACCESS, 0x23010, 1),
        (Kind.WRITE, 0x23010, 4),
    ]


@pytest.mark.boot
@pytest.mark.parametrize("stock", [True, False], ids=["stock QEMU", "QEMU of backports"])
def test_every_kind_of_store_is_told_by_its_instruction(stock: bool, qemu_of_backports: str, tmp_path: Path) -> None:
    """The bytes in the firmware at each origin are those of the instruction that guest.S has for that store."""
    recipe = guest.load("bare")
    trace = tmp_path / "bare.db"
    record(Request(trace, recipe, program=None if stock else qemu_of_backports, seconds=recipe.limit, version="test"))
    firmware = recipe.images().paths["firmware"].read_bytes()
    with TraceReader(trace) as opened:
        known = origins(opened)
        stores = [(seq, event) for seq, event in enumerate(opened.events(), 1) if event.kind == Kind.WRITE]
    assert set(known) == {seq for seq, _ in stores}
    code: dict[int, list[tuple[int, bytes]]] = {}
    for seq, event in stores:
        offset = known[seq] - FIRMWARE
        code.setdefault(event.addr, []).append((event.flags & WRITE_SIZE, firmware[offset : offset + 16]))
    pt = 0x22000
    assert [(size, found[:2].hex()) for size, found in code[pt + 0xC00]] == [(4, "c705"), (1, "c605"), (4, "f083")]
    assert [found[:2].hex() for _, found in code[pt + 0xC08]] == ["8705", "f00f"]
    assert code[pt + 0xC10][0][1][:3].hex() == "f00fc7"
    assert code[pt + 0xC20][0][1][:3].hex() == "f30f7f"
    assert [code[pt + 0xC40 + 4 * i][0][1][:2].hex() for i in range(3)] == ["f3ab"] * 3
    assert code[pt + 0xC80][0][1][:6].hex() == "c705800cc0ff"


def code_at(image: ELFFile, address: int) -> bytes:
    """The first bytes of an instruction in the kernel's image."""
    (segment,) = [s for s in image.iter_segments() if s["p_vaddr"] <= address < s["p_vaddr"] + s["p_filesz"]]
    offset = address - segment["p_vaddr"]
    return bytes(segment.data()[offset : offset + 3])


@pytest.mark.boot
def test_every_store_of_a_boot_is_in_a_function_of_the_kernel(boot: Boot) -> None:
    image = ELFFile(io.BytesIO(kernelimage.unpack(guest.load("cloud-amd64").images().paths["kernel"].read_bytes())))
    with TraceReader(boot.trace) as trace:
        known, functions, slide = origins(trace), trace.rows("symbol"), trace.recording["kernel_slide"]
        stores = [seq for seq, event in enumerate(trace.events(), 1) if event.kind == Kind.WRITE]
    assert slide is not None
    assert slide % (2 << 20) == 0
    assert len(stores) > 10_000
    assert set(stores) == set(known)
    starts = sorted((unsigned(row["address"]), row["size"], row["name"]) for row in functions)
    by_name: dict[str, set[bytes]] = {}
    for pc in set(known.values()):
        address, size, name = starts[bisect_right(starts, (pc, 1 << 64, "")) - 1]
        assert address <= pc < address + size
        by_name.setdefault(name, set()).add(code_at(image, pc - slide))
    # What the two that every kernel has to have are made of: mov %rsi,(%rdi) and rep stosq.
    assert by_name["native_set_pte"] == {bytes.fromhex("488937")}
    assert by_name["clear_page_rep"] == {bytes.fromhex("f348ab")}
    assert len(by_name) > 8
