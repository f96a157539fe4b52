"""The TCG plugin: building it, its arguments, reading its stream."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from db.errors import ShadowtraceError
from db.trace import Row
from tracer import commandline, resources
from tracer.tasks import LEARNT, Layout, Named, TaskEvent, text
from x86.event import CR3_HAS_PDPTES, MAX_GPA, MAX_VCPUS, Kind, in_range, signed

CFLAGS = ("-std=c11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")

#: ``struct record`` of qemu-scripts/plugin/shadowtrace.h.
RECORD = np.dtype([("kind", "u1"), ("vcpu", "u1"), ("flags", "<u2"), ("seq", "<u4"), ("addr", "<u8"), ("value", "<u8")])
REC_NOTE, REC_EFER, REC_PDPTES, REC_WORDS, REC_PC, REC_DATA = 7, 16, 17, 18, 19, 20
WRITE_HAS_PC = 0x100
NO_WORD = 0xFFFF_FFFF
WORDS_OF_A_PAGE = 512

#: A page's words come two to a record.
_MOST_SIDES = WORDS_OF_A_PAGE // 2

#: The kind of side record that follows each kind of event, and a note; 0: none.
_SIDE_KIND = np.array([0, REC_EFER, REC_PDPTES, REC_PC, REC_WORDS, 0, 0, REC_DATA], np.uint8)

#: ``struct note`` of qemu-scripts/plugin/tasks.c, up to its data: the stack's bytes, then the strings'.
_NOTE = struct.Struct("<iIII16sQQ")

#: The flags that the file keeps; above are those that speak of side records.
_FLAGS = 0xFF

_CONTROL = struct.Struct("<17Q")
_EVERY_ACCESS = struct.Struct("<Q")
_BY_VCPU = struct.Struct("<64Q")
_BY_TLB = struct.Struct("<Q")
_STOP_RANGE, _STOP_COUNT = struct.Struct("<2Q"), struct.Struct("<Q")
#: Where these lie in the control page, one behind the other.
_EVERY_ACCESS_AT = _CONTROL.size
_BY_VCPU_AT = _EVERY_ACCESS_AT + _EVERY_ACCESS.size
_BY_TLB_AT = _BY_VCPU_AT + _BY_VCPU.size
_STOP_RANGE_AT = _BY_TLB_AT + _BY_TLB.size
_STOP_COUNT_AT = _STOP_RANGE_AT + _STOP_RANGE.size
_FUNCTIONS, _FIELDS, _WORD = struct.Struct("<4Q"), struct.Struct("<6Q"), struct.Struct("<Q")
_FUNCTIONS_AT = _STOP_COUNT_AT + _STOP_COUNT.size
_FIELDS_AT = _FUNCTIONS_AT + _FUNCTIONS.size
_FIELDS_KNOWN_AT = _FIELDS_AT + _FIELDS.size
_NOTES_DROPPED_AT = _FIELDS_KNOWN_AT + _WORD.size
_CONTROL_MAGIC = 0x5368547230303031
CONTROL_BYTES = 4096


def build(folder: Path | None = None) -> Path:
    """Compile the plugin, unless this very source is compiled already; the path of the shared object.

    Raises ``ShadowtraceError`` where there is no C compiler or it fails.
    """
    source = resources.scripts() / "plugin"
    files = sorted(source.glob("*.[ch]"))
    digest = hashlib.sha256(" ".join(CFLAGS).encode())
    for file in files:
        digest.update(file.read_bytes())
    target = (folder or resources.cache("plugin")) / f"shadowtrace-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    compiler = shutil.which("cc")
    if compiler is None:
        raise ShadowtraceError("there is no C compiler (cc) to build the capture plugin with", "apt-get install gcc libc6-dev")
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    command = [compiler, *CFLAGS, "-o", str(partial), *(str(file) for file in files if file.suffix == ".c"), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ShadowtraceError(f"the capture plugin does not compile: {done.stderr.strip()[-2000:]}", "apt-get install gcc libc6-dev")
    partial.replace(target)
    return target


@dataclass(frozen=True)
class ControlPage:
    """What the plugin says of itself while it runs, from the shared page."""

    events: int
    dropped: int
    tables: int
    tables_peak: int
    tables_refused: int
    page_faults: int
    api: int
    closed: bool
    by_kind: tuple[int, ...]
    by_vcpu: tuple[int, ...]
    by_tlb: bool
    """Whether loads and stores are told by QEMU's own TLB, not by callbacks."""
    notes_dropped: int
    """Names and ends of address spaces that there was no room for."""


