"""Text logs of Linux's ``kvmmmu:*`` tracepoints, line by line: what a KVM that shadows a guest's page tables says it does.

Read are tracefs's own text (``cat /sys/kernel/tracing/trace``) and ``trace-cmd report -R``, which prints the fields of each event: as
a file, or from that program itself where a trace.dat is given.
Names of events and fields are the kernel's (arch/x86/kvm/mmu/mmutrace.h, Linux 6.1).
"""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from db.errors import UsageError, plainly
from db.exchange import tracecmd

#: Where the ``source`` of a recording says that the trace was made from such a log.
SOURCE = "kvmmmu"

#: No line of these tracepoints is longer; other events' may be, and are then cut.
_MAX_LINE = 4096

#: Guest frames end here.
_MAX_GFN = 1 << 40

_HINT = "docs/peers.md says which logs are read"

#: The events about one shadow page.
PAGE_EVENTS = ("kvm_mmu_get_page", "kvm_mmu_prepare_zap_page", "kvm_mmu_sync_page", "kvm_mmu_unsync_page")


class PageEvent(NamedTuple):
    """Something that was done to one shadow page; the role's fields are Linux 6.1's."""

    line: int
    thread: int
    """The host's thread, that is the vCPU, as its process id."""
    time: float
    """Seconds, by the host's trace clock."""
    name: str
    gfn: int
    level: int
    entry_bytes: int
    """4 or 8: the size of the guest's entries."""
    quadrant: int
    direct: bool
    access: str
    """Rights inherited from above, such as ``wux`` or ``-u-``."""
    invalid: bool
    """Zapped before, while it was a root in use."""
    root_count: int
    unsync: bool
    created: bool | None
    """Whether ``get_page`` made it; ``None`` for other events."""


class OtherEvent(NamedTuple):
    """Any other tracepoint: its name and text."""

    line: int
    thread: int
    time: float
    name: str
    text: str


class Lost(NamedTuple):
    """Events that the tracer says it lost."""

    line: int
    events: int


Record = PageEvent | OtherEvent | Lost

_LINE = re.compile(
    r"\s*(?P<task>.{1,64}?)-(?P<thread>\d{1,10})\s+(?:\(\s*[\d-]{1,10}\)\s+)?\[(?P<cpu>\d{1,6})\]"
    r"(?:\s+[^\s:]{4,8})?\s+(?P<time>\d{1,12}\.\d{1,9}):\s+(?:\w+:)?(?P<name>\w{1,64}):\s*(?P<text>.*)"
)
_SHADOW_PAGE = re.compile(
    r"sp gen \d{1,3} gfn (?P<gfn>[0-9a-f]{1,16}) l(?P<level>\d) (?P<bytes>[48])-byte q(?P<quadrant>[0-3])(?P<direct> direct)?"
    r" (?P<access>[w-][u-][x-])(?P<invalid> invalid)? !?nxe !?ad root (?P<root>\d{1,10}) (?P<unsync>unsync|sync)(?: (?P<made>new|existing))?\s*"
)
_FIELD = re.compile(r"(\w{1,32})=(0x[0-9a-fA-F]{1,16}|\d{1,20})(?=\s|$)")
_LOST = re.compile(r"CPU:\s*\d{1,6} \[(?:LOST )?(?P<count>\d{1,18})? ?EVENTS(?: DROPPED)?\]\s*")
_KEPT = re.compile(r"# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})\b")
_HEAD = re.compile(r"(?:#|version = \d|cpus=\d|CPU \d+ is empty)|\s*$")

#: The bits of ``role.access`` and its letters, in the kernel's order of printing.
_RIGHTS = ((2, "w"), (4, "u"), (1, "x"))


def is_log(path: Path) -> bool:
    """Whether a file begins like a text log of tracepoints, or like a trace.dat. A file that cannot be read does not."""
    if not path.is_file():
        return False
    try:
        if tracecmd.is_trace_dat(path):
            return True
        with _opened(path) as lines:
            first = lines.readline(_MAX_LINE)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return False
    return first.startswith(("# tracer:", "cpus=", "version =", "CPU ")) or _LINE.match(first) is not None


