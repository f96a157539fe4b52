"""Which frames are page tables: the rules of qemu-scripts/plugin/tables.c, and what they map.

A frame becomes a table when a walk from a loaded root reaches it; its content is recorded then. Links are counted for each
(frame, kind). A root stays linked until the first store to it while it is not loaded. After its last link a table is watched for
``retire_after_stores`` more stores. Beside that, each table knows its bases: the virtual addresses from which it translates, under any root,
each with the number of ways that lead there; leaves become mappings, which is where stores are watched for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from mappings import EXECUTABLE, WHOLE_PAGE, Mappings
from memory import PAGE, Ram, in_ram
from stream import SEEN_EXACT, WRITE, Stream

L1, L2, L3, L4, L5, L1_32, L2_32 = range(7)
KINDS = 7

PRESENT, ACCESSED, BIG, NX = 1, 1 << 5, 1 << 7, 1 << 63
BASE64, BASE32 = 0x000F_FFFF_FFFF_F000, 0xFFFF_F000
_WALKER64 = int.from_bytes((0x60).to_bytes(8, "little") * 512, "little")
_WALKER32 = int.from_bytes((0x60).to_bytes(4, "little") * 1024, "little")
_WHOLE = (1 << 8 * PAGE) - 1
_WORDS64, _WORDS32 = struct.Struct("<512Q"), struct.Struct("<1024I")

#: Virtual pages (as a power of two) that an entry of each kind covers.
_SHIFTS = (12, 21, 30, 39, 48, 12, 22)

Changes = list[tuple[int, int]]
"""Places in a page: (offset, bytes)."""


class Table:
    """One tracked frame."""

    __slots__ = ("bases", "copy", "gfn", "links", "loaded", "roots", "stores_left", "wide")

    def __init__(self, gfn: int) -> None:
        self.gfn = gfn
        self.copy = bytearray(PAGE)
        self.links = [0] * KINDS
        self.bases: list[dict[int, int]] = [{} for _ in range(KINDS)]
        self.roots: dict[int, set[int]] = {}
        """Kinds linked as a root, with the bases they are used at: PAE has four roots at once."""
        self.loaded = 0
        self.stores_left = 0
        self.wide = True
        """Whether its entries, as it was last linked, have 8 bytes."""

    @property
    def linked(self) -> bool:
        """Whether any link is left."""
        return any(self.links)


class Tables:
    """All tracked tables. ``watch``: whether stores to them are watched for, or only looked for at stops."""

    def __init__(self, ram: Ram, stream: Stream, mappings: Mappings, retire_after_stores: int, most: int, watch: bool) -> None:
        self._ram, self._stream, self._mappings = ram, stream, mappings
        self._retire_after_stores, self._most, self._watch = retire_after_stores, most, watch
        self._frames = ram.size // PAGE
        self._pse = False
        self.by_frame: dict[int, Table] = {}
        self.long_mode = False

    # -- links ---------------------------------------------------------------------------------------------------------

    def load_root(self, gfn: int, kind: int, base: int) -> Table | None:
        """A root is loaded: the tables it reaches are tracked."""
        if not in_ram(self._ram, gfn * PAGE, PAGE):
            return None
        table = self.by_frame.get(gfn)
        if table is None or kind not in table.roots:
            self._link(gfn, kind)
            table = self.by_frame.get(gfn)
            if table is None:
                return None
            table.roots[kind] = set()
        if base not in table.roots[kind]:
            table.roots[kind].add(base)
            self._add_base(table, kind, base)
        table.loaded += 1
        return table

    def unload_root(self, table: Table) -> None:
        """It is no longer loaded; it stays linked."""
        table.loaded -= 1

    def rest(self, table: Table) -> None:
        """A root that stays linked is not expected to translate soon: forget what it maps, until it is loaded again."""
        for kind, bases in table.roots.items():
            for base in bases:
                self._drop_base(table, kind, base)
            table.roots[kind] = set()

    def set_pse(self, on: bool) -> None:
        """CR4.PSE decides whether bit 7 of a two-level directory's entry makes it a big page."""
        if on == self._pse:
            return
        directories = [table for table in self.by_frame.values() if table.links[L2_32]]
        for table in directories:
            for base in table.bases[L2_32]:
                self._spread(table, L2_32, base, self._drop_base, self._mappings.drop)
            self._for_children(table, L2_32, self._unlink)
        self._pse = on
        for table in directories:
            self._for_children(table, L2_32, self._link)
            for base in table.bases[L2_32]:
                self._spread(table, L2_32, base, self._add_base, self._mappings.add)

    def _track(self, gfn: int) -> Table | None:
        stream = self._stream
        if len(self.by_frame) >= self._most:
            stream.refused += 1
            return None
        table = Table(gfn)
        self.by_frame[gfn] = table
        stream.tables = len(self.by_frame)
        stream.peak = max(stream.peak, stream.tables)
        table.copy[:] = self._ram.read(gfn * PAGE, PAGE)
        stream.content(gfn, bytes(table.copy))
        if self._watch:
            self._mappings.want(gfn, WHOLE_PAGE)
        return table

    def _retire(self, table: Table) -> None:
        del self.by_frame[table.gfn]
        self._stream.tables = len(self.by_frame)
        self._mappings.forget(table.gfn, WHOLE_PAGE)

    def _look_again(self, table: Table) -> None:
        """A page that is linked again: a device may have written to it meanwhile."""
        now = self._ram.read(table.gfn * PAGE, PAGE)
        if (int.from_bytes(now, "little") ^ int.from_bytes(table.copy, "little")) & ~_WALKER32 & _WHOLE:
            table.copy[:] = now
            self._stream.content(table.gfn, now)

    def _link(self, gfn: int, kind: int) -> None:
        if not in_ram(self._ram, gfn * PAGE, PAGE):
            return
        table = self.by_frame.get(gfn)
        if table is None:
            table = self._track(gfn)
            if table is None:
                return
        elif not table.linked:
            self._look_again(table)
        table.wide = kind < L1_32
        table.links[kind] += 1
        if table.links[kind] == 1:
            self._for_children(table, kind, self._link)

    def _unlink(self, gfn: int, kind: int) -> None:
        table = self.by_frame.get(gfn)
        if table is None or not table.links[kind]:
            return
        table.links[kind] -= 1
        if table.links[kind]:
            return
        self._for_children(table, kind, self._unlink)
        if not table.linked:
            table.stores_left = self._retire_after_stores

    def _for_children(self, table: Table, kind: int, act: Callable[[int, int], None]) -> None:
        if kind in (L1, L1_32):
            return
        for entry in _entries(table.copy, kind):
            child = self._child(kind, entry) if entry & PRESENT else None
            if child is not None:
                act(child, kind - 1)

    def _child(self, kind: int, entry: int) -> int | None:
        """The frame of the table that an entry links, if it does."""
        if not entry & PRESENT or kind in (L1, L1_32) or self._is_big(kind, entry):
            return None
        return (entry & (BASE64 if kind < L1_32 else BASE32)) >> 12

    def _is_big(self, kind: int, entry: int) -> bool:
        return bool(entry & BIG) and (kind in (L2, L3) or (kind == L2_32 and self._pse))

    def _expire_root(self, table: Table) -> None:
        roots, table.roots = table.roots, {}
        for kind in sorted(roots):
            for base in roots[kind]:
                self._drop_base(table, kind, base)
            self._unlink(table.gfn, kind)

    # -- bases ---------------------------------------------------------------------------------------------------------

    def _add_base(self, table: Table, kind: int, base: int) -> None:
        count = table.bases[kind].get(base, 0)
        table.bases[kind][base] = count + 1
        if not count:
            self._spread(table, kind, base, self._add_base, self._mappings.add)

    def _drop_base(self, table: Table, kind: int, base: int) -> None:
        count = table.bases[kind].get(base, 0)
        if count > 1:
            table.bases[kind][base] = count - 1
        elif count:
            del table.bases[kind][base]
            self._spread(table, kind, base, self._drop_base, self._mappings.drop)

    def _spread(
        self, table: Table, kind: int, base: int, on_table: Callable[[Table, int, int], None], on_leaf: Callable[[int, int, int], None]
    ) -> None:
        """Tell everything below a table that it can (or can no longer) be reached by one more address."""
        shift = _SHIFTS[kind]
        for index, entry in enumerate(_entries(table.copy, kind)):
            if entry & PRESENT:
                self._tell(kind, entry, base + (index << shift), on_table, on_leaf)

    def _tell(
        self, kind: int, entry: int, va: int, on_table: Callable[[Table, int, int], None], on_leaf: Callable[[int, int, int], None]
    ) -> None:
        child = self._child(kind, entry)
        if child is not None:
            below = self.by_frame.get(child)
            if below is not None:
                on_table(below, kind - 1, va)
            return
        leaf = self._leaf(kind, entry)
        if leaf is not None:
            on_leaf(va | leaf[2], leaf[0], leaf[1])

    def _leaf(self, kind: int, entry: int) -> tuple[int, int, int] | None:
        """What an entry maps: (first frame, frames, EXECUTABLE or 0), within RAM."""
        if not entry & PRESENT or not (kind in (L1, L1_32) or self._is_big(kind, entry)):
            return None
        frames = 1 << _SHIFTS[kind] - 12
        gfn = (entry & (BASE64 if kind < L1_32 else BASE32)) >> 12 & ~(frames - 1)
        if gfn >= self._frames:
            return None
        return gfn, frames, 0 if kind < L1_32 and entry & NX else EXECUTABLE

    # -- stores --------------------------------------------------------------------------------------------------------

    def changes(self, table: Table) -> Changes:
        """Where a page differs from what the stream has said, accessed and dirty bits aside: whole entries.

        Code with 4-byte registers writes wide entries in halves, and each half is a store.
        """
        walker = _WALKER64 if table.wide else _WALKER32
        now = int.from_bytes(self._ram.read(table.gfn * PAGE, PAGE), "little")
        differ = (now ^ int.from_bytes(table.copy, "little")) & ~walker & _WHOLE
        width = 8 if table.wide and self.long_mode else 4
        found: Changes = []
        while differ:
            offset = ((differ & -differ).bit_length() - 1) // 8 & -width
            found.append((offset, width))
            differ &= ~((1 << 8 * (offset + width)) - 1)
        return found

    def store(self, table: Table, changes: Changes, seen: int = SEEN_EXACT) -> None:
        """A store came to a tracked page, and changed this much of it; nothing, where it stored what was there."""
        if table.roots and not table.loaded:
            self._expire_root(table)
        page = self._ram.read(table.gfn * PAGE, PAGE)
        for offset, size in changes:
            self._relink(table, page, offset, size)
            value = int.from_bytes(page[offset : offset + size], "little")
            self._stream.event(WRITE, size | seen << 4, table.gfn * PAGE + offset, value)
        if not table.linked:
            table.stores_left -= max(1, len(changes))
            if table.stores_left <= 0:
                self._retire(table)

    def take_pdpt(self, gpa: int, pdptes: tuple[int, ...]) -> None:
        """The content of the page where PAE's PDPTEs lie, as a processor takes them, though it is no table."""
        gfn, start = divmod(gpa, PAGE)
        page = self._ram.read(gfn * PAGE, PAGE)
        table = self.by_frame.get(gfn)
        if table is not None:
            for offset in range(0, PAGE, 8):
                self._relink(table, page, offset, 8)
        four = b"".join(entry.to_bytes(8, "little") for entry in pdptes)
        self._stream.content(gfn, page[:start] + four + page[start + len(four) :])

    def _relink(self, table: Table, page: bytes, offset: int, size: int) -> None:
        """Take some bytes into the table's copy and follow the links and mappings they gain and lose: gains first."""
        start, end = offset & ~7, offset + size + 7 & ~7
        before = bytes(table.copy[start:end])
        table.copy[start:end] = page[start:end]
        after = page[start:end]
        for kind in range(KINDS):
            if not table.links[kind]:
                continue
            width = 4 if kind >= L1_32 else 8
            pairs = [
                ((start + at) // width, int.from_bytes(before[at : at + width], "little"), int.from_bytes(after[at : at + width], "little"))
                for at in range(0, end - start, width)
            ]
            for index, old, new in pairs:
                self._gain(table, kind, index, old, new)
            for index, old, new in pairs:
                self._lose(table, kind, index, old, new)

    def _gain(self, table: Table, kind: int, index: int, old: int, new: int) -> None:
        child, leaf = self._child(kind, new), self._leaf(kind, new)
        if child is not None and child != self._child(kind, old):
            self._link(child, kind - 1)
        elif leaf is None or leaf == self._leaf(kind, old):
            return
        for base in tuple(table.bases[kind]):
            self._tell(kind, new, base + (index << _SHIFTS[kind]), self._add_base, self._mappings.add)

    def _lose(self, table: Table, kind: int, index: int, old: int, new: int) -> None:
        child, leaf = self._child(kind, old), self._leaf(kind, old)
        if child is None and (leaf is None or leaf == self._leaf(kind, new)):
            return
        if child is not None and child == self._child(kind, new):
            return
        for base in tuple(table.bases[kind]):
            self._tell(kind, old, base + (index << _SHIFTS[kind]), self._drop_base, self._mappings.drop)
        if child is not None:
            self._unlink(child, kind - 1)


def _entries(page: bytearray, kind: int) -> Iterator[int]:
    return iter((_WORDS32 if kind >= L1_32 else _WORDS64).unpack(page))
