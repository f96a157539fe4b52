"""What gdb does during a recording: it finds the kernel, marks phases, names address spaces, ends at a symbol."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from db.errors import UsageError
from tracer import commandline, kernelmms
from tracer.gdb import Session, Stop
from tracer.kerneldata import AT_EXEC, CURRENT, LISTENERS
from tracer.symbols import Symbols
from x86.registers import CR4_PAE

_COMM_BYTES = 16

#: The mark of the first program that is executed.
FIRST_PROCESS = "first user process"
_CR3_TABLE = 0x000F_FFFF_FFFF_F000
_CR3_PDPT = 0xFFFF_FFE0


class Driver:
    """Arms a gdb session and answers its stops.

    ``on_mark(name)`` is called at each moment with a name; ``on_name(root, pid, name, argv)`` when a program was executed, and for the
    kernel's own address spaces, which have no ``pid``; ``root`` is a physical address, ``argv`` is ``None`` where it does not show.
    ``stop_at`` has somebody else stop the guest, once, at one of some addresses; without it there is a breakpoint at each.
    ``slide`` is how far the kernel was moved, once it has been found. Without ``symbols`` there is one mark, ``reset``, and no names.
    Raises ``UsageError`` for a symbol the kernel lacks.
    """

    def __init__(
        self,
        session: Session,
        symbols: Symbols | None,
        until: str | None,
        marks: Sequence[str],
        on_mark: Callable[[str], None],
        on_name: Callable[[int, int | None, str, list[str] | None], None],
        stop_at: Callable[[range], None] | None = None,
    ) -> None:
        self._session = session
        self._symbols = symbols
        self._until = until
        self._on_mark, self._on_name = on_mark, on_name
        self._stop_at = stop_at
        self._entries = range(0)
        self._slots: list[int] = []
        self._marks: dict[int, str] = {}
        self._wanted = dict.fromkeys(["start_kernel", *marks, *([until] if until else [])])
        self.slide: int | None = None
        self._watched = False
        self._first_exec = True
        self._executing: dict[int, tuple[int, int]] = {}

    def arm(self) -> None:
        """At the reset vector: mark it, and catch Linux wherever it will have been moved to, or marks where another kernel is linked."""
        self._on_mark("reset")
        if self._symbols is None:
            return
        if self._symbols.first_c_function is None:
            self._arm_marks(self._symbols)
            return
        entry, slides = self._symbols.addresses[self._symbols.first_c_function], self._symbols.slides()
        self._entries = range(entry, entry + slides.stop, slides.step)
        if self._stop_at is not None:
            # QEMU looks through all breakpoints before each block that it has to look up: 512 made firmware run at a tenth of its speed.
            self._stop_at(self._entries)
        else:
            self._slots = [self._session.insert_breakpoint(address) for address in self._entries]

    def answer(self, stop: Stop) -> bool:
        """Deal with a stop; true where the recording is to end there."""
        if self._watched:
            self._name_programs()
        if stop.breakpoint in self._marks:
            return self._reached(stop.breakpoint)
        if stop.pc in self._entries:
            self._entered_kernel(stop.pc)
        return False

    def _entered_kernel(self, entry: int) -> None:
        if self._stop_at is not None:
            # gdb does not know of that breakpoint. Where something else stopped the guest here, it comes yet, and we are here again.
            self._session.remove_foreign(entry)
        self._session.delete(self._slots)
        self._slots = []
        if self.slide is None:
            self._found_kernel(entry - self._entries.start)

    def _found_kernel(self, slide: int) -> None:
        symbols = self._symbols
        if symbols is None:
            return
        self.slide = slide
        self._on_mark("kernel entry")
        early = kernelmms.early_root(self._session.read, symbols, slide)
        if early is not None and early == self._root(symbols):
            self._on_name(early, None, kernelmms.EARLY_TABLE, None)
        self._arm_marks(symbols)
        if symbols.names_programs:
            self._session.watch_reads(symbols.addresses[LISTENERS] + slide)
            self._watched = True

    def _arm_marks(self, symbols: Symbols) -> None:
        for name in self._wanted:
            if name in symbols.addresses:
                self._marks[self._session.insert_breakpoint(symbols.addresses[name] + (self.slide or 0))] = name

    def _reached(self, number: int) -> bool:
        name = self._marks.pop(number)
        self._session.delete([number])
        self._on_mark(name)
        return name == self._until

    def _name_programs(self) -> None:
        """Name what any vCPU executes: where several stop at once, or one while the guest is being stopped, QEMU tells of one alone."""
        symbols = self._symbols
        if symbols is None:
            return
        function, slide = symbols.function(AT_EXEC), self.slide or 0
        executing = [thread for thread, pc in self._session.pcs().items() if pc - slide in function]
        known, self._executing = self._executing, {}
        for thread in executing:
            self._session.select(thread)
            task = self._executed(symbols)
            if task is None:
                continue
            pid, name = task
            root = self._root(symbols)
            self._executing[thread] = pid, root
            # A vCPU may be found there at several stops. Two execs of a process in a row have two roots: the old one is there still.
            if known.get(thread) != (pid, root):
                self._name_program(symbols, root, pid, name)

    def _executed(self, symbols: Symbols) -> tuple[int, str] | None:
        """Process id and name of the program that the selected vCPU executes; cr3 and the name are the new ones already."""
        address = self._current_task(symbols)
        if address is None:
            return None
        pid, comm = (self._session.read(address + symbols.task[name], size) for name, size in (("pid", 4), ("comm", _COMM_BYTES)))
        if pid is None or comm is None:
            return None
        return int.from_bytes(pid, "little", signed=True), comm.split(b"\0", 1)[0].decode(errors="backslashreplace")

    def _name_program(self, symbols: Symbols, root: int, pid: int, name: str) -> None:
        session = self._session
        if self._first_exec:
            self._first_exec = False
            self._on_mark(FIRST_PROCESS)
            for kernel_root, kernel_name in kernelmms.roots(session.read, symbols, self.slide or 0):
                self._on_name(kernel_root, None, kernel_name, None)
        argv = commandline.arguments(session.read, session.register("rsp"), symbols.bits // 8)
        self._on_name(root, pid, name, argv)

    def _root(self, symbols: Symbols) -> int:
        """The physical address of the top table in force: in PAE mode one of 32 bytes, of which a frame holds several."""
        pae = symbols.bits == 32 and self._session.register("cr4") & CR4_PAE
        return self._session.register("cr3") & (_CR3_PDPT if pae else _CR3_TABLE)

    def _current_task(self, symbols: Symbols) -> int | None:
        """The address of the running task's structure: a per-CPU variable, which amd64 addresses from 0, i386 within the kernel."""
        if symbols.bits == 64:
            variable = self._session.register("gs_base") + symbols.addresses[CURRENT]
        else:
            variable = self._session.register("fs_base") + symbols.addresses[CURRENT] + (self.slide or 0)
        current = self._session.read(variable & (1 << symbols.bits) - 1, symbols.bits // 8)
        return None if current is None else int.from_bytes(current, "little")


def check_symbols(symbols: Symbols | None, names: Sequence[str]) -> None:
    """Raise ``UsageError`` where a symbol that the user asked for is not there."""
    for name in names:
        if symbols is None:
            raise UsageError(
                f"{name!r} cannot be found: the guest's kernel has no symbols that could be read", "give -kernel IMAGE, or leave it out"
            )
        if name not in symbols.addresses:
            raise UsageError(f"the guest's kernel has no symbol {name!r}", "a function's name as the kernel's kallsyms has it")
