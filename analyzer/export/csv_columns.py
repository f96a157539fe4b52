"""Events as columns: the one set of names that CSV, Parquet and notebooks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from db.queries import Query
from db.trace import TraceReader
from x86.event import (
    ACCESS_FAULT,
    ACCESS_FETCH,
    ACCESS_USER,
    ACCESS_WRITE,
    MASK64,
    WRITE_SEEN_SHIFT,
    WRITE_SIZE,
    Kind,
    Seen,
    kind_name,
)

#: Every column, with what it holds; empty where the kind of event has none.
COLUMNS = {
    "seq": "number of the event",
    "vcpu": "which virtual CPU",
    "kind": "regs, cr3, write, page, access or invlpg",
    "addr": "the cr3 value, a physical address (write, page) or a virtual one (access, invlpg)",
    "value": "write: the bytes stored",
    "size": "write: how many bytes",
    "seen": "write: how it was seen, exact, net, snapshot or foreign",
    "write": "access: a store",
    "user": "access: by user code",
    "fetch": "access: of an instruction",
    "fault": "access: it ended in a guest page fault",
    "cr0": "regs: CR0, where it changed",
    "cr4": "regs: CR4, where it changed",
    "efer": "regs: EFER, where it changed",
    "pdpte0": "cr3 in PAE mode: the entries that the load read",
    "pdpte1": "",
    "pdpte2": "",
    "pdpte3": "",
    "words": "page: the words that are not zero, 2 bytes of index and 8 of word each, little-endian",
}

_SEEN = {int(seen): seen.name.lower() for seen in Seen}

#: Write, user, fetch and fault of an access, as CSV has them.
_TOUCH = [",".join(str(int(bool(flags & bit))) for bit in (ACCESS_WRITE, ACCESS_USER, ACCESS_FETCH, ACCESS_FAULT)) for flags in range(16)]

#: Lines that are handed over at once.
_LINES = 4096

_NO_EXTRA = ((None,) * 3, (None,) * 4, None)

Extra = tuple[tuple[int | None, ...], tuple[int | None, ...], bytes | None]


def extras(trace: TraceReader) -> Callable[[int], Extra]:
    """A function that gives registers, PDPTEs and words of an event."""
    found: dict[int, Extra] = {seq: (values, *_NO_EXTRA[1:]) for seq, values in trace.side("mode_registers").items()}
    found |= {seq: (_NO_EXTRA[0], entries, None) for seq, entries in trace.side("pdptes").items()}
    found |= {seq: (*_NO_EXTRA[:2], words) for seq, words in trace.contents().items()}
    return lambda seq: found.get(seq, _NO_EXTRA)


def csv(trace: TraceReader, query: Query) -> Iterator[str]:
    """The events of a query as CSV, in blocks of many lines after the header; addresses and values in hex. Nothing needs quotes."""
    extra = extras(trace)
    block = [",".join(COLUMNS) + "\n"]
    for seq, kind, vcpu, flags, addr, value in query.rows(trace):
        if kind == Kind.ACCESS:
            block.append(f"{seq},{vcpu},access,{addr & MASK64:#x},,,,{_TOUCH[flags & 15]},,,,,,,,\n")
        elif kind == Kind.WRITE:
            seen = _SEEN.get(flags >> WRITE_SEEN_SHIFT, "")
            block.append(f"{seq},{vcpu},write,{addr:#x},{value & MASK64:#x},{flags & WRITE_SIZE},{seen},,,,,,,,,,,,\n")
        else:
            registers, pdptes, words = extra(seq)
            numbers = ",".join("" if number is None else hex(number) for number in (*registers, *pdptes))
            where = "" if kind == Kind.REGS else hex(addr & MASK64)
            block.append(f"{seq},{vcpu},{kind_name(kind)},{where},,,,,,,,{numbers},{words.hex() if words else ''}\n")
        if len(block) >= _LINES:
            yield "".join(block)
            block.clear()
    yield "".join(block)