def read_control(page: mmap.mmap) -> ControlPage:
    """The control page as it is now; all zero before the plugin is loaded."""
    magic, events, dropped, tables, peak, refused, faults, api, closed, *by_kind = _CONTROL.unpack_from(page)
    if magic not in (0, _CONTROL_MAGIC):
        raise ShadowtraceError("the capture plugin's control page makes no sense", "this is a defect of shadowtrace")
    by_vcpu = _BY_VCPU.unpack_from(page, _BY_VCPU_AT)
    (by_tlb,) = _BY_TLB.unpack_from(page, _BY_TLB_AT)
    (notes_dropped,) = _WORD.unpack_from(page, _NOTES_DROPPED_AT)
    return ControlPage(
        events, dropped, tables, peak, refused, faults, api, bool(closed), tuple(by_kind), by_vcpu, bool(by_tlb), notes_dropped
    )


def record_every_access(page: mmap.mmap) -> None:
    """Have the plugin record each access from now on, not first touches alone."""
    _EVERY_ACCESS.pack_into(page, _EVERY_ACCESS_AT, 1)


def stop_at(page: mmap.mmap, addresses: range) -> None:
    """Have the plugin have gdb stop where a block of code begins at one of these virtual addresses, once; nowhere where there are none."""
    _STOP_COUNT.pack_into(page, _STOP_COUNT_AT, 0)
    _STOP_RANGE.pack_into(page, _STOP_RANGE_AT, addresses.start, addresses.step)
    _STOP_COUNT.pack_into(page, _STOP_COUNT_AT, len(addresses))


def watch_tasks(page: mmap.mmap, layout: Layout, begun: bool) -> None:
    """Have the plugin instrument the kernel's functions where tasks are executed, forked and freed, before their code is translated.

    It notes what they do once they have ``begun``, when ``layout`` has where a task's address space is kept.
    """
    _FUNCTIONS.pack_into(page, _FUNCTIONS_AT, *layout.functions)
    _FIELDS.pack_into(page, _FIELDS_AT, layout.bits, layout.current_task, layout.pid, layout.comm, layout.mm, layout.pgd)
    _WORD.pack_into(page, _FIELDS_KNOWN_AT, int(begun))


class Gap(NamedTuple):
    """Events that are missing: whose, the position in the file before them, the vCPU's own number of the first, how many."""

    vcpu: int
    seq: int
    first: int
    missing: int


@dataclass(frozen=True)
class Batch:
    """Whole events as rows of the trace file, with the rows that belong to them, and gaps."""

    columns: tuple[list[int], ...]
    """Of the event rows: seq, kind, vcpu, flags, addr, value."""
    registers: list[tuple[Any, ...]]
    pdptes: list[tuple[Any, ...]]
    contents: list[tuple[Any, ...]]
    origins: list[tuple[int, int]]
    gaps: list[Gap]
    names: list[tuple[int, Named]]
    """What became of address spaces, behind the last event before it."""

    def rows(self) -> Iterator[Row]:
        """The event rows, one by one."""
        return zip(*self.columns, strict=True)


