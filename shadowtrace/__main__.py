"""The ``shadowtrace`` command: its verbs are imported when they are called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from shadowtrace import __version__

#: Each verb, with its line in the list of commands.
VERBS = {
    "record": "Record a guest's paging into a trace file.",
    "replay": "Run a trace through a shadow MMU and keep the facts in it.",
    "report": "Print what a shadow page cache would have shared.",
    "verify": "Check a trace's invariants.",
    "diff": "Compare two captures of the same guest run.",
    "import": "Make a trace file from events in JSON Lines.",
    "export": "Write a trace's events as JSON Lines.",
    "guests": "List the guests that can be recorded by name.",
    "models": "List the models a trace can be replayed with.",
    "doctor": "Look whether this machine has what recording needs.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"shadowtrace.{cmd_name if cmd_name != 'import' else 'import_'}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

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
    """Run the command line; its exit code: 0 done, 1 ours, 2 usage, 3 a limit missed, 130 interrupted."""
    from db.errors import EXIT_INTERRUPTED, ShadowtraceError

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
        click.echo(f"shadowtrace: {error}", err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
        return error.exit_code
    except KeyboardInterrupt:
        click.echo("shadowtrace: interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has seen enough; Python would complain once more when it flushes at exit.
        sys.stdout = None
        return 0
    except Exception as error:
        if os.environ.get("SHADOWTRACE_DEBUG"):
            raise
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    """One sentence for what no verb expected; SHADOWTRACE_DEBUG=1 shows where it came from."""
    from db.errors import EXIT_OURS
    from db.files import is_sqlite_error

    if isinstance(error, OSError):
        sentence = f"{error.filename or 'the output'}: {error.strerror or error}"
        hint = "is the disk full, or the folder read-only?"
    elif is_sqlite_error(error):
        sentence, hint = f"the trace is damaged: {getattr(error, 'orig', error)}", "shadowtrace verify names what is wrong"
    else:
        sentence, hint = f"{type(error).__name__}: {error}", "this is a defect; SHADOWTRACE_DEBUG=1 shows where it is"
    click.echo(f"shadowtrace: {sentence}", err=True)
    click.echo(f"  hint: {hint}", err=True)
    if isinstance(error, OSError):
        # What could not be written must not be tried again at exit.
        sys.stdout = None
    return EXIT_OURS


if __name__ == "__main__":
    sys.exit(main())
