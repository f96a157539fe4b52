"""A recording from the reset vector to its end, whatever that is: into one sealed trace file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from db.errors import ShadowtraceError, UsageError
from db.trace import TraceReader
from db.writer import TraceWriter
from tracer import gdb, kernelimage, plugin, qemu, symbols, tasks
from tracer.digest import sha256
from tracer.driver import check_symbols
from tracer.expect import not_shown
from tracer.qemu import Machine
from tracer.recording import Recording
from tracer.request import Outcome, Request, Status

_DETERMINISTIC = ["-icount", "shift=3,sleep=off", "-rtc", "base=2020-01-01,clock=vm", "-seed", "1"]


def record(request: Request, progress: Callable[[Status], None] | None = None) -> Outcome:
    """Record a guest. The trace is sealed whichever way it ends, Ctrl-C included; raises ``ShadowtraceError`` before it begins."""
    program = qemu.find_qemu(request.program)
    gdb.find_gdb()
    object_path = _plugin(program) if request.engine == "plugin" else None
    arguments, described = _what(request)
    if request.deterministic:
        if request.engine != "plugin":
            raise UsageError(
                "a capture by gdb is not the same twice: each stop moves the guest's clock",
                "record the run with QEMU's rr=record and replay it, as docs/how-it-works.md says",
            )
        arguments += _DETERMINISTIC
    qemu.check_arguments(arguments)
    if request.engine != "plugin" and qemu.vcpus(arguments) > 1:
        raise UsageError("gdb captures one vCPU", "use --engine plugin for several, or -smp 1")
    kernel = _kernel(arguments)
    known, unreadable = _symbols(kernel)
    unnamed = _unnamed(known, unreadable)
    version = kernelimage.version(kernel.read_bytes()) if kernel is not None else None
    check_symbols(known, [*request.marks, *([request.until] if request.until else [])], unreadable)
    columns = {
        "source": "record",
        **described,
        "kernel": described["kernel"] if version is None else version,
        "unnamed": unnamed,
        "kernel_sha256": sha256(kernel) if kernel is not None else None,
        "qemu_version": qemu.qemu_version(program),
        "gdb_version": gdb.gdb_version(gdb.find_gdb()),
        "engine": request.engine,
        "cpu_model": qemu.cpu_model(arguments),
        "ram_bytes": qemu.ram_bytes(arguments),
        "vcpus": qemu.vcpus(arguments),
        "touch": _touch(request),
        "touch_entries": request.capture.touch_entries,
        "drop_at_stores": int(request.capture.invalidate_on_pt_write),
        "linger": request.capture.retire_after_stores,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": request.version,
    }
    with TraceWriter(request.output, request.force, request.sync) as writer:
        writer.describe(**columns)
        try:
            with Machine(program, arguments, request.capture, object_path) as machine:
                writer.describe(qemu_argv=json.dumps(machine.argv), plugin_api=machine.control().api)
                outcome = Recording(request, writer, machine, known).run(progress)
        except ShadowtraceError:
            if writer.events == 0:
                request.output.unlink(missing_ok=True)
            raise

    return replace(outcome, not_shown=_not_shown(request, outcome))


def _not_shown(request: Request, outcome: Outcome) -> Sequence[str]:
    """Only of a guest that we ship, and that nobody ended before its time."""
    recipe = request.guest
    if recipe is None or request.until is not None or request.events is not None or request.seconds != recipe.limit:
        return ()
    if outcome.ended == "interrupted":
        return ()
    with TraceReader(request.output, live=True) as trace:
        return not_shown(recipe.expect, trace)


def _plugin(program: str) -> Path:
    """The plugin for this QEMU; ``ShadowtraceError`` where it cannot be built, or that QEMU takes none."""
    if not qemu.takes_plugins(program):
        raise ShadowtraceError(f"{program} was built without support for plugins", "add --engine gdb: it needs none")
    try:
        return plugin.build()
    except ShadowtraceError as error:
        raise ShadowtraceError(str(error), f"{error.hint}; or add --engine gdb, which needs no plugin") from error


def _touch(request: Request) -> str:
    if not request.capture.touch_entries or request.engine != "plugin":
        return "none"
    return "every" if request.every_access else "first"


def _what(request: Request) -> tuple[list[str], dict[str, Any]]:
    """QEMU's arguments, and the columns that say what the guest is."""
    if request.guest is not None:
        images = request.guest.images()
        return [*request.guest.arguments(images), *request.arguments], {
            "guest": request.guest.name,
            "title": request.guest.title,
            "kernel": images.kernel_package and images.kernel_package.removeprefix("linux-image-"),
        }
    return list(request.arguments), {"guest": "own", "title": "a guest of the user's", "kernel": None}


def _symbols(kernel: Path | None) -> tuple[symbols.Symbols | None, str | None]:
    """A kernel's symbols; or ``None``, and why those of the image that there is cannot be read."""
    if kernel is None:
        return None, None
    try:
        return symbols.load(kernel), None
    except ValueError as error:
        return None, str(error)


def _unnamed(known: symbols.Symbols | None, unreadable: str | None) -> str | None:
    """Why no program can be named, and what would help; ``None`` where they can."""
    if known is not None:
        why = tasks.missing(known)
        return why and f"{why}; programs are named on Linux for i386 and amd64"
    if unreadable is not None:
        return f"{unreadable}; give a Linux bzImage with kallsyms, or a vmlinux, as -kernel"
    return "QEMU was given no kernel image; add -kernel IMAGE"


def _kernel(arguments: Sequence[str]) -> Path | None:
    for option, value in pairwise(arguments):
        if option in ("-kernel", "--kernel"):
            if not Path(value).is_file():
                raise UsageError(f"there is no kernel image {value}", "-kernel takes a file")
            return Path(value)
    return None
