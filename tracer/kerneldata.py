"""What a kernel's file says about its data where neither kallsyms nor BTF do, as in Debian's kernels for i386.

Their kallsyms has functions alone. Names of exported data are in ``__ksymtab`` (include/asm-generic/export.h), the layout of
``task_struct`` shows in ``init_task`` as it is before the kernel runs (init/init_task.c), and one address stands in the code of the
function that reads it.
"""

from __future__ import annotations

import re
import struct
from typing import Any

from elftools.elf.elffile import ELFFile

#: Value, name and name space of an exported symbol, each relative to where it stands.
_KSYMTAB_ENTRY = struct.Struct("<iii")

#: What is read of init_task: more than any configuration's task_struct needs up to ``comm``.
_TASK_BYTES = 8192
_IDLE_COMM = b"swapper\0"

#: The word that drivers/connector/cn_proc.c reads at every fork, exec and exit, so that a watchpoint sees each without a breakpoint;
#: and the function that reads it at an exec.
LISTENERS = "proc_event_num_listeners"
AT_EXEC = "proc_exec_connector"
_EXEC_BYTES = 96

#: The running task, a per-CPU variable.
CURRENT = "current_task"

#: A load or a comparison of a word at a fixed 32-bit address; with an fs prefix it is a per-CPU variable, which is not meant.
_FIXED_WORD = re.compile(rb"(?<!\x64)(?:\xa1|\x8b[\x05\x0d\x15\x1d\x2d\x35\x3d]|\x83\x3d)(....)", re.DOTALL)


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


def listeners(elf: ELFFile, addresses: dict[str, int]) -> int | None:
    """The address of ``proc_event_num_listeners``, from the code of ``proc_exec_connector``, for 32-bit kernels."""
    if elf.elfclass != 32 or AT_EXEC not in addresses:
        return None
    words = (int.from_bytes(match[1], "little") for match in _FIXED_WORD.finditer(contents(elf, addresses[AT_EXEC], _EXEC_BYTES)))
    return next((word for word in words if _is_data(elf, word)), None)


def _is_data(elf: ELFFile, address: int) -> bool:
    return any(
        section["sh_addr"] <= address < section["sh_addr"] + section["sh_size"]
        for section in (elf.get_section_by_name(name) for name in (".data", ".bss"))
        if section is not None
    )


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
