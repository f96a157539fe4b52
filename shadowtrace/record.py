"""shadowtrace record."""

from __future__ import annotations

import math
from pathlib import Path

import click

from analyzer.reports import recorded
from db.errors import EXIT_INTERRUPTED, EXIT_LIMIT, EXIT_OURS, UsageError
from shadowtrace import __version__
from shadowtrace.completion import one_of
from shadowtrace.options import Renamed, asked, force_option, output_option, show
from shadowtrace.progress import recording_line
from tracer import guest as guests
from tracer.attach import Attachment, attach
from tracer.qemu import Capture
from tracer.record import record
from tracer.request import Request

#: What only the plugin does, and what only a QEMU that we start can be given.
_OF_THE_PLUGIN = ("touch", "touch_entries", "invalidate_on_pt_write", "drop_when_behind", "user_stores", "callbacks")
_OF_OUR_QEMU = ("until", "marks", "program", "deterministic")


@click.command("record", cls=Renamed, context_settings={"ignore_unknown_options": False})
@click.argument("guest", required=False, shell_complete=one_of(guests.names()))
@click.argument("qemu_args", nargs=-1, type=click.UNPROCESSED)
@output_option
@force_option
@click.option("--until", metavar="SYMBOL", help="Stop when the kernel reaches this function.")
@click.option("--for", "seconds", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Stop after so long.")
@click.option("--mark", "marks", multiple=True, metavar="SYMBOL", help="Mark the moment the kernel first reaches this function.")
@click.option("--check", "checks", type=click.IntRange(0, 10000), default=0, metavar="N", help="Check the tables at N random stops too.")
@click.option("--qemu", "program", type=click.Path(), metavar="PROGRAM", help="Which qemu-system-x86_64 to run.")
@click.option(
    "--touch",
    type=click.Choice(["first", "every", "none"]),
    default="first",
    show_default=True,
    help="Which accesses: first touches; from the first user process on every one; none, page tables only.",
)
@click.option("--touch-entries", default=1024, show_default=True, help="Entries of each first-touch table, a power of two.")
@click.option(
    "--invalidate-on-pt-write/--no-invalidate-on-pt-write",
    default=True,
    show_default=True,
    help="Whether a store to a table drops the touches that went through it.",
)
@click.option("--events", type=click.IntRange(1), metavar="N", help="Stop after N events.")
@click.option(
    "--engine",
    type=click.Choice(["plugin", "gdb"]),
    default="plugin",
    show_default=True,
    help="What captures: QEMU's plugin; or gdb alone, for a QEMU without plugins: slower, page tables and faults only.",
)
@click.option(
    "--attach",
    "socket",
    type=click.Path(),
    metavar="SOCKET",
    help="Record a QEMU that runs already, from now on, by its gdb stub's unix socket (engine gdb); it runs on at the end.",
)
@click.option("--ram-file", type=click.Path(path_type=Path), metavar="FILE", help="With --attach: the file that guest RAM lies in; faster.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="With --attach: how long to wait for a socket that is not there yet.",
)
@click.option("--net", is_flag=True, help="With --engine gdb: no watchpoints, only what changed between two stops.")
@click.option("--deterministic", is_flag=True, help="Run on instruction counts and a fixed clock: twice the same (not by gdb).")
@click.option(
    "--retire-after-stores", default=64, show_default=True, type=click.IntRange(1, 1024), help="Stores a retired table is watched for."
)
@click.option("--max-tables", default=1 << 18, show_default=True, type=click.IntRange(1), help="Tables tracked at once at the most.")
@click.option("--drop-when-behind", is_flag=True, help="Drop and count events when the recorder is behind; else the guest waits.")
@click.option("--strict-loss", is_flag=True, help="Exit with 3 where any event was lost.")
@click.option(
    "--sync",
    type=click.Choice(["normal", "full"]),
    default="normal",
    show_default=True,
    help="full: fsync each batch.",
)
@click.option("--user-stores", is_flag=True, help="With --touch none: watch user code's stores too.")
@click.option("--callbacks", is_flag=True, help="Loads and stores by callbacks also where QEMU's own TLB can tell them: slower.")
def command(
    guest: str | None,
    qemu_args: tuple[str, ...],
    output: Path,
    force: bool,
    until: str | None,
    seconds: float | None,
    marks: tuple[str, ...],
    checks: int,
    program: str | None,
    touch: str,
    touch_entries: int,
    invalidate_on_pt_write: bool,
    events: int | None,
    engine: str,
    socket: str | None,
    ram_file: Path | None,
    wait: float,
    net: bool,
    deterministic: bool,
    retire_after_stores: int,
    max_tables: int,
    drop_when_behind: bool,
    strict_loss: bool,
    sync: str,
    user_stores: bool,
    callbacks: bool,
) -> int:
    """Record a guest's paging into a trace file.

    GUEST is one of `shadowtrace guests`; QEMU arguments after `--` are added to its own. Or leave GUEST out and give QEMU's
    arguments alone, for anything that QEMU can boot; ours are added to them.

    \b
    Example:
      shadowtrace record cloud-amd64 -o boot.db
      shadowtrace record -o mine.db --for 20 -- -m 256M -cdrom my.iso
      shadowtrace record -o live.db --for 10 --attach gdb.socket
    """
    if touch_entries & touch_entries - 1 or not 1 <= touch_entries <= 65536:
        raise UsageError(f"--touch-entries {touch_entries} is no power of two up to 65536", "for example --touch-entries 1024")
    if net and engine != "gdb" and socket is None:
        raise UsageError("--net is a way of capturing by gdb", "add --engine gdb")
    if socket is None and (given := asked(("ram_file", "wait"))):
        raise UsageError(f"{given[0]} belongs to --attach", "add --attach SOCKET")
    if socket is not None:
        if guest is not None or qemu_args:
            raise UsageError(
                "--attach takes no guest and no QEMU arguments: that QEMU runs already", "end it with --for, --events or Ctrl-C"
            )
        _refuse_with_attach(engine)
    foreign = [option for option in asked(_OF_THE_PLUGIN) if option != "--touch" or touch != "none"]
    if foreign and (socket is not None or engine == "gdb"):
        raise UsageError(f"{foreign[0]} is for the plugin: gdb sees page tables and faults only", "leave it out, or record by the plugin")
    named, arguments = _what(guest, qemu_args) if socket is None else (None, ())
    recipe = guests.load(named) if named is not None else None
    request = Request(
        output=output,
        guest=recipe,
        arguments=arguments,
        program=program,
        force=force,
        until=until,
        seconds=seconds or (recipe.limit if recipe is not None else None),
        marks=marks,
        checks=checks,
        capture=Capture(
            touch_entries if touch != "none" else 0,
            retire_after_stores,
            max_tables,
            user_stores,
            invalidate_on_pt_write,
            drop_when_behind,
            callbacks,
        ),
        every_access=touch == "every",
        events=events,
        deterministic=deterministic,
        sync=sync,
        engine="gdb-net" if net else "gdb" if socket is not None else engine,
        version=__version__,
    )
    if seconds is not None and not math.isfinite(seconds):
        raise UsageError(f"--for {seconds} is no number of seconds", "for example --for 60")
    if user_stores and touch != "none":
        raise UsageError("--user-stores is for page tables only: with touches they are watched anyway", "add --touch none, or leave it out")
    with recording_line(f"recording into {output}; Ctrl-C ends it and seals the file") as progress:
        if socket is None:
            outcome = record(request, progress)
        else:
            outcome = attach(Attachment(Path(socket), ram_file, wait), request, progress, lambda text: click.echo(text, err=True))
    shown = (outcome.ended, outcome.detail, outcome.events, outcome.lost, outcome.verdict, named or "", outcome.not_shown)
    show(recorded.text(str(output), *shown))
    if outcome.ended == "interrupted":
        return EXIT_INTERRUPTED
    if outcome.ended == "crash":
        return EXIT_OURS
    return EXIT_LIMIT if strict_loss and outcome.lost else 0


def _refuse_with_attach(engine: str) -> None:
    """Raise ``UsageError`` for an option that would need a QEMU of ours."""
    if ours := asked(_OF_OUR_QEMU):
        raise UsageError(f"--attach takes no {ours[0]}: that QEMU runs already", "end it with --for, --events or Ctrl-C")
    if asked(("engine",)) and engine != "gdb":
        raise UsageError("--attach captures by gdb: a plugin is loaded when QEMU starts", "leave out --engine")


def _what(guest: str | None, qemu_args: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """A guest's name and QEMU arguments: without a name, click hands the first of these over as GUEST."""
    if guest is None:
        raise UsageError("say what to record", "shadowtrace record GUEST -o FILE, or record -o FILE -- QEMU ARGS")
    if guest.startswith("-"):
        return None, (guest, *qemu_args)
    if qemu_args and not qemu_args[0].startswith("-"):
        raise UsageError(f"one guest at a time: {qemu_args[0]!r} is another", "QEMU arguments come after --")
    return guest, qemu_args
