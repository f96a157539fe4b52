"""What a kernel's file says of its data where kallsyms has functions alone, as in Debian's kernels for i386.

Names of exported data are in ``__ksymtab`` (include/asm-generic/export.h); where a task's fields lie shows in ``init_task`` as it is
before the kernel runs (init/init_task.c).
"""

from __future__ import annotations

import struct
from typing import Any

from elftools.elf.elffile import ELFFile

#: Value, name and name space of an exported symbol, each relative to where it stands.
_KSYMTAB_ENTRY = struct.Struct("<iii")

#: What is read of init_task: more than any configuration's task_struct needs up to ``comm``.
_TASK_BYTES = 8192
_IDLE_COMM = b"swapper\0"


def exported(elf: ELFFile) -> dict[str, int]:
    """Link-time addresses of the symbols that the kernel exports to modules; empty where there is no such table."""
    names: Any = elf.get_section_by_name("__ksymtab_strings")
    if names is None:
        return {}
    strings, start, mask = names.data(), names["sh_addr"], (1 << elf.elfclass) - 1
    found: dict[str, int] = {}
    for section in (elf.get_section_by_name(name) for name in ("__ksymtab", "__ksymtab_gpl")):
        if section is None:
            continue
        data = section.data()
        for offset in range(0, len(data) - _KSYMTAB_ENTRY.size + 1, _KSYMTAB_ENTRY.size):
            here = section["sh_addr"] + offset
            value, name, _ = _KSYMTAB_ENTRY.unpack_from(data, offset)
            at = here + 4 + name - start
            if 0 <= at < len(strings):
                text = strings[at : strings.find(b"\0", at)].decode(errors="replace")
                found[text] = here + value & mask
    return found


def contents(elf: ELFFile, address: int, size: int) -> bytes:
    """Up to ``size`` bytes of the file at a link-time address; empty where there are none."""
    for segment in elf.iter_segments("PT_LOAD"):
        offset = address - segment["p_vaddr"]
        if 0 <= offset < segment["p_filesz"]:
            elf.stream.seek(segment["p_offset"] + offset)
            return bytes(elf.stream.read(min(size, segment["p_filesz"] - offset)))
    return b""


def task_offsets(elf: ELFFile, addresses: dict[str, int]) -> dict[str, int]:
    """Byte offsets of ``pid``, ``tgid`` and ``comm`` in task_struct, by what init_task holds; empty where it does not show.

    The idle task is called ``swapper``. It is its own real_parent, parent and group_leader, with two empty lists between these; before
    real_parent stand pid and tgid, and between them the stack canary, if the kernel has one.
    """
    start = addresses.get("init_task", 0)
    data = contents(elf, start, _TASK_BYTES)
    word = elf.elfclass // 8
    words = [int.from_bytes(data[at : at + word], "little") for at in range(0, len(data) - word + 1, word)]
    found = [i for i in range(len(words) - 7) if _is_family(words[i : i + 7], start, start + i * word, word)]
    comm = data.find(_IDLE_COMM)
    if len(found) != 1 or comm < 0 or data.count(_IDLE_COMM) != 1:
        return {}
    canary = word if "__stack_chk_fail" in addresses else 0
    tgid = found[0] * word - canary - 4
    return {"pid": tgid - 4, "tgid": tgid, "comm": comm}


def _is_family(words: list[int], task: int, at: int, word: int) -> bool:
    """Whether these words, at an address, are real_parent, parent, children, sibling and group_leader of a task without relatives."""
    children, sibling = at + 2 * word, at + 4 * word
    return words == [task, task, children, children, sibling, sibling, task]
