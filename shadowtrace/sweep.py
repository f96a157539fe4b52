"""shadowtrace sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer import sweep
from analyzer.model.parameters import HASHES, MODELS
from analyzer.reports import sweep as sweep_report
from analyzer.reports.text import look
from db.file.outputs import check_target
from shadowtrace import __version__
from shadowtrace.completion import list_of
from shadowtrace.options import core_option, show
from shadowtrace.progress import sweep_line

if TYPE_CHECKING:
    # Generic in later versions of click alone.
    _ListType = click.ParamType[list[int]]
    _PairType = click.ParamType[tuple[int, int]]
else:
    _ListType = _PairType = click.ParamType


class Numbers(_ListType):
    """``a..b`` doubles from a to b; ``a,b,c`` lists."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The numbers, each once."""
        numbers: list[int] = []
        for part in str(value).split(","):
            first, dots, last = part.partition("..")
            if not first.isdecimal() or (dots and not (last.isdecimal() and 0 < int(first) <= int(last))):
                self.fail(f"{part!r} is neither a number nor a range: 32..4096 doubles, 3,5,10 lists", param, ctx)
            numbers.append(int(first))
            while dots and numbers[-1] * 2 <= int(last):
                numbers.append(numbers[-1] * 2)
        return list(dict.fromkeys(numbers))


class Shard(_PairType):
    """``i/n``."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The shard's number and how many there are."""
        number, _, of = str(value).partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            self.fail(f"{value!r} is no shard: 1/4 is the first of four", param, ctx)
        return int(number), int(of)


@click.command("sweep")
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    "models",
    default="kvm-2.6.20",
    show_default=True,
    shell_complete=list_of(MODELS),
    help="Models, with commas between them.",
)
@click.option("--pages", type=Numbers(), help="Shadow pages: 32..4096 doubles, 100,200 lists. Buckets follow unless given.")
@click.option("--buckets", type=Numbers(), help="Buckets of the hash table.")
@click.option("--hash", "hashes", shell_complete=list_of(HASHES), help=f"Hash functions, with commas between them: {', '.join(HASHES)}.")
@click.option("--flood", type=Numbers(), help="The store in a row to one table that zaps it; 0 = never.")
@click.option("--refill", type=Numbers(), help="Free pages at which eviction stops.")
@click.option("--keep-roots", type=Numbers(), help="Earlier roots that stay in use across cr3 loads.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Keep results here, JSON Lines; by default beside the first trace.")
@click.option("--shard", type=Shard(), help="Run only every n-th unit, from the i-th: one shard for each machine.")
@click.option("--dask", "scheduler", metavar="ADDRESS", help="Run on the workers of this dask scheduler, which see the same files.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Runs at once; all cores by default.")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@core_option
def command(
    traces: tuple[Path, ...],
    models: str,
    hashes: str | None,
    output: Path | None,
    shard: tuple[int, int] | None,
    scheduler: str | None,
    jobs: int | None,
    form: str,
    core: str | None,
    **axes: list[int] | None,
) -> None:
    """Run traces through a grid of models and parameters.

    Each finished run is kept at once: the same sweep again goes on where it was interrupted.

    \b
    Example:
      shadowtrace sweep boot.db --pages 32..4096
      shadowtrace sweep boot.db other.db --model kvm-2.6.20,kvm-2.6.24 --flood 3,10 --format csv
    """
    chosen: dict[str, Any] = {name: values for name, values in axes.items() if values is not None}
    if hashes is not None:
        chosen["hash"] = hashes.split(",")
    absolute = [trace.absolute() for trace in traces]
    units = sweep.grid(absolute, models.split(","), chosen, __version__)
    if shard is not None:
        units = sweep.shard(units, *shard)
    output = output or absolute[0].with_suffix(".sweep.jsonl")
    check_target(output)
    kept = sweep.Kept(output)
    with sweep_line(len(kept.missing(units)), output) as progress:
        if scheduler is not None:
            sweep.sweep_on_dask(units, kept, scheduler, progress)
        else:
            sweep.sweep(units, kept, jobs or len(os.sched_getaffinity(0)), progress, core)
    results = kept.of(units)
    if form == "table":
        show(sweep_report.table(results, look()))
    else:
        click.echo(sweep_report.as_json(results) if form == "json" else sweep_report.as_csv(results))
