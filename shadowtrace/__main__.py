"""The ``shadowtrace`` command: its verbs are imported when they are called."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from shadowtrace import __version__

#: Each verb, with its line in the list of commands.
VERBS = {
    "record": "Record a guest's paging into a trace file.",
    "replay": "Run a trace through a shadow MMU and keep the facts in it.",
    "sweep": "Run traces through a grid of models and parameters.",
    "report": "Print what a shadow page cache would have shared.",
    "stat": "Say what is in a trace.",
    "script": "Print events as text, one a line.",
    "timeline": "Draw the address spaces over time.",
    "annotate": "Say which guest code writes page tables.",
    "diff": "Compare two runs, or two captures of the same guest run.",
    "sql": "Ask a trace in SQL, or open a shell.",
    "ls": "List the traces in a folder.",
    "verify": "Check a trace's invariants.",
    "import": "Make a trace file of what another program wrote.",
    "export": "Write a trace's events for other programs.",
    "pack": "Pack a trace for keeping.",
    "unpack": "Make a packed trace a trace file again.",
    "upgrade": "Write a trace of an older schema anew.",
    "guests": "List the guests that can be recorded by name.",
    "models": "List the models a trace can be replayed with.",
    "doctor": "Look whether this machine has what recording needs.",
}

#: Those that go through all of a trace.
READ_ALL = {"replay", "sweep", "export", "pack", "verify"}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in READ_ALL:
            _read_ahead(args[1:])
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            if ctx.resilient_parsing:
                return None
            from db.errors import UsageError, nearest

            raise UsageError(f"there is no verb {cmd_name!r}", f"{nearest(cmd_name, VERBS)}shadowtrace --help lists them")
        module = importlib.import_module(f"shadowtrace.{cmd_name if cmd_name != 'import' else 'import_'}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # Not through get_command: that would import every verb at each press of a key.
        names = [CompletionItem(name, help=line) for name, line in VERBS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shadowtrace")
def cli() -> None:
    """What would a shadow page-table cache do with this operating system?

    Record a guest's paging once, replay it through the shadow MMU of Linux 2.6.20 as often as you like.

    \b
    Example:
      shadowtrace record cloud-amd64 -o boot.db
      shadowtrace report boot.db
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code: 0 done, 1 failed, 2 wrong use or trace, 3 a limit missed, 130 interrupted."""
    from shadowtrace.interrupts import remembered

    with remembered():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    from db.errors import EXIT_INTERRUPTED, ShadowtraceError
    from shadowtrace.interrupts import came

    _show_warnings()
    try:
        code = cli.main(args=list(arguments) if arguments is not None else None, prog_name="shadowtrace", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        click.echo("shadowtrace: interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ShadowtraceError as error:
        if came():
            # SQLite asks us before it reads; where Ctrl-C ended our answer, it says that the file is at fault.
            click.echo("shadowtrace: interrupted", err=True)
            return EXIT_INTERRUPTED
        _say(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        click.echo("shadowtrace: interrupted", err=True)
        return EXIT_INTERRUPTED
    except SystemExit:
        # click's own answer to a closed pipe: the reader of our output has seen enough.
        return 0
    except BrokenPipeError:
        # The reader of our output has seen enough.
        _let_go_of_output()
        return 0
    except Exception as error:
        if os.environ.get("SHADOWTRACE_DEBUG"):
            raise
        return _unforeseen(error)


def _read_ahead(arguments: Sequence[str]) -> None:
    """Have the system fetch the files among these from the disk while the verb is still being imported."""
    for argument in arguments:
        # Whoever reads it in earnest says what is wrong with it.
        with contextlib.suppress(OSError, ValueError):
            if Path(argument).is_file():
                with Path(argument).open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _show_warnings() -> None:
    """What the trace's reader has to say goes to standard error like our own errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("shadowtrace: %(message)s"))
    logging.getLogger("db").handlers = [handler]


def _say(sentence: str, hint: str) -> None:
    """An error for the terminal: what a trace, a guest or SQLite has put into it is shown escaped, but for line ends."""
    from analyzer.reports.text import printable

    lines = [f"shadowtrace: {sentence}", *([f"  hint: {hint}"] if hint else [])]
    click.echo("\n".join(printable(line) for text in lines for line in text.split("\n")), err=True)


def _unforeseen(error: Exception) -> int:
    """One sentence for what no verb expected; SHADOWTRACE_DEBUG=1 shows where it came from."""
    import sqlite3

    from db.errors import EXIT_OURS

    if isinstance(error, OSError):
        sentence = f"{error.filename or 'the output'}: {error.strerror or error}"
        hint = "is the disk full, or the folder read-only?"
    elif isinstance(error, sqlite3.Error):
        sentence, hint = f"the trace is damaged: {error}", "shadowtrace verify names what is wrong"
    else:
        sentence, hint = f"{type(error).__name__}: {error}", "this is a defect; SHADOWTRACE_DEBUG=1 shows where it is"
    _say(sentence, hint)
    if isinstance(error, OSError):
        _let_go_of_output()
    return EXIT_OURS


def _let_go_of_output() -> None:
    """What could not be written would be tried once more, and complained of, when Python ends: let it go nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