class StreamParser:
    """The plugin's byte stream in, batches of whole events out; it numbers events and notices gaps."""

    def __init__(self) -> None:
        self._pending = b""
        self._seq = 0
        self._next_of_vcpu: dict[int, int] = {}

    @property
    def left_over(self) -> int:
        """Bytes that have come and are no whole event."""
        return len(self._pending)

    def feed(self, data: bytes) -> Batch:
        """Take more of the stream. Raises ``ShadowtraceError`` where it is not what the plugin writes."""
        self._pending += data
        records = np.frombuffer(self._pending, RECORD, len(self._pending) // RECORD.itemsize)
        whole = _whole_events(records)
        taken = records[:whole].copy()
        del records
        self._pending = self._pending[whole * RECORD.itemsize :]
        return self._batch(*self._without_notes(taken))

    def _without_notes(self, records: NDArray[np.void]) -> tuple[NDArray[np.void], list[tuple[int, Named]]]:
        kinds = records["kind"]
        notes = np.flatnonzero(kinds == REC_NOTE)
        if not len(notes):
            return records, []
        before = self._seq + np.cumsum(kinds <= Kind.INVLPG)[notes]
        names = []
        for seq, at in zip(before.tolist(), notes.tolist(), strict=True):
            data = records[at + 1 : at + 1 + int(records[at]["value"])]
            named = _named(records[at], np.stack((data["addr"], data["value"]), axis=1).tobytes())
            names.append((seq, named))
        return records[(kinds != REC_NOTE) & (kinds != REC_DATA)], names

    def _batch(self, records: NDArray[np.void], names: list[tuple[int, Named]]) -> Batch:
        main = records["kind"] <= Kind.INVLPG
        events = records[main]
        gaps = self._gaps(events)
        seqs = np.arange(self._seq + 1, self._seq + 1 + len(events))
        flags = np.where(events["kind"] == Kind.CR3, events["flags"] & CR3_HAS_PDPTES, events["flags"] & _FLAGS)
        no_value = (events["kind"] == Kind.PAGE) | (events["kind"] == Kind.REGS)
        value = np.where(no_value, 0, events["value"]).view(np.int64)
        addr = np.where(events["kind"] == Kind.REGS, 0, events["addr"]).view(np.int64)
        columns = tuple(column.tolist() for column in (seqs, events["kind"], events["vcpu"], flags, addr, value))
        registers, pdptes, contents = self._sides(records, main)
        origins = self._origins(records, main)
        self._seq += len(events)
        return Batch(columns, registers, pdptes, contents, origins, gaps, names)

    def gap_at_end(self, by_vcpu: Sequence[int]) -> list[Gap]:
        """What is missing when the stream has ended, by the number of events that each vCPU had."""
        known = [(vcpu, self._next_of_vcpu.get(vcpu, 0), total) for vcpu, total in enumerate(by_vcpu)]
        return [Gap(vcpu, self._seq, first, total - first) for vcpu, first, total in known if total > first]

    def _gaps(self, events: NDArray[np.void]) -> list[Gap]:
        """Numbers that are missing among a vCPU's events. The stream has their lower 32 bits."""
        gaps = []
        for vcpu in np.unique(events["vcpu"]).tolist():
            where = np.flatnonzero(events["vcpu"] == vcpu)
            numbers = events["seq"][where].astype(np.int64)
            first = self._next_of_vcpu.get(vcpu, 0)
            missing = np.diff(numbers, prepend=first - 1) - 1 & 0xFFFF_FFFF
            before = first + np.cumsum(missing) + np.arange(len(numbers))
            for at in np.flatnonzero(missing).tolist():
                count = int(missing[at])
                gaps.append(Gap(vcpu, self._seq + int(where[at]), int(before[at]) - count, count))
            self._next_of_vcpu[vcpu] = int(before[-1]) + 1
        return gaps

    def _origins(self, records: NDArray[np.void], main: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """For each store that says so: its number, and where the instruction that made it is."""
        stores = np.flatnonzero(main & (records["kind"] == Kind.WRITE) & (records["flags"] & WRITE_HAS_PC != 0))
        seqs = self._seq + np.cumsum(main)[stores]
        return list(zip(seqs.tolist(), records["addr"][stores + 1].view(np.int64).tolist(), strict=True))

    def _sides(self, records: NDArray[np.void], main: NDArray[np.bool_]) -> tuple[list[Any], list[Any], list[Any]]:
        registers, pdptes, contents = [], [], []
        number = self._seq + np.cumsum(main)
        kinds = records["kind"]
        with_pdptes = (kinds == Kind.CR3) & (records["flags"] & CR3_HAS_PDPTES != 0)
        for at in np.flatnonzero((kinds == Kind.REGS) | (kinds == Kind.PAGE) | with_pdptes).tolist():
            event = records[at]
            seq = int(number[at])
            if event["kind"] == Kind.REGS:
                values = (event["addr"], event["value"], records[at + 1]["addr"])
                registers.append((seq, *(signed(int(value)) for value in values)))
            elif event["kind"] == Kind.PAGE:
                contents.append((seq, _words(records[at + 1 : at + 1 + int(event["value"])])))
            else:
                values = tuple(records[at + 1 + i // 2][("addr", "value")[i % 2]] for i in range(4))
                pdptes.append((seq, *(signed(int(value)) for value in values)))
        return registers, pdptes, contents


def _whole_events(records: NDArray[np.void]) -> int:
    """How many records from the start make whole events: the last one's side records may still be on their way.

    Raises ``ShadowtraceError`` where an event has not the side records of its kind, or a column is out of range: what comes from a
    process that a guest may have broken is not believed.
    """
    if not len(records):
        return 0
    kinds = records["kind"]
    mains = np.flatnonzero(kinds <= REC_NOTE)
    if not len(mains) or mains[0] != 0:
        raise _nonsense()
    events = records[mains]
    wanted = _sides_wanted(events)
    followed = np.diff(np.append(mains, len(records))) - 1
    whole = len(mains) if followed[-1] >= wanted[-1] else len(mains) - 1
    sides = records[kinds > REC_NOTE]
    belongs_to = np.repeat(events["kind"], followed)
    if (
        np.any(kinds == 0)
        or np.any(events["vcpu"] >= MAX_VCPUS)
        or np.any(wanted > _MOST_SIDES)
        or np.any(followed[:whole] != wanted[:whole])
        or np.any(_SIDE_KIND[belongs_to] != sides["kind"])
        or not _in_range(events, sides)
    ):
        raise _nonsense()
    return int(mains[-1]) if whole < len(mains) else len(records)


def _sides_wanted(events: NDArray[np.void]) -> NDArray[np.uint64]:
    """Side records that each event is followed by."""
    wanted = np.zeros(len(events), np.uint64)
    wanted[events["kind"] == Kind.REGS] = 1
    wanted[(events["kind"] == Kind.CR3) & (events["flags"] & CR3_HAS_PDPTES != 0)] = 2
    wanted[(events["kind"] == Kind.WRITE) & (events["flags"] & WRITE_HAS_PC != 0)] = 1
    several = (events["kind"] == Kind.PAGE) | (events["kind"] == REC_NOTE)
    wanted[several] = events["value"][several]
    return wanted


def _in_range(events: NDArray[np.void], sides: NDArray[np.void]) -> bool:
    """Whether events are what the file may hold, notes what can be read, and words lie within their page."""
    words, is_note = sides[sides["kind"] == REC_WORDS], events["kind"] == REC_NOTE
    notes, real = events[is_note], events[~is_note]
    return bool(
        np.all(notes["flags"] < len(TaskEvent))
        and np.all(notes["addr"] < MAX_GPA)
        and np.all(in_range(*(real[column] for column in ("kind", "vcpu", "flags", "addr"))))
        and np.all(words["flags"] < WORDS_OF_A_PAGE)
        and np.all((words["seq"] < WORDS_OF_A_PAGE) | (words["seq"] == NO_WORD))
    )


def _named(note: np.void, data: bytes) -> Named:
    """What a note says; nothing but the root where it has no more."""
    learnt, root = LEARNT[TaskEvent(int(note["flags"]))], int(note["addr"])
    if len(data) < _NOTE.size:
        return Named(root, learnt)
    pid, sp_bytes, text_bytes, word, comm, sp, text_va = _NOTE.unpack_from(data)
    stack = data[_NOTE.size : _NOTE.size + sp_bytes]
    strings = data[_NOTE.size + sp_bytes : _NOTE.size + sp_bytes + text_bytes]

    def read(address: int, size: int) -> bytes | None:
        for start, kept in ((sp, stack), (text_va, strings)):
            if address - start >= 0 and address - start + size <= len(kept):
                return kept[address - start : address - start + size]
        return None

    return Named(root, learnt, pid, text(comm), commandline.arguments(read, sp, word) if word in (4, 8) else None)


def _nonsense() -> ShadowtraceError:
    return ShadowtraceError(
        "the capture plugin's stream makes no sense", "did the guest break QEMU? if not, this is a defect of shadowtrace"
    )


def _words(sides: NDArray[np.void]) -> bytes:
    """A page's content as the file holds it: (2 bytes of index, 8 of word) for each word that is not zero."""
    out = np.empty(2 * len(sides), np.dtype([("index", "<u2"), ("word", "<u8")]))
    out["index"][0::2], out["word"][0::2] = sides["flags"], sides["addr"]
    second = sides["seq"] != NO_WORD
    out["index"][1::2], out["word"][1::2] = np.where(second, sides["seq"], 0), sides["value"]
    keep = np.ones(len(out), bool)
    keep[1::2] = second
    return out[keep].tobytes()


def arguments(plugin: Path, **values: int) -> str:
    """The value of QEMU's ``-plugin`` option."""
    return ",".join((str(plugin).replace(",", ",,"), *(f"{name}={value}" for name, value in values.items())))
