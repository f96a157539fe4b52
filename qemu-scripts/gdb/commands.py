"""What the recorder asks of the engine, as MI commands whose names begin with -shadowtrace-."""

from __future__ import annotations

import re

import gdb
from capture import Capture, Settings
from memory import FileRam, StubRam
from stream import Stream
from stub import Stub

_NUMBERS = {"rax": 0, "rcx": 2, "rdx": 3, "rsi": 4, "rdi": 5, "fs_base": 24, "gs_base": 25, "cr3": 29, "cr4": 30}


class _Engine:
    """The one capture of this gdb."""

    capture: Capture
    stub: Stub
    ram_bytes: int
    next_number = 1


class _Command(gdb.MICommand):
    """An MI command by a function that takes strings and gives a dictionary."""

    def __init__(self, name: str, function: object) -> None:
        super().__init__(f"-shadowtrace-{name}")
        self._function = function

    def invoke(self, arguments: list[str]) -> dict[str, object] | None:
        """Called by gdb."""
        return self._function(*arguments)


def _look(socket: str) -> dict[str, object]:
    stub = _Engine.stub = Stub(socket)
    size = _Engine.ram_bytes = int(re.search(r"base memory: (\d+)", stub.monitor("info memory_size_summary"))[1])
    return {"ram": str(size), "vcpus": str(stub.monitor("info cpus").count("CPU #")), "kvm": stub.monitor("info kvm")}


def _begin(stream: str, control: str, ram: str, exact: str, retire_after_stores: str, most: str) -> None:
    stub = _Engine.stub
    memory = FileRam(ram) if ram else StubRam(stub.read, stub.monitor, _Engine.ram_bytes)
    _Engine.capture = Capture(stub, memory, Stream(stream, control), Settings(exact == "1", int(retire_after_stores), int(most)))
    _Engine.capture.begin()


def _slice(seconds: str) -> dict[str, object]:
    reason, pc, number = _Engine.capture.run(float(seconds))
    capture = _Engine.capture
    return {"reason": reason, "pc": f"{pc:#x}", "number": str(number), "missed": str(capture.missed), "refused": str(capture.refused)}


def _stop(kind: str, va: str, size: str) -> dict[str, object]:
    number = _Engine.next_number
    _Engine.next_number += 1
    _Engine.capture.add_stop(number, int(kind), int(va, 16), int(size))
    return {"number": str(number)}


def _nostop(*numbers: str) -> None:
    for number in map(int, numbers):
        _Engine.capture.remove_stop(number)


def _register(name: str) -> dict[str, object]:
    return {"value": f"{_Engine.stub.register(_NUMBERS[name]):#x}"}


def _read(va: str, size: str) -> dict[str, object]:
    data = _Engine.stub.read(int(va, 16), int(size), False)
    return {"contents": data.hex() if data is not None else ""}


def _physical(gpa: str, size: str) -> dict[str, object]:
    data = _Engine.stub.read(int(gpa, 16), int(size), True)
    _Engine.stub.leave_virtual()
    return {"contents": data.hex() if data is not None else ""}


def _monitor(command: str) -> dict[str, object]:
    return {"text": _Engine.stub.monitor(command)}


def _finish() -> None:
    _Engine.capture.finish()


for _name, _function in (
    ("look", _look),
    ("begin", _begin),
    ("slice", _slice),
    ("stop", _stop),
    ("nostop", _nostop),
    ("register", _register),
    ("read", _read),
    ("physical", _physical),
    ("monitor", _monitor),
    ("finish", _finish),
):
    _Command(_name, _function)
