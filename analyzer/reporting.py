"""A report from a trace: which runs it needs, which of them are kept, and what it shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from analyzer import livekvm, replay
from analyzer.facts.group_counts import COUNTS, MORE, with_uncached
from analyzer.facts.grouping import KEYS, ROLE_KEYS, grouped, unknown
from analyzer.facts.savings import Costs
from analyzer.model.outcome import Outcome
from analyzer.model.parameters import Parameters
from analyzer.reports.about import about
from analyzer.reports.formats import COMPLETE, FORMATS, Rows, Whole
from analyzer.reports.text import TerminalStyle, printable
from analyzer.trace.reading import story
from db import VERSION
from db.errors import UsageError
from db.trace import TraceReader

Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]

#: Values of a key that are named where a condition asks for none of them.
_NAMED = 12


@dataclass(frozen=True)
class Request:
    """What is to be reported, how, and in which format of ``FORMATS``.

    ``keys`` are what rows are grouped by; without any it is the whole report. ``saved`` says whether it is compared with a replay without
    a cache; ``None``: where that is quick.
    """

    model: str
    parameters: Parameters
    core: str | None
    form: str
    everything: bool
    saved: bool | None
    costs: Costs
    look: TerminalStyle
    keys: list[str]
    conditions: list[tuple[str, str]]
    sort: str | None
    limit: int | None


@dataclass(frozen=True)
class Report:
    """A report, the runs that were made for it, and what is to be said beside it."""

    text: str
    fresh: list[replay.Run]
    remark: str | None = None


def keys(by: str | None, rows_alone: bool, of_rows: Sequence[str]) -> list[str]:
    """What to group by; nothing for the whole report. ``of_rows`` are options given that only rows have. Raises ``UsageError``."""
    if by is None:
        if rows_alone:
            return list(ROLE_KEYS)
        if of_rows:
            raise UsageError("--sort, --limit and --only are for rows", "add --by KEY, or --format csv")
        return []
    found = [_known(key.strip()) for key in by.split(",")]
    if len(set(found)) < len(found):
        raise UsageError("--by names a key twice", "name each once")
    return found


def condition(text: str) -> tuple[str, str]:
    """A key and the value that it has to have, from KEY=VALUE. Raises ``UsageError``."""
    key, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"--only {text} is no KEY=VALUE", "such as --only level=1")
    return _known(key), value


def column(sort: str | None, keys: list[str]) -> str | None:
    """The column to sort by, which may be named as the table heads it. Raises ``UsageError``."""
    found = "hit_percent" if sort == "hit%" else sort
    if found is not None and found not in (*COUNTS, *MORE, *keys):
        raise UsageError(f"there is no column {sort!r} to sort by", f"columns: {', '.join((*keys, *COUNTS, *MORE))}")
    return found


def check(form: str, keys: list[str], everything: bool, of_the_whole: Sequence[str]) -> None:
    """Raise ``UsageError`` where a format cannot show what is asked for. ``of_the_whole`` are options given that rows do not have."""
    if keys and FORMATS[form].rows is None:
        raise UsageError("a page shows the whole report, not rows", "leave out --by, or choose another --format")
    if keys and of_the_whole:
        raise UsageError(f"rows know no {of_the_whole[0]}: it is for the whole report", "leave it out, or --by and the formats of rows")
    if keys and everything and form in COMPLETE:
        raise UsageError(f"--all is for tables: in {form} every column is there already", "leave out --all")


def of_live(opened: TraceReader, request: Request, asked: Iterable[str]) -> Report | None:
    """The report of a live KVM's log; ``None`` where the trace is none. ``UsageError`` where more is ``asked`` than it can tell."""
    live = livekvm.stored(opened)
    if live is None:
        return None
    render = FORMATS[request.form].live
    refused = [*asked, *([f"--format {request.form}"] if render is None else [])]
    if render is None or refused:
        raise UsageError(
            f"a live KVM's log holds no events to replay: there is no {refused[0]} of it", "leave it out; --format json has all there is"
        )
    return Report(render(Whole(about(opened, live), live, request.everything, request.look)), [])


def report(opened: TraceReader, request: Request, progress: Progress) -> Report:
    """What is asked for; what has not been replayed yet is replayed first."""
    return _rows(opened, request, progress) if request.keys else _whole(opened, request, progress)


def _rows(opened: TraceReader, request: Request, progress: Progress) -> Report:
    run, end = _replayed(opened, request, progress)
    known = story(opened)
    groups = grouped(end, known, request.keys, request.conditions, request.sort, request.limit)
    remark = None if groups else _nothing(unknown(end, known, request.conditions))
    fresh = [run]
    if request.saved and request.parameters.caching:
        without, bare = _replayed(opened, request, progress, "uncached", replay.without_cache(request.parameters))
        groups = with_uncached(groups, grouped(bare, known, request.keys, request.conditions), request.keys)
        fresh.append(without)
    render = FORMATS[request.form].rows
    if render is None:
        raise UsageError(f"{request.form} shows no rows", "leave out --by, or choose another --format")
    text = render(Rows(about(opened, run), run, request.everything, request.look, groups, request.keys, request.sort))
    return Report(text, fresh, remark)


def _whole(opened: TraceReader, request: Request, progress: Progress) -> Report:
    if (run := replay.kept(opened, request.model, request.parameters, VERSION, request.core)) is not None:
        # What a file says are facts may be anything: facts that cannot be shown are found anew.
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            return _shown(opened, run, request, progress)
    run, _ = _replayed(opened, request, progress)
    shown = _shown(opened, run, request, progress)
    return Report(shown.text, [run, *shown.fresh])


def _shown(opened: TraceReader, run: replay.Run, request: Request, progress: Progress) -> Report:
    """A run's report, with what its cache saved, and the run without a cache where one was made for that."""
    with progress(opened.count()) as line:
        without, made = replay.yardstick(opened, request.parameters, VERSION, request.saved, line, request.core)
    run = replay.with_saved(run, without, request.costs)
    render = FORMATS[request.form].whole
    if render is None:
        raise UsageError(f"{request.form} shows rows alone", "add --by KEY")
    text = render(Whole(about(opened, run), run, request.everything, request.look))
    return Report(text, [without] if without is not None and made else [])


def _replayed(
    opened: TraceReader, request: Request, progress: Progress, model: str | None = None, parameters: Parameters | None = None
) -> tuple[replay.Run, Outcome]:
    with progress(opened.count()) as line:
        return replay.run(opened, model or request.model, parameters or request.parameters, VERSION, line, core=request.core)


def _known(key: str) -> str:
    if key not in KEYS:
        raise UsageError(f"there is no key {key!r} to group by", f"keys: {', '.join(KEYS)}")
    return key


def _nothing(missing: tuple[str, str, list[str]] | None) -> str:
    """Why there are no rows."""
    if missing is None:
        return "nothing that was replayed is in any of these groups"
    key, wanted, there = missing
    more = f" and {len(there) - _NAMED:,} more" if len(there) > _NAMED else ""
    return printable(f"no {key} is called {wanted!r}; there are: {', '.join(repr(name) for name in there[:_NAMED])}{more}")
