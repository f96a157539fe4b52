"""Instructions that change how the guest translates addresses: found by their bytes in memory, told by their bytes at a stop.

Found bytes are candidates: data may look like them, and code may not be there yet. What an instruction is is asked again each
time the guest stands at one.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

#: mov to cr0, cr3, cr4; lidt, lmsw and invlpg of memory; lmsw of a register.
_CANDIDATE = re.compile(
    rb"\x0f(?:\x22[\xc0-\xc7\xd8-\xdf\xe0-\xe7]|\x01[\x18-\x1f\x58-\x5f\x98-\x9f\x38-\x3f\x78-\x7f\xb8-\xbf\xf0-\xf7])", re.DOTALL
)
#: wrmsr, where EFER's number was loaded into ecx shortly before.
_WRITES_EFER = re.compile(rb"\xb9\x80\x00\x00\xc0.{0,64}?\x0f\x30", re.DOTALL)

#: An indirect call through a word: at a fixed address, or (the short form, in 64-bit code) relative to the instruction's end.
_CALL = re.compile(rb"\xff(?:\x14\x25|\x15)(.{4})", re.DOTALL)
SHORT_CALL = 6
_ENDBR = (b"\xf3\x0f\x1e\xfa", b"\xf3\x0f\x1e\xfb")
_RETURN_BYTES = (b"\xc3", b"\xe9")

_MOST_PREFIXES = 4
_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"


class What(Enum):
    """Kinds of instructions that matter."""

    PLAIN = auto()
    CR3 = auto()
    MODE = auto()
    INVLPG = auto()
    LIDT = auto()


class Operand(NamedTuple):
    """A memory operand as registers' numbers (the encoding's), -1 for none; base -2 is the next instruction's address."""

    base: int
    index: int
    scale_shift: int
    displacement: int
    segment: int
    """4 for fs, 5 for gs, -1 for a flat one."""
    address32: bool


class Instruction(NamedTuple):
    """One instruction: what it is, its length; INVLPG's operand."""

    what: What
    size: int
    operand: Operand | None = None


def candidates(data: bytes) -> list[int]:
    """Offsets in code at which an instruction that matters may begin."""
    found = []
    for match in _CANDIDATE.finditer(data):
        found.append(match.start())
        # Prefixes, or the end of the instruction before: who stops only where instructions begin may try all.
        start = match.start()
        while start and match.start() - start < _MOST_PREFIXES and (data[start - 1] & 0xF0 == 0x40 or data[start - 1] in _PREFIXES):
            start -= 1
            found.append(start)
    return found + [match.end() - 2 for match in _WRITES_EFER.finditer(data)]


def calls(data: bytes) -> list[tuple[int, int, bool]]:
    """Indirect calls through a word: (offset, the four bytes that say where, as a signed number, whether it is the short form)."""
    return [
        (match.start(), int.from_bytes(match[1], "little", signed=True), data[match.start() + 1] == 0x15) for match in _CALL.finditer(data)
    ]


def function_that_loads_cr3(data: bytes, offset: int, start: int) -> int | None:
    """The address of a function that consists of the load of cr3 at an offset and its return; ``None`` where it is none.

    ``start`` is where the data begins; functions begin at multiples of 16, perhaps with the mark of indirect branches' targets.
    """
    if data[offset : offset + 2] != b"\x0f\x22" or data[offset + 2] >> 3 & 7 != 3 or data[offset + 3 : offset + 4] not in _RETURN_BYTES:
        return None
    first = offset - 4 if data[offset - 4 : offset] in _ENDBR else offset
    return start + first if (start + first) % 16 == 0 else None


def decode(code: bytes, long_mode: bool) -> Instruction:
    """What the instruction at the start of some bytes is; ``PLAIN`` for any that does not matter here."""
    at, rex, segment, address32 = 0, 0, -1, False
    while at + 2 < len(code) and (code[at] in _PREFIXES or (long_mode and code[at] & 0xF0 == 0x40)):
        if code[at] in b"\x64\x65":
            segment = 4 if code[at] == 0x64 else 5
        address32 |= code[at] == 0x67
        rex = code[at] if long_mode and code[at] & 0xF0 == 0x40 else 0
        at += 1
    if len(code) < at + 3 or code[at] != 0x0F:
        return Instruction(What.PLAIN, 0)
    second, modrm = code[at + 1], code[at + 2]
    register = modrm >> 3 & 7
    if second == 0x22:
        whats = {0: What.MODE, 3: What.CR3, 4: What.MODE}
        return Instruction(What.PLAIN if rex & 4 else whats.get(register, What.PLAIN), at + 3)
    if second == 0x30:
        return Instruction(What.MODE, at + 2)
    if second != 0x01:
        return Instruction(What.PLAIN, 0)
    memory = modrm >> 6 != 3
    operand, size = _operand(code[at + 2 :], rex, segment, address32)
    size = at + 2 + (size if memory else 1)
    if register == 6:
        return Instruction(What.MODE, size)
    if memory and register in (3, 7):
        return Instruction(What.LIDT if register == 3 else What.INVLPG, size, operand)
    return Instruction(What.PLAIN, size)


def _operand(code: bytes, rex: int, segment: int, address32: bool) -> tuple[Operand, int]:
    """A memory operand of 32-bit or 64-bit addressing, its modrm byte first; and how many bytes it takes."""
    mod, rm, at = code[0] >> 6, code[0] & 7, 1
    base, index, scale = rm | (rex & 1) << 3, -1, 0
    if rm == 4 and mod != 3 and len(code) > 1:
        sib = code[1]
        at, scale = 2, sib >> 6
        base = sib & 7 | (rex & 1) << 3
        index = sib >> 3 & 7 | (rex & 2) << 2
        index = -1 if index == 4 else index
        if mod == 0 and sib & 7 == 5:
            base = -1
    elif mod == 0 and rm == 5:
        base = -2
    size = {1: 1, 2: 4}.get(mod, 4 if base < 0 else 0)
    displacement = int.from_bytes(code[at : at + size], "little", signed=True)
    return Operand(base, index, scale, displacement, segment, address32), at + size
