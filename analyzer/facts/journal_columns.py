"""A journal made ready to be asked: its columns as numbers to compute with, and the births and deaths of pages apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.facts.grouped_sums import Ints
from analyzer.model.journal import Journal, What


@dataclass(frozen=True)
class Rows:
    """The rows of a journal, a column each, and the keys of the pages by birth number."""

    event: Ints
    what: NDArray[np.uint8]
    vcpu: Ints
    cause: Ints
    page: Ints
    other: Ints
    gfn: NDArray[np.uint64]
    """By birth number: the frame of each page that was ever made."""
    frame: Ints
    """By birth number: the frame's position among all frames that ever had a page, in order of gfn."""
    role: Ints
    """By birth number: the role word."""
    made: Ints
    """By birth number: the row that made the page."""
    died: Ints
    """By birth number: the row in which it died, -1 where it lives."""

    def of(self, *what: What) -> Ints:
        """The numbers of the rows of these kinds, in order."""
        return np.flatnonzero(np.isin(self.what, what)).astype(np.int64)

    @property
    def level(self) -> Ints:
        """By birth number: the level of each page."""
        return self.role >> 4 & 15


def rows_of(journal: Journal) -> Rows:
    """Take a journal apart."""
    rows, births = journal.rows, journal.births
    what = np.ascontiguousarray(rows["what"])
    page = rows["page"].astype(np.int64)
    _, frame = np.unique(births["gfn"], return_inverse=True)
    died = np.full(len(births), -1, np.int64)
    deaths = np.flatnonzero(what == What.ZAP_FREED)
    died[page[deaths]] = deaths
    return Rows(
        event=rows["event"].astype(np.int64),
        what=what,
        vcpu=rows["vcpu"].astype(np.int64),
        cause=rows["cause"].astype(np.int64),
        page=page,
        other=rows["other"].astype(np.int64),
        gfn=np.ascontiguousarray(births["gfn"]),
        frame=frame.astype(np.int64),
        role=births["role"].astype(np.int64),
        made=np.flatnonzero(what == What.ALLOC).astype(np.int64),
        died=died,
    )


@dataclass(frozen=True)
class Lives:
    """Births and deaths of shadow pages alone, in order."""

    row: Ints
    """Which row of the journal."""
    page: Ints
    delta: Ints
    """1 for a birth, -1 for a death."""


def lives(rows: Rows) -> Lives:
    """The births and deaths of a journal."""
    row = rows.of(What.ALLOC, What.ZAP_FREED)
    return Lives(row, rows.page[row], np.where(rows.what[row] == What.ALLOC, 1, -1).astype(np.int64))
