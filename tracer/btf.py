"""Offsets of structure members from a kernel's .BTF section (the kernel's Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct

_MAGIC = 0xEB9F
_STRUCT, _UNION = 4, 5
#: Bytes that follow the 12 of a type, by kind: a fixed number, and a number for each of its ``vlen`` members.
_TAIL = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}


def member_offsets(section: bytes, structure: str) -> dict[str, int]:
    """The byte offset of each member of a structure, members of anonymous structures inside it included.

    Bit fields are left out. Empty where there is no such structure; ``ValueError`` where the section is no BTF.
    """
    try:
        return _member_offsets(section, structure)
    except (struct.error, IndexError) as error:
        raise ValueError("the .BTF section is damaged") from error


def _member_offsets(section: bytes, structure: str) -> dict[str, int]:
    magic, _, _, header, type_offset, type_length, string_offset, _ = struct.unpack_from("<HBBIIIII", section)
    if magic != _MAGIC:
        raise ValueError("the .BTF section has another format")
    types: list[tuple[int, int, int, int, int]] = [(0, 0, 0, 0, 0)]
    at, end = header + type_offset, header + type_offset + type_length
    found = None
    wanted = structure.encode()
    strings = header + string_offset

    def name(offset: int) -> bytes:
        start = strings + offset
        return section[start : section.index(b"\0", start)]

    while at < end:
        name_offset, info, _ = struct.unpack_from("<III", section, at)
        kind, vlen, flag = info >> 24 & 31, info & 0xFFFF, info >> 31
        fixed, each = _TAIL.get(kind, (0, 0))
        types.append((kind, vlen, flag, at + 12, name_offset))
        if kind == _STRUCT and name(name_offset) == wanted and found is None:
            found = len(types) - 1
        at += 12 + fixed + each * vlen
    offsets: dict[str, int] = {}

    def gather(number: int, base: int) -> None:
        _, vlen, flag, members, _ = types[number]
        for i in range(vlen):
            member, kind_of, offset = struct.unpack_from("<III", section, members + 12 * i)
            if flag:
                if offset >> 24:
                    continue
                offset &= 0xFFFFFF
            label = name(member).decode(errors="replace")
            if label:
                offsets.setdefault(label, base + offset // 8)
            elif types[kind_of][0] in (_STRUCT, _UNION):
                gather(kind_of, base + offset // 8)

    if found is not None:
        gather(found, 0)
    return offsets