def _opened(path: Path) -> contextlib.AbstractContextManager[IO[str]]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def read(path: Path) -> Iterator[Record]:
    """The events of a log, in order: of a trace.dat, of text, or of gzip'ped text if the name ends in .gz.

    ``UsageError`` names the line that is wrong, or says why trace-cmd does not read it.
    """
    try:
        if tracecmd.is_trace_dat(path):
            yield from _of_trace_dat(path)
            return
        with _opened(path) as lines:
            yield from parse(lines, path.name)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {plainly(error)}", _HINT) from error


def _of_trace_dat(path: Path) -> Iterator[Record]:
    found = False
    with tracecmd.text_of(path) as lines:
        for record in parse(lines, path.name):
            found = True
            yield record
    if not found:
        raise UsageError(f"trace-cmd finds no event in {path}", tracecmd.HINT)


def parse(lines: IO[str], name: str) -> Iterator[Record]:
    """The events of a log's lines; ``name`` is for the error."""
    number = 0
    while text := lines.readline(_MAX_LINE):
        number += 1
        # The rest of a line that is too long is no line of its own.
        rest = text
        while len(rest) == _MAX_LINE and not rest.endswith("\n"):
            rest = lines.readline(_MAX_LINE)
        try:
            record = _record(text.rstrip("\n"), number)
        except ValueError as error:
            raise UsageError(f"{name}, line {number}: {error}", _HINT) from error
        if record is not None:
            yield record


def _record(text: str, number: int) -> Record | None:
    if kept := _KEPT.match(text):
        in_buffer, written = int(kept[1]), int(kept[2])
        return Lost(number, written - in_buffer) if written > in_buffer else None
    if lost := _LOST.fullmatch(text):
        return Lost(number, int(lost["count"] or 1))
    if _HEAD.match(text):
        return None
    line = _LINE.fullmatch(text)
    if line is None:
        raise ValueError("this is no line of a tracepoint log")
    thread, time = int(line["thread"]), float(line["time"])
    if line["name"] not in PAGE_EVENTS:
        return OtherEvent(number, thread, time, line["name"], line["text"])
    page = _page(number, thread, time, line["name"], line["text"])
    if not 1 <= page.level <= 5 or page.gfn >= _MAX_GFN:
        raise ValueError("there is no such shadow page")
    if (page.created is None) == (page.name == "kvm_mmu_get_page"):
        raise ValueError(f"new or existing is said of every {PAGE_EVENTS[0]}, and of nothing else")
    return page


def _page(number: int, thread: int, time: float, name: str, text: str) -> PageEvent:
    """The page in an event's text, as the kernel prints it or in raw fields."""
    shown = _SHADOW_PAGE.fullmatch(text)
    if shown is not None:
        return PageEvent(
            *(number, thread, time, name, int(shown["gfn"], 16), int(shown["level"]), int(shown["bytes"]), int(shown["quadrant"])),
            direct=bool(shown["direct"]),
            access=shown["access"],
            invalid=bool(shown["invalid"]),
            root_count=int(shown["root"]),
            unsync=shown["unsync"] == "unsync",
            created=None if shown["made"] is None else shown["made"] == "new",
        )
    fields = {field: int(value, 0) for field, value in _FIELD.findall(text)}
    missing = sorted({"gfn", "role", "root_count", "unsync"} - set(fields))
    if missing:
        raise ValueError(f"{name} is printed in a way that is not known" if len(missing) == 4 else f"{name} has no field {missing[0]!r}")
    role = fields["role"]
    return PageEvent(
        *(number, thread, time, name, fields["gfn"], role & 15, 4 if role >> 4 & 1 else 8, role >> 5 & 3),
        direct=bool(role >> 7 & 1),
        access="".join(letter if role >> 8 & bit else "-" for bit, letter in _RIGHTS),
        invalid=bool(role >> 11 & 1),
        root_count=fields["root_count"],
        unsync=bool(fields["unsync"]),
        created=bool(fields["created"]) if "created" in fields else None,
    )
