"""Events as lines, for people and for pipes: text, or JSON Lines that keep what the interchange format has no word for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from analyzer.reports.text import space_name
from analyzer.trace.residency import History
from db.queries import Query
from db.trace import TraceReader
from x86.event import (
    ACCESS_FAULT,
    ACCESS_FETCH,
    ACCESS_USER,
    ACCESS_WRITE,
    CR3_HAS_PDPTES,
    MASK64,
    WRITE_SEEN_SHIFT,
    WRITE_SIZE,
    Kind,
    Seen,
    kind_name,
    unpack_words,
)
from x86.paging import BASE32, BASE64, BASE_PDPT, NX, PAGE_SHIFT
from x86.registers import RESET, Mode, paging_mode

#: Lines that are handed over at once.
_LINES = 4096

#: Letters of a table entry's lowest bits: present, writable, user, write-through, cache-disable, accessed, dirty, size, global.
_LETTERS = "PWUTCADSG"
_ENTRY = ["".join(letter if low >> bit & 1 else "-" for bit, letter in enumerate(_LETTERS)) for low in range(1 << len(_LETTERS))]

_SEEN = {int(seen): seen.name.lower() for seen in Seen}


def _touch(flags: int) -> str:
    what = "x" if flags & ACCESS_FETCH else "w" if flags & ACCESS_WRITE else "r"
    return f"{what} {'u' if flags & ACCESS_USER else 's'}{' fault' if flags & ACCESS_FAULT else ''}"


_TOUCH = [_touch(flags) for flags in range(16)]

#: One event as a line: seq, vcpu, flags, addr, value.
Line = Callable[[int, int, int, int, int], str]


class _Aside:
    """What a line shows beside the event's own row; asked for events in order."""

    def __init__(self, trace: TraceReader) -> None:
        self._history = History(trace)
        self.registers = trace.side("mode_registers")
        self.pdptes = trace.side("pdptes")
        self.words = {seq: len(unpack_words(words)) for seq, words in trace.contents().items()}
        self._loads = list(trace.stream("SELECT seq, vcpu, cr0, cr4, efer FROM mode_registers JOIN event USING (seq) ORDER BY seq DESC"))
        self._values: dict[int, dict[str, int]] = {}
        self._entry_bytes: dict[int, int] = {}

    def name(self, seq: int, flags: int, cr3: int) -> str:
        """What the address space of the root that a load named was called at this event."""
        space = self._history.at(seq, cr3 & (BASE_PDPT if flags & CR3_HAS_PDPTES else BASE64))
        return "-" if space is None else space_name(space)

    def entry_bytes(self, seq: int, vcpu: int) -> int:
        """Bytes of a table entry in the paging mode that this vCPU was in."""
        while self._loads and self._loads[-1][0] < seq:
            _, whose, *given = self._loads.pop()
            values = self._values.setdefault(whose, dict(RESET))
            values |= {name: value & MASK64 for name, value in zip(("cr0", "cr4", "efer"), given, strict=True) if value is not None}
            mode = paging_mode(values["cr0"], values["cr4"], values["efer"])
            self._entry_bytes[whose] = mode.entry_bytes
        return self._entry_bytes.get(vcpu, Mode.LONG.entry_bytes)

    def entry(self, seq: int, vcpu: int, size: int, gpa: int, value: int) -> tuple[str, int] | None:
        """Letters and frame of the table entry that a store wrote; ``None`` where it did not write the low half of one."""
        width = self.entry_bytes(seq, vcpu)
        if gpa & width - 1 or size not in (4, width):
            return None
        letters = _ENTRY[value & len(_ENTRY) - 1]
        if size == 8:
            letters += "N" if value & NX else "-"
        return letters, (value & (BASE64 if size == 8 else BASE32)) >> PAGE_SHIFT


def text(trace: TraceReader, query: Query) -> Iterator[str]:
    """The events of a query as text, in blocks of many lines."""
    aside = _Aside(trace)
    others = {Kind.REGS: _regs(aside), Kind.CR3: _cr3(aside), Kind.WRITE: _write(aside), Kind.PAGE: _page(aside), Kind.INVLPG: _invlpg}
    block: list[str] = []
    for seq, kind, vcpu, flags, addr, value in query.rows(trace):
        if kind == Kind.ACCESS:
            block.append(f"{seq:10d} [{vcpu}] access: va={addr & MASK64:#x} {_TOUCH[flags & 15]}\n")
        else:
            block.append(f"{seq:10d} [{vcpu}] {others[kind](seq, vcpu, flags, addr, value)}\n")
        if len(block) == _LINES:
            yield "".join(block)
            block.clear()
    yield "".join(block)


