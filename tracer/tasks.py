"""Linux tasks: which of the kernel's functions show that a program is executed, a process forked, an address space freed.

The functions are entered once for each, whatever the kernel was configured with: ``start_thread`` (arch/x86/kernel/process_64.c and
process_32.c) when a new program's stack is made and its address space loaded; ``wake_up_new_task`` (kernel/sched/core.c) when a forked
task is about to run; ``pgd_free`` (arch/x86/mm/pgtable.c) when a top table is given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from tracer import commandline, kernelmms
from tracer.symbols import Symbols
from x86.registers import CR4_PAE

_COMM_BYTES = 16
_CR3_TABLE = 0x000F_FFFF_FFFF_F000
_CR3_PDPT = 0xFFFF_FFE0

#: The running task, a per-CPU variable: by its own name, or the first field of what holds it (Linux 6.2 to 6.14).
_CURRENT = ("current_task", "pcpu_hot")

#: From here on a per-CPU variable's address is one of the kernel's image, which moves with it.
_IN_IMAGE = 0xC000_0000


class TaskEvent(IntEnum):
    """``enum task_event`` of qemu-scripts/plugin/shadowtrace.h."""

    EXEC = 0
    EXEC_32 = 1
    """A 32-bit program on a 64-bit kernel."""
    FORK = 2
    END = 3


#: The function that is entered at each.
FUNCTIONS = {
    TaskEvent.EXEC: "start_thread",
    TaskEvent.EXEC_32: "compat_start_thread",
    TaskEvent.FORK: "wake_up_new_task",
    TaskEvent.END: "pgd_free",
}

#: How an address space's name, or its end, was learnt, as the trace has it.
LEARNT = {TaskEvent.EXEC: "exec", TaskEvent.EXEC_32: "exec", TaskEvent.FORK: "fork", TaskEvent.END: "end"}

#: The registers that the first three arguments of a function are in.
_ARGUMENTS = {64: ("rdi", "rsi", "rdx"), 32: ("rax", "rdx", "rcx")}


class Stopped(Protocol):
    """A vCPU that stands still: its registers, and memory as it sees it."""

    def register(self, name: str) -> int:
        """A register's value, unsigned."""

    def read(self, address: int, size: int) -> bytes | None:
        """Guest memory at a virtual address; ``None`` where nothing is mapped."""


@dataclass(frozen=True)
class Named:
    """What became of an address space: ``comm`` is ``None`` at its end, ``argv`` where no program was executed or none shows."""

    root: int
    learnt: str
    """How: a value of ``LEARNT``, or ``symbol``."""
    pid: int | None = None
    comm: str | None = None
    argv: list[str] | None = None


@dataclass(frozen=True)
class Layout:
    """Where a kernel's functions and fields lie in a guest, as ``struct task_layout`` of the plugin has it."""

    bits: int
    functions: tuple[int, ...]
    """By ``TaskEvent``; 0 where the kernel has none."""
    current_task: int
    """From the base of gs, or of fs in a 32-bit kernel."""
    pid: int
    comm: int
    mm: int = 0
    pgd: int = 0


def missing(symbols: Symbols) -> str | None:
    """Why a kernel's programs cannot be named, in a few words; ``None`` where they can."""
    if symbols.first_c_function is None:
        return "the kernel is not Linux"
    if FUNCTIONS[TaskEvent.EXEC] not in symbols.addresses:
        return f"the kernel has no symbol {FUNCTIONS[TaskEvent.EXEC]}"
    if not any(name in symbols.addresses for name in _CURRENT):
        return f"the kernel has no symbol {' or '.join(_CURRENT)}"
    if not {"pid", "comm"} <= set(symbols.task):
        return "the fields of the kernel's task_struct cannot be found in its init_task"
    return None


def layout(symbols: Symbols, slide: int) -> Layout:
    """Where things lie in a kernel that can name programs and was moved by ``slide``; without what only a running task shows."""
    functions = [symbols.addresses.get(FUNCTIONS[event]) for event in TaskEvent]
    current = next(symbols.addresses[name] for name in _CURRENT if name in symbols.addresses)
    return Layout(
        symbols.bits,
        tuple(0 if address is None else address + slide for address in functions),
        current + (slide if current >= _IN_IMAGE else 0),
        symbols.task["pid"],
        symbols.task["comm"],
    )


def root(stopped: Stopped, bits: int) -> int:
    """The physical address of the top table in force: in PAE mode one of 32 bytes, of which a frame holds several."""
    pae = bits == 32 and stopped.register("cr4") & CR4_PAE
    return stopped.register("cr3") & (_CR3_PDPT if pae else _CR3_TABLE)


def current(stopped: Stopped, layout: Layout) -> int | None:
    """The address of the running task's structure."""
    base = stopped.register("gs_base" if layout.bits == 64 else "fs_base")
    return kernelmms.pointer(stopped.read, base + layout.current_task & (1 << layout.bits) - 1, layout.bits)


def look(stopped: Stopped, layout: Layout, event: TaskEvent, symbols: Symbols, slide: int) -> Iterator[Named]:
    """What a vCPU that is about to enter the function of ``event`` does; nothing where it cannot be read, or is a thread's."""
    first, second, third = (stopped.register(name) & (1 << layout.bits) - 1 for name in _ARGUMENTS[layout.bits])
    here = root(stopped, layout.bits)
    if event == TaskEvent.END:
        freed = kernelmms.physical(stopped.read, symbols, slide, second)
        if freed is not None:
            yield Named(freed, LEARNT[event])
        return
    task = first if event == TaskEvent.FORK else current(stopped, layout)
    described = _describe(stopped, layout, task) if task else None
    if described is None:
        return
    pid, comm = described
    if event != TaskEvent.FORK:
        word = 4 if event == TaskEvent.EXEC_32 else layout.bits // 8
        yield Named(here, LEARNT[event], pid, comm, commandline.arguments(stopped.read, third, word))
        return
    mm = kernelmms.pointer(stopped.read, first + layout.mm, layout.bits) if layout.mm else None
    pgd = kernelmms.pointer(stopped.read, mm + layout.pgd, layout.bits) if mm else None
    forked = kernelmms.physical(stopped.read, symbols, slide, pgd) if pgd else None
    if forked is not None and forked != here:
        yield Named(forked, LEARNT[event], pid, comm)


def _describe(stopped: Stopped, layout: Layout, task: int) -> tuple[int, str] | None:
    pid, comm = stopped.read(task + layout.pid, 4), stopped.read(task + layout.comm, _COMM_BYTES)
    return None if pid is None or comm is None else (int.from_bytes(pid, "little", signed=True), text(comm))


def text(comm: bytes) -> str:
    """A task's name as the kernel keeps it: what is no UTF-8 as backslash escapes."""
    return comm.split(b"\0", 1)[0].decode(errors="backslashreplace")
