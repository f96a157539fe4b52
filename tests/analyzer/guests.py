"""Random guests for property tests: a few table frames that point at each other, and everything a guest can do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from analyzer.model.machine import Mmu

Step = tuple[Any, ...]

FRAMES = st.integers(0, 12)
#: Few addresses, in several quadrants and at several indices of each level.
ADDRESSES = st.builds(
    lambda top, table, page: top << 30 | table << 21 | page << 12, st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)
)
FLAGS = st.sampled_from([0x7, 0x67, 0x27, 0x3, 0x63, 0x5, 0x1, 0xE7, 0x87, 0x0, 0x67 | 1 << 63])
ENTRIES = st.builds(lambda frame, flags: frame << 12 | flags, st.one_of(FRAMES, st.just(0x80), st.just(1 << 28)), FLAGS)
VCPU = st.integers(0, 1)
CR0 = st.sampled_from([0x60000010, 0x11, 0x80000011, 0x80010011, 0x80010031, 0x1_0000_0000, 0x20000000])
CR4 = st.sampled_from([0, 0x10, 0x20, 0x30, 0xB0, 0x2030, 0x40000])
EFER = st.sampled_from([0, 0x100, 0x500, 0x900, 0xD01, 1 << 20])


def steps() -> st.SearchStrategy[list[Step]]:
    """Lists of events, as tuples of the model's method name and its arguments."""
    optional = lambda values: st.one_of(st.none(), values)  # noqa: E731
    step = st.one_of(
        st.tuples(st.just("regs"), VCPU, optional(CR0), optional(CR4), optional(EFER)),
        st.tuples(st.just("cr3"), VCPU, st.builds(lambda f, low: f << 12 | low, FRAMES, st.sampled_from([0, 0x20, 0x18]))),
        st.tuples(st.just("cr3"), VCPU, st.just(0x1000), st.tuples(*[st.builds(lambda f, p: f << 12 | p, FRAMES, st.integers(0, 1))] * 4)),
        st.tuples(
            st.just("write"),
            VCPU,
            st.builds(lambda f, o: f << 12 | o, FRAMES, st.sampled_from([0, 4, 8, 16, 24, 2, 0xFFC, 0xFFE, 0x800, 0xC00])),
            st.sampled_from([1, 2, 4, 8]),
            ENTRIES,
        ),
        st.tuples(st.just("page"), FRAMES, st.lists(st.tuples(st.integers(0, 7), ENTRIES), max_size=8)),
        st.tuples(st.just("access"), VCPU, ADDRESSES, st.booleans(), st.booleans(), st.booleans()),
        st.tuples(st.just("access"), VCPU, ADDRESSES, st.booleans(), st.booleans(), st.booleans()),
        st.tuples(st.just("invlpg"), VCPU, ADDRESSES),
    )
    return st.lists(step, max_size=60)


#: A guest with paging on and tables that lead somewhere, so that random steps after it meet shadow pages.
def start(mode: str) -> list[Step]:
    """Events that bring both vCPUs into a mode: ``two-level``, ``pae`` or ``long``."""
    words = [(i, (i + 2) << 12 | 0x67) for i in range(6)]
    tables: list[Step] = [("page", gfn, words) for gfn in range(1, 6)]
    registers = {"two-level": (0x80010011, 0x10, 0), "pae": (0x80010011, 0x30, 0), "long": (0x80010011, 0x30, 0x500)}[mode]
    into: list[Step] = []
    for vcpu in (0, 1):
        into += [("cr3", vcpu, 0x1000), ("regs", vcpu, *registers)]
    return tables + into


def apply(mmu: Mmu, step: Step, vcpus: int, after: Callable[[Mmu], None] | None = None) -> None:
    """Feed one step to a model; vCPUs that it lacks are vCPU 0."""
    name, *arguments = step
    if name != "page" and arguments[0] >= vcpus:
        arguments[0] = 0
    getattr(mmu, name)(*arguments)
    if after is not None:
        after(mmu)
