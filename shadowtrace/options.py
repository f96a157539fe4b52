"""Options and arguments that several verbs share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from analyzer.model.parameters import HASHES, MODELS, Parameters, parameters
from analyzer.replay import CORES
from analyzer.reports.text import folded, look
from db.errors import UsageError, nearest
from db.file.outputs import new_text
from db.trace import TraceReader
from shadowtrace.completion import one_of

Command = Callable[..., Any]

trace_argument = click.argument("trace", type=click.Path(path_type=Path))
output_option = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The trace file to write.")
sql_option = click.option("--sql", is_flag=True, help="Print the query behind it instead, for `shadowtrace sql`.")
force_option = click.option("--force", is_flag=True, help="Replace the output file if it is there.")

core_option = click.option("--core", type=click.Choice(CORES), help="Which implementation replays; the fast one where it can, by default.")

_MODEL_OPTIONS = (
    click.option(
        "--model",
        default="kvm-2.6.20",
        show_default=True,
        shell_complete=one_of(MODELS),
        help="Which shadow MMU: see shadowtrace models.",
    ),
    click.option("--pages", type=int, help="Shadow pages; hash buckets too, unless --buckets says otherwise."),
    click.option("--buckets", type=int, help="Buckets of the hash table."),
    click.option("--hash", "hash_name", type=click.Choice(HASHES), help="The hash function over frame numbers."),
    click.option(
        "--flood",
        type=click.IntRange(0, 1 << 31),
        help="Zap a page at the Nth consecutive store to its table (0: never). Approximate above the recording's --retire-after-stores.",
    ),
    click.option("--min-free", type=int, help="Free pages below which eviction starts."),
    click.option("--refill", type=int, help="Free pages at which eviction stops."),
    click.option("--keep-roots", type=int, help="Earlier roots that stay in use across cr3 loads."),
    click.option("--quadrant-test/--no-quadrant-test", default=None, help="A store acts on its own quadrant only (2.6.24)."),
    click.option("--flood-reset-by-faults/--no-flood-reset-by-faults", default=None, help="Faults reset the flood counter (2.6.24)."),
    click.option("--skip-absent-pdptes/--no-skip-absent-pdptes", default=None, help="An absent PDPTE makes no root (2.6.22)."),
    click.option("--ram-pages", type=click.IntRange(1, 1 << 40), help="Frames from here up are devices; all is RAM by default."),
    click.option("--strict", is_flag=True, default=None, help="Refuse reserved register bits as 2.6.20 did; otherwise they are masked."),
)


def model_options(command: Command) -> Command:
    """Add the options that choose a model and its parameters; ``chosen`` makes them a value."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


def paired_model_options(command: Command) -> Command:
    """The same options for two sides: each may be given twice, and comes as a tuple of what was given."""

    def bare() -> None: ...

    added: list[click.Option] = model_options(bare).__click_params__  # type: ignore[attr-defined]
    for option in added:
        option.multiple = True
        if isinstance(option.default, str):
            option.default = (option.default,)
    command.__dict__.setdefault("__click_params__", []).extend(added)
    return command


#: Options by the names that they had in the version before; no help shows these.
_RENAMED = {
    "--linger": "--retire-after-stores",
    "--drop-at-stores": "--invalidate-on-pt-write",
    "--keep-at-stores": "--no-invalidate-on-pt-write",
}


class Renamed(click.Command):
    """A command that takes options by their earlier names too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Called by click."""
        end = args.index("--") if "--" in args else len(args)
        words = [word.partition("=") for word in args[:end]]
        return super().parse_args(ctx, ["".join((_RENAMED.get(name, name), *rest)) for name, *rest in words] + args[end:])


def asked(names: Iterable[str]) -> list[str]:
    """The options for these parameters that stand on the command line of the verb that runs, as they are written."""
    context, wanted = click.get_current_context(), set(names)
    parameters = ((one.name, one.opts[0]) for one in context.command.params if one.name in wanted)
    return [option for name, option in parameters if name and context.get_parameter_source(name) is ParameterSource.COMMANDLINE]


def refuse_model_options(names: Iterable[str], hint: str) -> None:
    """Raise ``UsageError`` where a model option is given to a verb that replays nothing."""
    if asked(names):
        raise UsageError("nothing is replayed: a model and its parameters have no say here", hint)


def chosen(model: str, hash_name: str | None, **changes: Any) -> Parameters:
    """The parameters that the model options ask for; ``UsageError`` where there is no such model."""
    if model not in MODELS:
        raise UsageError(f"there is no model called {model!r}", f"{nearest(model, MODELS)}models: {', '.join(MODELS)}")
    return parameters(model, hash=hash_name, **changes)


def show(text: str) -> None:
    """Print what is for people: sentences end where the terminal, or COLUMNS, does."""
    click.echo(folded(text, look()))


def write_out(text: str, output: Path | None) -> None:
    """Print a report that ends with a line's end, or put it into a file; nothing where it is empty."""
    whole = text and text.removesuffix("\n") + "\n"
    if output is None:
        click.echo(whole, nl=False)
        return
    with new_text(output) as out:
        out.write(whole)


def no_such_event(trace: TraceReader) -> None:
    """Say on standard error that nothing was printed because nothing was asked for that the trace has."""
    click.echo(f"no such event among the {trace.count():,} of this trace", err=True)


def wants_colour() -> bool:
    """Whether to print in colours: on a terminal that has them, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def draws_ascii() -> bool:
    """Whether the output takes nothing but ASCII."""
    try:
        "█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return True
    return False