def _regs(aside: _Aside) -> Line:
    def line(seq: int, _vcpu: int, _flags: int, _addr: int, _value: int) -> str:
        given = zip(("cr0", "cr4", "efer"), aside.registers.get(seq, ()), strict=False)
        return "regs: " + " ".join(f"{name}={value:#x}" for name, value in given if value is not None)

    return line


def _cr3(aside: _Aside) -> Line:
    def line(seq: int, _vcpu: int, flags: int, addr: int, _value: int) -> str:
        pdptes = aside.pdptes.get(seq)
        four = "" if pdptes is None else " pdptes=" + ",".join(hex(entry or 0) for entry in pdptes)
        return f"cr3: {addr & MASK64:#x} {aside.name(seq, flags, addr)}{four}"

    return line


def _write(aside: _Aside) -> Line:
    def line(seq: int, vcpu: int, flags: int, addr: int, value: int) -> str:
        size, value = flags & WRITE_SIZE, value & MASK64
        entry = aside.entry(seq, vcpu, size, addr, value)
        decoded = "-" if entry is None else f"{entry[0]} gfn={entry[1]:#x}"
        return f"write: gpa={addr:#x} size={size} value={value:#x} {decoded} {_SEEN.get(flags >> WRITE_SEEN_SHIFT, '?')}"

    return line


def _page(aside: _Aside) -> Line:
    def line(seq: int, _vcpu: int, _flags: int, addr: int, _value: int) -> str:
        return f"page: gpa={addr:#x} words={aside.words.get(seq, 0)}"

    return line


def _invlpg(_seq: int, _vcpu: int, _flags: int, addr: int, _value: int) -> str:
    return f"invlpg: va={addr & MASK64:#x}"


def jsonl(trace: TraceReader, query: Query) -> Iterator[str]:
    """The events of a query as JSON objects, in blocks of many lines; addresses and values are strings in hex."""
    aside = _Aside(trace)
    dump = json.JSONEncoder(separators=(",", ":")).encode
    block: list[str] = []
    for seq, kind, vcpu, flags, addr, value in query.rows(trace):
        line = {"seq": seq, "vcpu": vcpu, "ev": kind_name(kind), **_fields(aside, seq, kind, vcpu, flags, addr, value)}
        block.append(dump(line) + "\n")
        if len(block) == _LINES:
            yield "".join(block)
            block.clear()
    yield "".join(block)


def _fields(aside: _Aside, seq: int, kind: int, vcpu: int, flags: int, addr: int, value: int) -> dict[str, Any]:
    if kind == Kind.ACCESS:
        bits = (("write", ACCESS_WRITE), ("user", ACCESS_USER), ("fetch", ACCESS_FETCH), ("fault", ACCESS_FAULT))
        return {"va": hex(addr & MASK64)} | {name: int(bool(flags & bit)) for name, bit in bits}
    if kind == Kind.WRITE:
        size, value = flags & WRITE_SIZE, value & MASK64
        entry = aside.entry(seq, vcpu, size, addr, value)
        decoded = {} if entry is None else {"entry": entry[0], "gfn": hex(entry[1])}
        return {"gpa": hex(addr), "size": size, "value": hex(value), **decoded, "seen": _SEEN.get(flags >> WRITE_SEEN_SHIFT, "?")}
    if kind == Kind.CR3:
        fields: dict[str, Any] = {"value": hex(addr & MASK64), "name": aside.name(seq, flags, addr)}
        if seq in aside.pdptes:
            fields["pdptes"] = [hex(entry or 0) for entry in aside.pdptes[seq]]
        return fields
    if kind == Kind.REGS:
        given = zip(("cr0", "cr4", "efer"), aside.registers.get(seq, ()), strict=False)
        return {name: hex(number) for name, number in given if number is not None}
    if kind == Kind.PAGE:
        return {"gpa": hex(addr), "words": aside.words.get(seq, 0)}
    return {"va": hex(addr & MASK64)}
