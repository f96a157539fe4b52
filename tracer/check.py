"""The recorded tables against a running guest's memory: what the events alone rebuild has to be what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

from db.check.rebuild import Cpu, Rebuilt, Verdict, compare
from x86.paging import NX, leaves
from x86.registers import Mode

#: Translations of a vCPU, at most, that are compared with QEMU's: UEFI maps all memory by small pages, tables that are used again and
#: again map more than there are addresses, and an answer of tens of megabytes breaks the line to QEMU.
MOST_LEAVES = 100_000


class Stopped(Protocol):
    """A machine that stands still."""

    def alive(self) -> bool:
        """Whether QEMU runs."""

    def monitor(self, line: str) -> str:
        """The answer of its human monitor."""

    def command(self, name: str, **arguments: Any) -> Any:
        """A QMP command's answer; ``None`` where there is none: then translations are not compared."""

    def frame(self, gfn: int) -> bytes | None:
        """A frame of its RAM."""


def translations(rebuilt: Rebuilt, number: int) -> set[tuple[int, int]]:
    """What the rebuilt tables of a vCPU translate, (va, gpa): ``MOST_LEAVES`` of it, and one more where there is more."""
    cpu = rebuilt.cpus.get(number, Cpu())
    all_of_them = leaves(rebuilt.memory, cpu.cr3, cpu.mode, cpu.cr4, cpu.pdptes)
    return {(leaf.va, leaf.gpa) for leaf in islice(all_of_them, MOST_LEAVES + 1)}


def compare_leaves(ours: set[tuple[int, int]], info_tlb: str, verdict: Verdict) -> None:
    """Hold translations against QEMU's own walk, the text of ``info tlb``."""
    # For PAE `info tlb` prints the whole entry above the page: NX with it.
    theirs = {(int(va, 16), int(gpa, 16) & ~NX) for va, gpa in re.findall(r"^([0-9a-f]+): ([0-9a-f]+) ", info_tlb, re.MULTILINE)}
    verdict.leaves = (verdict.leaves or 0) + len(ours | theirs)
    verdict.leaves_different = (verdict.leaves_different or 0) + len(ours ^ theirs)
    for va, gpa in sorted(ours ^ theirs):
        verdict.say(f"translation {va:#x} -> {gpa:#x} only in {'the trace' if (va, gpa) in ours else 'info tlb'}")


def registers(info_registers: str) -> Iterator[tuple[int, Cpu]]:
    """Each vCPU's number and paging registers, from the text of ``info registers -a``."""
    for block in re.split(r"^CPU#", info_registers, flags=re.MULTILINE)[1:]:
        number = re.match(r"\d+", block)
        values = {name.lower(): int(value, 16) for name, value in re.findall(r"\b(CR[034]|EFER)=([0-9a-f]+)", block)}
        if number and {"cr0", "cr3", "cr4"} <= set(values):
            yield int(number[0]), Cpu(values["cr0"], values["cr3"], values["cr4"], values.get("efer", 0))


def check_machine(rebuilt: Rebuilt, machine: Stopped) -> Verdict:
    """Compare rebuilt tables with a machine that stands still, or whose QEMU has ended: then with the RAM it left."""
    cpus = dict(registers(machine.monitor("info registers -a"))) if machine.alive() else {}
    verdict = compare(rebuilt, machine.frame, cpus or rebuilt.cpus)
    for number, cpu in cpus.items():
        if cpu.mode is Mode.NONE or len(ours := translations(rebuilt, number)) > MOST_LEAVES:
            continue
        text = machine.command("human-monitor-command", **{"command-line": "info tlb", "cpu-index": number})
        if text is not None:
            compare_leaves(ours, text if isinstance(text, str) else "", verdict)
    return verdict
