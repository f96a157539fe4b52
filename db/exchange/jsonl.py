"""The interchange format: events as JSON Lines, in and out (docs/formats.md)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from db.errors import UsageError, plainly
from x86.event import (
    ACCESS_FAULT,
    ACCESS_FETCH,
    ACCESS_USER,
    ACCESS_WRITE,
    MASK64,
    MAX_GPA,
    MAX_VCPUS,
    WRITE_SIZE,
    Event,
    Kind,
    kind_name,
    pack_words,
    unpack_words,
)

_KEYS = {
    "regs": {"cr0", "cr4", "efer"},
    "cr3": {"value", "pdptes"},
    "write": {"gpa", "size", "value"},
    "page": {"gpa", "words", "size"},
    "access": {"va", "write", "user", "fetch", "fault"},
    "invlpg": {"va"},
}

#: No line of the format needs more: 512 words of content.
_MAX_LINE = 1 << 16


def read_jsonl(path: Path) -> Iterator[Event]:
    """The events of a file; gzip'ped if its name ends in .gz. ``UsageError`` names the line that is wrong."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            yield from parse(lines, str(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {plainly(error)}", "it must be JSON Lines, or that in gzip with the name .jsonl.gz"
        ) from error


def parse(lines: TextIO, name: str) -> Iterator[Event]:
    """The events of JSON Lines; ``name`` is for the error."""
    number = 0
    while line := lines.readline(_MAX_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            yield _event(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else plainly(error)
            raise UsageError(f"{name}, line {number}: {reason}", "docs/formats.md has the format") from error


def _event(line: dict[str, Any]) -> Event:
    if not isinstance(line, dict):
        raise ValueError("a line is one JSON object")
    name = line["ev"]
    if not isinstance(name, str) or name not in _KEYS:
        raise ValueError(f"there is no event {name!r}")
    unknown = sorted(set(line) - _KEYS[name] - {"ev", "vcpu"})
    if unknown:
        raise ValueError(f"{name!r} has no key {unknown[0]!r}")
    vcpu = _number(line.get("vcpu", 0), MAX_VCPUS - 1, "vcpu")
    if name == "regs":
        values = tuple(_number(line[key], MASK64, key) if key in line else None for key in ("cr0", "cr4", "efer"))
        return Event(Kind.REGS, vcpu, extra=values)
    if name == "cr3":
        given = line.get("pdptes")
        if given is not None and len(given) != 4:
            raise ValueError("pdptes are four")
        pdptes = None if given is None else tuple(_number(entry, MASK64, "pdptes") for entry in given)
        return Event(Kind.CR3, vcpu, addr=_number(line["value"], MASK64, "value"), extra=pdptes)
    if name == "write":
        size = _number(line["size"], 8, "size")
        if not size:
            raise ValueError("size is 1 to 8")
        return Event(Kind.WRITE, vcpu, size, _number(line["gpa"], MAX_GPA - 8, "gpa"), _number(line["value"], MASK64, "value"))
    if name == "page":
        gpa = _number(line["gpa"], MAX_GPA - 1, "gpa")
        return Event(Kind.PAGE, vcpu, addr=gpa & ~0xFFF, extra=pack_words(_words(line["words"], line.get("size", 8))))
    va = _number(line["va"], MASK64, "va")
    if name == "invlpg":
        return Event(Kind.INVLPG, vcpu, addr=va)
    bits = (("write", ACCESS_WRITE), ("user", ACCESS_USER), ("fetch", ACCESS_FETCH), ("fault", ACCESS_FAULT))
    flags = sum(bit for key, bit in bits if _number(line.get(key, 0), 1, key))
    return Event(Kind.ACCESS, vcpu, flags, va)


def _words(given: dict[str, Any], size: Any) -> list[tuple[int, int]]:
    """A page's 8-byte words by index, from words of 8 bytes or of 4."""
    if size not in (4, 8) or isinstance(size, bool):
        raise ValueError("the words of a page have a size of 4 or 8")
    most_index, most = 4096 // size - 1, (1 << 8 * size) - 1
    words: dict[int, int] = {}
    for key, word in given.items():
        index, value = _number(key if key.isdecimal() else None, most_index, "word index"), _number(word, most, "word")
        at, shift = divmod(8 * size * index, 64)
        words[at] = words.get(at, 0) | value << shift
    return sorted(words.items())


def _number(given: Any, most: int, name: str) -> int:
    if isinstance(given, str):
        try:
            number = int(given, 16) if given[:2] in ("0x", "0X") else int(given)
        except ValueError:
            raise ValueError(f"{name} is no number: {given[:40]!r}") from None
    elif isinstance(given, int) and not isinstance(given, bool):
        number = int(given)
    else:
        raise ValueError(f"{name} is no number")
    if not 0 <= number <= most:
        raise ValueError(f"{name} is not between 0 and {most:#x}")
    return number


def write_jsonl(events: Iterable[Event], out: TextIO) -> None:
    """Write events as JSON Lines. What the format has no word for (how a store was seen, a guest fault) is left out."""
    # json.dump would go through every value in Python.
    encode = json.JSONEncoder(separators=(",", ":")).encode
    out.writelines(f"{encode(_line(event))}\n" for event in events)


def _line(event: Event) -> dict[str, Any]:
    line: dict[str, Any] = {"ev": kind_name(event.kind)}
    if event.kind == Kind.REGS:
        values = event.extra or ()
        line |= {key: hex(value) for key, value in zip(("cr0", "cr4", "efer"), values, strict=False) if isinstance(value, int)}
    elif event.kind == Kind.CR3:
        line["value"] = hex(event.addr)
        if event.extra is not None:
            line["pdptes"] = [hex(entry) for entry in event.extra if entry is not None]
    elif event.kind == Kind.WRITE:
        line |= {"gpa": hex(event.addr), "size": event.flags & WRITE_SIZE, "value": hex(event.value)}
    elif event.kind == Kind.PAGE:
        words = unpack_words(event.extra if isinstance(event.extra, bytes) else b"")
        line |= {"gpa": hex(event.addr), "words": {str(index): hex(word) for index, word in words}}
    else:
        line["va"] = hex(event.addr)
        if event.kind == Kind.ACCESS:
            bits = (("write", ACCESS_WRITE), ("user", ACCESS_USER), ("fetch", ACCESS_FETCH))
            line |= {key: int(bool(event.flags & bit)) for key, bit in bits}
    if event.vcpu:
        line["vcpu"] = event.vcpu
    return line
