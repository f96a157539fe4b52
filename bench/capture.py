"""What capture costs: CPU time of QEMU with the plugin against plain TCG, medians of interleaved boots.

Every variant gets the same arguments; what the plugin writes is read and thrown away by this process, whose time does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from tracer import guest, plugin, qemu

#: What is compared: the plugin's first-touch entries, or no plugin at all.
VARIANTS: dict[str, int | None] = {"plain": None, "tables": 0, "first": 1024}

#: What the ratios must not exceed.
BARS = {"tables": 1.15, "first": 1.5}

_SECONDS = 900

#: What the guests' init says when it is done.
_FINISHED = b" processes"


@dataclass(frozen=True)
class Boot:
    """One boot: CPU seconds of QEMU, bytes that the plugin wrote, these bytes where they were to be kept."""

    seconds: float
    written: int
    stream: bytes = b""


def boot(
    recipe: guest.Guest, touch_entries: int | None, object_path: Path, keep: bool = False, environment: Mapping[str, str] | None = None
) -> Boot:
    """Run a guest to its power-off. Raises ``RuntimeError`` where QEMU fails."""
    arguments = recipe.arguments(recipe.images())
    size = qemu.ram_bytes(arguments)
    ram, control = (os.memfd_create(name) for name in ("ram", "control"))
    os.ftruncate(ram, size)
    os.ftruncate(control, plugin.CONTROL_BYTES)
    stream, stream_end = os.pipe()
    command = [
        qemu.find_qemu(None),
        *("-object", f"memory-backend-file,id=ram,size={size},share=on,mem-path=/proc/self/fd/{ram}"),
        *arguments,
        *("-machine", "memory-backend=ram", "-accel", "tcg", "-nic", "none", "-no-reboot"),
    ]
    if touch_entries is not None:
        values = {"stream": stream_end, "control": control, "ram": ram, "ram_bytes": size, "touch": touch_entries}
        command += ["-plugin", plugin.arguments(object_path, **values)]
    reader = _Drain(stream, keep)
    console = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=console, pass_fds=(ram, control, stream_end), env={**os.environ, **(environment or {})}
    )
    os.close(stream_end)
    reader.start()
    watchdog = threading.Timer(_SECONDS, process.kill)
    watchdog.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watchdog.cancel()
    reader.join()
    for descriptor in (ram, control, stream):
        os.close(descriptor)
    console.seek(0)
    said = console.read()
    console.close()
    if process.returncode or _FINISHED not in said:
        raise RuntimeError(f"QEMU ended with status {process.returncode}, the guest's last words are {said[-200:]!r}")
    return Boot(usage.ru_utime + usage.ru_stime, reader.taken, b"".join(reader.kept))


def kept_stream(recipe: guest.Guest) -> bytes:
    """What the plugin writes during one boot, with first touches."""
    return boot(recipe, VARIANTS["first"], plugin.build(), keep=True).stream


class _Drain(threading.Thread):
    def __init__(self, descriptor: int, keep: bool) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._keep = keep
        self.taken = 0
        self.kept: list[bytes] = []

    def run(self) -> None:
        while data := os.read(self._descriptor, 1 << 20):
            self.taken += len(data)
            if self._keep:
                self.kept.append(data)


@dataclass(frozen=True)
class Measured:
    """CPU seconds of each variant's boots, interleaved, and the ratios of their medians to plain TCG's."""

    guest: str
    cpu_seconds: dict[str, list[float]]
    ratios: dict[str, float]


def measure(name: str, boots: int, variants: Iterable[str] = VARIANTS) -> Measured:
    """Boot a guest so many times in each variant."""
    recipe, object_path = guest.load(name), plugin.build()
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(boots):
        for variant, taken in seconds.items():
            done = boot(recipe, VARIANTS[variant], object_path)
            taken.append(round(done.seconds, 3))
            click.echo(f"{name} {number + 1}/{boots} {variant}: {done.seconds:.2f} s, {done.written / 24:,.0f} records", err=True)
    medians = {variant: statistics.median(taken) for variant, taken in seconds.items()}
    ratios = {variant: round(median / medians["plain"], 3) for variant, median in medians.items() if variant != "plain"}
    return Measured(name, seconds, ratios)


def main() -> int:
    """Measure, print a table and, with ``--json``, write it; 3 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guests", nargs="+", default=["cloud-amd64", "686"])
    parser.add_argument("--boots", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = [measure(name, given.boots) for name in given.guests]
    missed = False
    for result in results:
        for variant, ratio in result.ratios.items():
            over = ratio > BARS[variant]
            missed |= over
            click.echo(f"{result.guest:<14} {variant:<8} {ratio:5.2f} x plain TCG (at most {BARS[variant]}){'  MISSED' if over else ''}")
    if given.json:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
