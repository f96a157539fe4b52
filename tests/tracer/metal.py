"""Bare-metal guests of the tests: assembled from tests/tracer/metal, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracer.images import assemble
from tracer.record import record
from tracer.request import Outcome, Request

SOURCES = Path(__file__).with_name("metal")


def arguments(name: str, folder: Path, *more: str, sources: Path = SOURCES) -> list[str]:
    """QEMU's arguments for the guest of this name."""
    firmware = folder / f"{name}.bin"
    assemble(sources / f"{name}.S", firmware)
    common = ("-M", "pc", "-cpu", "qemu64", "-nodefaults", "-display", "none", "-no-reboot", "-bios", str(firmware))
    return [*common, "-device", "isa-debug-exit,iobase=0xf4,iosize=1", *more]


def recorded(name: str, folder: Path, *more: str, sources: Path = SOURCES, **request: Any) -> tuple[Path, Outcome]:
    """The trace of that guest, and how its recording ended; 16 MiB unless ``more`` says otherwise."""
    trace = folder / f"{name}.db"
    more = more if "-m" in more else ("-m", "16M", *more)
    return trace, record(
        Request(trace, arguments=arguments(name, folder, *more, sources=sources), version="test", **{"seconds": 60, **request})
    )
