"""The hash table at the end: how long its chains are, which are the longest, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from analyzer.model.cache import hash_function
from analyzer.model.outcome import LivePage, Outcome
from analyzer.model.role import unpack

#: Buckets that are named, at most.
WORST = 8


@dataclass(frozen=True)
class Bucket:
    """A crowded bucket of the hash table."""

    bucket: int
    pages: int
    frames: int
    """Different frames among them."""
    metaphysical: int
    """Pages of big pages, or of the time without paging."""
    roles: tuple[dict[str, int], ...]
    """The roles in it, and the pages of each."""
    why: str


def chains(outcome: Outcome) -> list[dict[str, int]]:
    """How many buckets hold how many pages, empty ones included."""
    return [{"length": length, "buckets": n} for length, n in sorted(Counter(outcome.buckets).items())]


def worst(outcome: Outcome) -> list[Bucket]:
    """The fullest buckets that hold several pages, the fullest first."""
    if not outcome.parameters.caching:
        return []
    bucket_of = hash_function(outcome.parameters)
    content: dict[int, list[LivePage]] = {}
    for page in outcome.pages:
        content.setdefault(bucket_of(page.gfn), []).append(page)
    crowded = sorted((number for number, pages in content.items() if len(pages) > 1), key=lambda number: (-len(content[number]), number))
    return [_describe(number, content[number]) for number in crowded[:WORST]]


def _describe(number: int, pages: list[LivePage]) -> Bucket:
    frames = len({page.gfn for page in pages})
    metaphysical = sum(1 for page in pages if unpack(page.role).metaphysical)
    roles = Counter(page.role for page in pages)
    return Bucket(
        number,
        len(pages),
        frames,
        metaphysical,
        tuple({**unpack(role)._asdict(), "pages": n} for role, n in sorted(roles.items())),
        _why(pages, frames, metaphysical),
    )


def _why(pages: list[LivePage], frames: int, metaphysical: int) -> str:
    """What fills a bucket: the first that explains more than half of its pages beyond the one that is anyone's right."""
    if 2 * metaphysical > len(pages):
        return "keys that are multiples of 512: big pages, or paging off"
    if 2 * (len(pages) - frames) >= len(pages):
        return "few frames with several pages each: quadrants, levels or modes"
    return "chance"


def summary(outcome: Outcome) -> dict[str, Any]:
    """The table as a whole."""
    lengths = outcome.buckets
    nonempty = sum(1 for length in lengths if length)
    return {
        "pages": sum(lengths),
        "nonempty": nonempty,
        "longest": max(lengths),
        "mean_nonempty": round(len(outcome.pages) / nonempty, 6) if nonempty else 0.0,
        "mean_all": round(sum(lengths) / len(lengths), 6),
    }
