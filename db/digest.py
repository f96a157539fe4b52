"""One number for everything that a trace says happened: equal for recordings that are equal."""

from __future__ import annotations

import hashlib
import struct

from db.trace import TraceReader
from x86.event import Kind

_HEAD = struct.Struct("<BBHQQ")


def digest(trace: TraceReader) -> str:
    """SHA-256, in hex, over a trace's events in order with the rows that belong to them.

    Each event is 20 bytes, little-endian: kind, vCPU (1 each), flags (2), addr and value (8 each); then for registers and PDPTEs 9
    bytes each, 1 and the value, or zeros where a register keeps its own; for a page 2 bytes of length and its content as the file
    has it. When, where, by whom and with what it was recorded is not in it, nor marks, names and the console.
    """
    told = hashlib.sha256()
    for kind, vcpu, flags, addr, value, extra in trace.events():
        told.update(_HEAD.pack(kind, vcpu, flags, addr, value))
        if kind == Kind.PAGE and isinstance(extra, bytes):
            told.update(len(extra).to_bytes(2, "little") + extra)
        elif isinstance(extra, tuple):
            for number in extra:
                told.update(bytes(9) if number is None else b"\1" + number.to_bytes(8, "little"))
    return told.hexdigest()
