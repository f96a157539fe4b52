"""Two runs, fact by fact: what differs, by how much, and whether it is more than a limit allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from x86.registers import Mode

Number = int | float

#: What tells the entries of a list of facts apart: a page or a role by all of the first that it has, others by one of the second.
_ROLE = ("gfn", "root", "glevels", "level", "quadrant", "metaphysical", "generation")
_KEYS = ("bucket", "level", "pages", "name", "first", "up_to", "length")

#: Numbers that are no quantities: a digest, a frame, the version of the facts' form, places in the trace and among births, given costs.
_NAMES = {"crc32", "most_shared_gfn", "form", "first", "last", "event", "first_event", "last_event", "birth", "exit", "fault", "fill"}

#: What ``roles`` says of each role too, and what a process's numbers do not hold of its address spaces.
_BY_ROLE = ("get_page", "live")
_OF_A_SPACE = "pages_now"

#: The greatest number that is taken for one.
_MOST = 1 << 63

#: What facts of single slices of a replay are called: hundreds, of which each says little.
_SLICES = "over_time.buckets["


@dataclass(frozen=True)
class Difference:
    """One fact in two runs; ``None`` where a run does not have it."""

    name: str
    left: Number | None
    right: Number | None

    @property
    def absolute(self) -> Number | None:
        """Right less left."""
        return None if self.left is None or self.right is None else self.right - self.left

    @property
    def relative(self) -> float | None:
        """The change as a share of left; ``None`` where there is no left, or it is 0 and right is not."""
        if self.absolute is None or self.left is None:
            return None
        return self.absolute / abs(self.left) if self.left else (None if self.absolute else 0.0)

    @property
    def relevance(self) -> float:
        """What it is sorted by: the change times its share of the greater value, so that neither 1 -> 2 nor 0.1% comes first."""
        left, right = self.left or 0, self.right or 0
        most = max(abs(left), abs(right))
        return abs(right - left) ** 2 / most if most else 0.0


def compare(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Every numeric fact of two runs, the most relevant difference first.

    Facts that one run lacks come after those of both, slices over time after these, equal facts last in their own order.
    """
    ours, theirs = dict(numbers(left)), dict(numbers(right))
    names = [*ours, *(name for name in theirs if name not in ours)]
    found = [Difference(name, ours.get(name), theirs.get(name)) for name in names]
    return sorted(found, key=lambda difference: (_rank(difference), -difference.relevance))


def _rank(difference: Difference) -> int:
    if difference.left == difference.right:
        return 3
    if difference.name.startswith(_SLICES):
        return 2
    return 0 if difference.absolute is not None else 1


def numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, Number]]:
    """The numbers among facts by name, each once: ``zaps.flood``, ``roles[long level=1].hits``, ``frames.by_pages[pages=2].peak``."""
    return _numbers(_once(facts), "")


def _once(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without what only says others again: findings, look-ups and live pages by role, what processes sum of spaces."""
    once = {key: value for key, value in facts.items() if key != "findings"}
    if "roles" in once:
        for section in _BY_ROLE:
            if isinstance(told := once.get(section), Mapping):
                once[section] = {key: value for key, value in told.items() if key != "by_role"}
    if "processes" in once and isinstance(spaces := once.get("spaces"), Sequence):
        kept = (*_ROLE, _OF_A_SPACE)
        once["spaces"] = [{key: space[key] for key in kept if key in space} for space in spaces if isinstance(space, Mapping)]
    return once


def _numbers(facts: Mapping[str, Any], before: str) -> Iterator[tuple[str, Number]]:
    for key, value in facts.items():
        if key in _NAMES:
            continue
        yield from _number(f"{before}{key}", value)


def _number(name: str, value: Any) -> Iterator[tuple[str, Number]]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        # What JSON says may be anything; no fact is greater.
        if abs(value) <= _MOST:
            yield name, value
    elif isinstance(value, Mapping):
        yield from _numbers(value, f"{name}.")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        seen: dict[str, int] = {}
        for entry in value:
            if not isinstance(entry, Mapping):
                continue
            label = _label(entry)
            seen[label] = seen.get(label, 0) + 1
            again = f" #{seen[label]}" if seen[label] > 1 else ""
            rest = {key: of for key, of in entry.items() if key not in _identity(entry)}
            yield from _numbers(rest, f"{name}[{label}{again}].")


def _identity(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that say which entry of a list it is."""
    if "gfn" in entry or "glevels" in entry:
        return tuple(key for key in _ROLE if key in entry)
    return tuple(key for key in _KEYS if key in entry)[:1]


def _label(entry: Mapping[str, Any]) -> str:
    parts = []
    for key in _identity(entry):
        value = entry[key]
        if key == "glevels":
            parts.append(Mode(value).label if isinstance(value, int) and value in Mode._value2member_map_ else f"glevels={value}")
        elif key in ("quadrant", "metaphysical", "generation"):
            parts += [f"{key}={value}"] if value else []
        elif key in ("gfn", "root") and isinstance(value, int):
            parts.append(f"{key}={value:#x}")
        else:
            parts.append(f"{key}={value}")
    return " ".join(parts)
