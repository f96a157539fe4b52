"""Sums that run along the rows of a journal, within groups of them: what a loop over the rows would keep, without the loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def running(groups: Ints, deltas: Ints) -> Ints:
    """For each row the sum of ``deltas`` over the rows of its group up to it, itself included."""
    if not len(groups):
        return np.zeros(0, np.int64)
    order = np.argsort(groups, kind="stable")
    ordered, steps = groups[order], deltas[order]
    total = np.cumsum(steps, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    before = np.repeat(total[starts] - steps[starts], np.diff(np.concatenate((starts, [len(ordered)]))))
    out = np.empty_like(total)
    out[order] = total - before
    return out


def distinct(groups: Ints, values: Ints, deltas: Ints) -> Ints:
    """For each row how many different ``values`` its group holds after it, where ``deltas`` adds (1) or takes (-1) one."""
    after = running(pairs(groups, values), deltas)
    return running(groups, crossings(after, deltas, 1))


def crossings(after: Ints, deltas: Ints, mark: int) -> Ints:
    """1 where a running sum comes up to ``mark``, -1 where it falls below, else 0; ``deltas`` are 1 or -1."""
    up: Ints = ((after == mark) & (deltas > 0)).astype(np.int64)
    down: Ints = ((after == mark - 1) & (deltas < 0)).astype(np.int64)
    return up - down


def pairs(first: Ints, second: Ints) -> Ints:
    """One number for each different pair of numbers that are not negative."""
    return first * (int(second.max(initial=0)) + 1) + second


def peak(deltas: Ints) -> int:
    """The highest that a sum of ``deltas`` gets, 0 at the least."""
    return max(int(np.cumsum(deltas).max(initial=0)), 0)


def count(values: Ints, size: int) -> list[int]:
    """How often each number below ``size`` is among ``values``."""
    return [int(n) for n in np.bincount(values, minlength=size)]
