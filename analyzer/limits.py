"""Limits that a comparison of two runs must not break, as the command line has them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analyzer.facts.comparison import Difference
from db.errors import UsageError


@dataclass(frozen=True)
class Limit:
    """What a comparison fails on: a fact, or its change, past a bound."""

    text: str
    name: str
    operator: str
    bound: float
    change: bool
    """Whether the change is meant, not the value of the right run."""
    percent: bool
    """Whether it is a share of the left run's value."""


_LIMIT = re.compile(
    r"\s*(?P<name>.*?[^\s<>=!])\s*(?P<operator><=|>=|==|!=|<|>)\s*(?P<sign>[+-]?)(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<percent>%?)\s*"
)

_OPERATORS = {
    "<": lambda value, bound: value < bound,
    ">": lambda value, bound: value > bound,
    "<=": lambda value, bound: value <= bound,
    ">=": lambda value, bound: value >= bound,
    "==": lambda value, bound: value == bound,
    "!=": lambda value, bound: value != bound,
}


def limit(text: str) -> Limit:
    """A limit as the command line has it: NAME OP [+-]N[%].

    With a sign it is about the change from left to right, without one about right's own value; with % the number is a share
    of left's value. ``UsageError`` where it is none.
    """
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no limit", "NAME OP [+-]N[%], for example 'misses>+5%' or 'zaps.flood>1000'")
    bound = float(found["number"]) * (-1 if found["sign"] == "-" else 1)
    return Limit(text, found["name"], found["operator"], bound, bool(found["sign"]), bool(found["percent"]))


def broken(limits: Iterable[Limit], differences: Sequence[Difference]) -> list[tuple[Limit, Difference]]:
    """The limits that the comparison breaks, and by what. A fact that a run lacks breaks nothing.

    ``UsageError`` where a limit's name is no fact of either run, or fits several.
    """
    pairs = [(one, _named(one.name, differences)) for one in limits]
    return [(one, difference) for one, difference in pairs if _breaks(one, difference)]


def _named(name: str, differences: Sequence[Difference]) -> Difference:
    """The fact of this name, or the one whose name ends in it; facts of single roles, frames and the like only by their whole name."""
    for difference in differences:
        if difference.name == name:
            return difference
    ending = [difference for difference in differences if difference.name.endswith(f".{name}") and "[" not in difference.name]
    if len(ending) == 1:
        return ending[0]
    if not ending:
        raise UsageError(f"no fact is called {name!r}", "shadowtrace diff A B --all shows every name")
    raise UsageError(f"{name!r} may be any of {', '.join(sorted(d.name for d in ending))}", "give the whole name")


def _breaks(one: Limit, difference: Difference) -> bool:
    if difference.right is None or (difference.left is None and (one.change or one.percent)):
        return False
    left, right = difference.left or 0, difference.right
    value: float = right - left if one.change else right
    if one.percent:
        value = 100 * value / abs(left) if left else math.copysign(math.inf, value) if value else 0.0
    return bool(_OPERATORS[one.operator](value, one.bound))
