"""What gdb does during a recording: it finds the kernel, marks phases, has address spaces named, ends at a symbol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from db.errors import ShadowtraceError, UsageError
from tracer import kernelmms, tasks
from tracer.gdb import Session, Stop
from tracer.symbols import Symbols
from tracer.tasks import Layout, Named, TaskEvent

#: The mark of the first program that is executed.
FIRST_PROCESS = "first user process"


class Plugin(Protocol):
    """What the driver has the plugin do, where there is one: it is shown each block of code as it is translated."""

    def stop_at(self, addresses: range) -> None:
        """Stop the guest, once, where a block begins at one of some virtual addresses."""

    def watch_tasks(self, layout: Layout, begun: bool) -> None:
        """Instrument the kernel's functions in ``layout``, and note what tasks do there once they have ``begun``."""


class Driver:
    """Arms a gdb session and answers its stops.

    ``on_mark(name)`` is called at each moment with a name; ``on_name`` with what becomes of an address space, where gdb finds out: that
    of the kernel's own, and all of them where there is no ``plugin``, which notes them without a stop. ``slide`` is how far the kernel was
    moved, once it has been found; ``executed`` is true once a program was. Without ``symbols`` there is one mark, ``reset``, and no
    names. Raises ``UsageError`` for a symbol the kernel lacks.
    """

    def __init__(
        self,
        session: Session,
        symbols: Symbols | None,
        until: str | None,
        marks: Sequence[str],
        on_mark: Callable[[str], None],
        on_name: Callable[[Named], None],
        plugin: Plugin | None = None,
    ) -> None:
        self._session = session
        self._symbols = symbols
        self._until = until
        self._on_mark, self._on_name = on_mark, on_name
        self._plugin = plugin
        self._entries = range(0)
        self._slots: list[int] = []
        self._marks: dict[int, str] = {}
        self._wanted = dict.fromkeys(["start_kernel", *marks, *([until] if until else [])])
        self._layout: Layout | None = None
        self._first_exec = range(0)
        self._probes: dict[int, TaskEvent] = {}
        self.slide: int | None = None
        self.executed = False

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
        if self._plugin is not None:
            # QEMU looks through all breakpoints before each block that it has to look up: 512 made firmware run at a tenth of its speed.
            self._plugin.stop_at(self._entries)
        else:
            self._slots = [self._session.insert_breakpoint(address) for address in self._entries]

    def answer(self, stop: Stop) -> bool:
        """Deal with a stop; true where the recording is to end there."""
        if stop.pc in self._first_exec:
            self._first_program(stop.pc)
        if self.executed and stop.breakpoint in self._probes and self._symbols is not None and self._layout is not None:
            for named in tasks.look(self._session, self._layout, self._probes[stop.breakpoint], self._symbols, self.slide or 0):
                self._on_name(named)
        if stop.breakpoint in self._marks:
            return self._reached(stop.breakpoint)
        if stop.pc in self._entries:
            self._entered_kernel(stop.pc)
        return False

    def _entered_kernel(self, entry: int) -> None:
        if self._plugin is not None:
            # gdb does not know of that breakpoint. Where something else stopped the guest here, it comes yet, and we are here again.
            self._session.remove_foreign(entry)
        self._session.delete(self._slots)
        self._slots = []
        if self.slide is None and self._symbols is not None:
            self._found_kernel(self._symbols, entry - self._entries.start)

    def _found_kernel(self, symbols: Symbols, slide: int) -> None:
        self.slide = slide
        self._on_mark("kernel entry")
        early = kernelmms.early_root(self._session.read, symbols, slide)
        if early is not None and early == tasks.root(self._session, symbols.bits):
            self._on_name(Named(early, "symbol", comm=kernelmms.EARLY_TABLE))
        self._arm_marks(symbols)
        if tasks.missing(symbols) is None:
            self._watch_tasks(tasks.layout(symbols, slide))

    def _watch_tasks(self, layout: Layout) -> None:
        self._layout = layout
        execs = [layout.functions[event] for event in (TaskEvent.EXEC, TaskEvent.EXEC_32) if layout.functions[event]]
        self._first_exec = range(min(execs), max(execs) + 1, max(execs) - min(execs) or 1)
        if self._plugin is not None:
            # Before any of their code is translated.
            self._plugin.watch_tasks(layout, begun=False)
            self._plugin.stop_at(self._first_exec)
        else:
            self._probes = {
                self._session.insert_breakpoint(layout.functions[event]): event for event in TaskEvent if layout.functions[event]
            }

    def _first_program(self, pc: int) -> None:
        """Name the kernel's own address spaces, and have those of programs named from now on."""
        if self._plugin is not None:
            self._session.remove_foreign(pc)
        symbols, layout, slide = self._symbols, self._layout, self.slide
        self._first_exec = range(0)
        if symbols is None or layout is None or slide is None:
            return
        self.executed = True
        self._on_mark(FIRST_PROCESS)
        task = tasks.current(self._session, layout)
        found = task and kernelmms.find_mm(self._session.read, symbols, slide, task, tasks.root(self._session, symbols.bits))
        if found:
            self._layout = layout = replace(layout, mm=found[0], pgd=found[1])
            for root, name in kernelmms.roots(self._session.read, symbols, slide, found[1]):
                self._on_name(Named(root, "symbol", comm=name))
        if self._plugin is not None:
            self._plugin.watch_tasks(layout, begun=True)

    def _arm_marks(self, symbols: Symbols) -> None:
        for name in self._wanted:
            if name in symbols.addresses:
                self._marks[self._session.insert_breakpoint(symbols.addresses[name] + (self.slide or 0))] = name

    def _reached(self, number: int) -> bool:
        name = self._marks.pop(number)
        self._session.delete([number])
        self._on_mark(name)
        return name == self._until


def check_symbols(symbols: Symbols | None, names: Sequence[str], unreadable: str | None) -> None:
    """Raise where a symbol that the user asked for is not there: ``ShadowtraceError`` for a kernel that is ``unreadable``, for the reason
    given, else ``UsageError``.
    """
    for name in names:
        if symbols is None and unreadable is not None:
            raise ShadowtraceError(
                f"{name!r} cannot be found: {unreadable}", "give -kernel a bzImage or an ELF file with symbols, or leave it out"
            )
        if symbols is None:
            raise UsageError(f"{name!r} cannot be found: QEMU was given no kernel image", "give -kernel IMAGE, or leave it out")
        if name not in symbols.addresses:
            raise UsageError(f"the guest's kernel has no symbol {name!r}", "a function's name as the kernel's kallsyms has it")
