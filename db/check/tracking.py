"""Which pages the recorder watches as tables at each moment, worked out again from the events: what a trace should hold.

The rules are the recorder's (qemu-scripts/plugin/tables.c): a page is watched from when a walk from a loaded root reaches it; every
entry that links it counts, and so does having been loaded as a root, until the first store to it while it is not loaded. After the
last link went it is watched for ``linger`` stores more. Its content comes just before the event that makes it a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct

from db.check.rebuild import Cpu, Rebuilt
from x86.event import WRITE_SIZE, Event, Kind
from x86.paging import PAGE_BYTES, PAGE_SHIFT, PRESENT, Table, child_gfn, is_big_page, roots
from x86.registers import CR4_PSE, Mode

_WORD = {4: Struct("<I"), 8: Struct("<Q")}

#: Where a PC has a window for video memory instead of RAM.
_WINDOW = range(0xA0000 >> PAGE_SHIFT, 0x100000 >> PAGE_SHIFT)


@dataclass
class _Watched:
    """A page that is watched."""

    copy: bytearray
    links: Counter[Table] = field(default_factory=Counter)
    """By what it is a table as: entries that link it, and one for having been loaded as a root."""
    roots: set[Table] = field(default_factory=set)
    loaded: int = 0
    left: int = 0
    """Stores for which it is still watched, once nothing links it."""


class Tracking:
    """The watched pages after the events that were taken so far.

    ``ram_bytes`` and ``linger`` are the recording's; where ``linger`` is not known, 0, a page is watched for good.
    """

    def __init__(self, ram_bytes: int, linger: int) -> None:
        self._frames, self._linger = ram_bytes >> PAGE_SHIFT, linger
        self._watched: dict[int, _Watched] = {}
        self._loaded: dict[int, list[_Watched]] = {}
        self._pse = 0
        self._fresh: dict[int, bytes] = {}
        self._last_retired = -1
        self._faults: list[tuple[str, str]] = []

    def take(self, event: Event, rebuilt: Rebuilt) -> list[tuple[str, str]]:
        """Take an event of a kind in ``TABLE_KINDS`` that ``rebuilt`` has applied already: what there is against it.

        Each fault is the name of a check in ``db.check.verify`` and a case in words.
        """
        gfn = event.addr >> PAGE_SHIFT
        if event.kind == Kind.PAGE:
            self._content(gfn, bytes(rebuilt.pages[gfn]))
            return []
        self._faults = []
        if event.kind == Kind.WRITE:
            self._store(event, rebuilt)
        else:
            self._load(event, rebuilt)
        if self._fresh:
            for stray in self._strays():
                self._faults.append(("linked", f"the content of page {stray:#x} comes, and nothing makes it a table"))
            self._fresh.clear()
        return self._faults

    def _strays(self) -> list[int]:
        """Frames whose content came and that no entry links yet. A difference of the two sets would take time for every watched page."""
        return sorted(gfn for gfn in self._fresh if gfn not in self._watched)

    def _content(self, gfn: int, content: bytes) -> None:
        page = self._watched.get(gfn)
        if page is None:
            self._fresh[gfn] = content
            return
        # Of a table that is linked it is where PAE's PDPTEs lie; of another what was found when it is linked again.
        self._change(page, 0, content)

    def _store(self, event: Event, rebuilt: Rebuilt) -> None:
        gfn, first = divmod(event.addr, PAGE_BYTES)
        page = self._watched.get(gfn)
        if page is None:
            # The gdb engine finds several stores at one stop.
            if gfn != self._last_retired:
                self._faults.append(("known-table", f"a store to {event.addr:#x} comes while its page is no table"))
            return
        self._last_retired = -1
        if page.roots and not page.loaded:
            expired, page.roots = page.roots, set()
            for table in sorted(expired):
                self._unlink(table)
        last = first + (event.flags & WRITE_SIZE)
        start, end = first & ~7, last + 7 & ~7
        self._change(page, start, bytes(rebuilt.pages.get(gfn, page.copy)[start:end]))
        if not page.links:
            page.left -= 1
            if page.left == 0:
                del self._watched[gfn]
                self._last_retired = gfn

    def _load(self, event: Event, rebuilt: Rebuilt) -> None:
        cpu = rebuilt.cpus[event.vcpu]
        if event.kind == Kind.REGS:
            self._set_pse(cpu.cr4 & CR4_PSE)
        now = [page for page in self._roots(event, cpu, rebuilt) if page is not None]
        for page in self._loaded.get(event.vcpu, ()):
            page.loaded -= 1
        self._loaded[event.vcpu] = now

    def _roots(self, event: Event, cpu: Cpu, rebuilt: Rebuilt) -> Iterator[_Watched | None]:
        for _, table in roots(rebuilt.memory, cpu.cr3, cpu.mode, cpu.pdptes):
            yield self._load_root(table)
        if event.kind == Kind.REGS and cpu.mode is Mode.PAE:
            self._fresh.pop(cpu.cr3 >> PAGE_SHIFT, None)
            # The recorder reads the PDPTEs again at a change of mode; what they were is not in the trace, but what they lead to is.
            for gfn in self._strays():
                yield self._load_root(Table(gfn, 2, 8))

    def _load_root(self, table: Table) -> _Watched | None:
        page = self._watched.get(table.gfn)
        if page is None or table not in page.roots:
            page = self._link(table)
            if page is None:
                return None
            page.roots.add(table)
        page.loaded += 1
        return page

    def _link(self, table: Table) -> _Watched | None:
        if table.gfn >= self._frames or table.gfn in _WINDOW:
            return None
        page = self._watched.get(table.gfn)
        if page is None:
            content = self._fresh.get(table.gfn)
            if content is None:
                case = f"page {table.gfn:#x} becomes a table of level {table.level} without its content"
                self._faults.append(("content-before-use", case))
            page = self._watched[table.gfn] = _Watched(bytearray(content or PAGE_BYTES))
        page.links[table] += 1
        if page.links[table] == 1:
            for child in self._children(table, page.copy):
                self._link(child)
        return page

    def _unlink(self, table: Table) -> None:
        page = self._watched.get(table.gfn)
        if page is None or table not in page.links:
            return
        page.links[table] -= 1
        if page.links[table]:
            return
        del page.links[table]
        for child in self._children(table, page.copy):
            self._unlink(child)
        if not page.links:
            page.left = self._linger

    def _change(self, page: _Watched, start: int, now: bytes) -> None:
        """Take bytes from ``start`` on into a page; links that come before those that go."""
        before, end = bytes(page.copy[start : start + len(now)]), start + len(now)
        page.copy[start:end] = now
        for table in [table for table in page.links if table.level > 1]:
            gone, come = Counter(self._children(table, before)), Counter(self._children(table, now))
            for child in (come - gone).elements():
                self._link(child)
            for child in (gone - come).elements():
                self._unlink(child)

    def _set_pse(self, pse: int) -> None:
        if pse == self._pse:
            return
        directories = [
            (table, page) for page in self._watched.values() for table in page.links if (table.level, table.entry_bytes) == (2, 4)
        ]
        for table, page in directories:
            for child in self._children(table, page.copy):
                self._unlink(child)
        self._pse = pse
        for table, page in directories:
            for child in self._children(table, page.copy):
                self._link(child)

    def _children(self, table: Table, words: bytes | bytearray) -> Iterator[Table]:
        """The tables that these bytes of a table link."""
        if table.level == 1:
            return
        width = table.entry_bytes
        mode = Mode.TWO_LEVEL if width == 4 else Mode.LA57
        for (entry,) in _WORD[width].iter_unpack(words):
            if entry & PRESENT and not is_big_page(entry, table.level, mode, self._pse):
                yield Table(child_gfn(entry, width), table.level - 1, width)
