"""The fast core against the readable one: the same counters, journal and pages, bit for bit, whatever a guest does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.facts.collect import state
from analyzer.model.kernel import Kernel
from analyzer.model.machine import Mmu
from analyzer.model.outcome import Outcome, outcome
from analyzer.model.parameters import parameters
from analyzer.replay import replay, replay_fast
from db.columns import Columns
from db.trace import TraceReader
from tests.analyzer.guests import Step, apply, start, steps
from tests.analyzer.test_properties import VARIANTS
from x86.event import ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, Kind, signed

MORE_VARIANTS = [
    *VARIANTS,
    {"model": "kvm-2.6.24", "pages": 40, "ram_pages": 9, "strict": True},
    {"model": "kvm-2.6.24", "pages": 48, "keep_roots": 1, "hash": "hash_64", "buckets": 1},
    {"model": "kvm-2.6.20", "pages": 40, "min_free": 16, "refill": 30},
    {"model": "uncached", "pages": 64, "keep_roots": 2},
]


def columns(events: list[Step], vcpus: int) -> Columns:
    """Steps of a random guest as columns of events."""
    rows: list[tuple[int, int, int, int, int]] = []
    registers: list[list[int]] = []
    pdptes: list[list[int]] = []
    offsets, words = [0], []
    for name, *arguments in events:
        vcpu = arguments[0] if name != "page" and arguments[0] < vcpus else 0
        if name == "regs":
            rows.append((Kind.REGS, vcpu, 0, 0, len(registers)))
            mask = sum(1 << i for i, value in enumerate(arguments[1:]) if value is not None)
            registers.append([mask, *(value or 0 for value in arguments[1:])])
        elif name == "cr3":
            rows.append((Kind.CR3, vcpu, 0, arguments[1], len(pdptes) if len(arguments) > 2 else -1))
            pdptes += [[signed(entry) for entry in entries] for entries in arguments[2:]]
        elif name == "write":
            rows.append((Kind.WRITE, vcpu, arguments[2], arguments[1], signed(arguments[3])))
        elif name == "page":
            rows.append((Kind.PAGE, 0, 0, arguments[0] << 12, len(offsets) - 1))
            words += arguments[1]
            offsets.append(len(words))
        elif name == "access":
            bits = (ACCESS_WRITE, ACCESS_USER, ACCESS_FETCH)
            rows.append((Kind.ACCESS, vcpu, sum(b for b, on in zip(bits, arguments[2:], strict=True) if on), arguments[1], 0))
        else:
            rows.append((Kind.INVLPG, vcpu, 0, arguments[1], 0))
    table = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], [], []]
    return Columns(
        np.arange(1, len(table[0]) + 1),
        np.array(table[0], np.uint8),
        np.array(table[1], np.uint8),
        np.array(table[2], np.uint8),
        np.array([signed(n) for n in table[3]], np.int64),
        np.array(table[4], np.int64),
        np.array(registers, np.int64).reshape(-1, 4),
        np.array(pdptes, np.int64).reshape(-1, 4),
        np.array(offsets, np.int64),
        np.array([index for index, _ in words], np.uint16),
        np.array([signed(word) for _, word in words], np.int64),
    )


def assert_same(fast: Outcome, reference: Outcome) -> None:
    """Every field of two outcomes is equal, journals byte for byte."""
    assert dataclasses.asdict(fast.counters) == dataclasses.asdict(reference.counters)
    assert fast.journal.rows.tobytes() == reference.journal.rows.tobytes()
    assert fast.journal.births.tobytes() == reference.journal.births.tobytes()
    assert list(state(fast)) == list(state(reference))
    for name in ("parameters", "pages", "free", "buckets", "nonzero_pages", "memory_crc32"):
        assert getattr(fast, name) == getattr(reference, name), name


def assert_cores_agree(trace: TraceReader, model: str = "kvm-2.6.20") -> Outcome:
    """A trace comes out the same on both cores: what comes out."""
    fast = replay_fast(trace, parameters(model)).outcome()
    assert_same(fast, outcome(replay(trace, parameters(model))))
    return fast


@pytest.mark.parametrize("variant", MORE_VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))
@given(mode=st.sampled_from(["two-level", "pae", "long"]), events=steps(), vcpus=st.integers(1, 2))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_both_cores_leave_the_same(variant: dict[str, object], mode: str, events: list[Step], vcpus: int) -> None:
    mmu = Mmu(parameters(**variant), vcpus)
    for step in start(mode) + events:
        apply(mmu, step, vcpus)
    kernel = Kernel(parameters(**variant), vcpus)
    kernel.feed(columns(start(mode) + events, vcpus))
    assert_same(kernel.outcome(), outcome(mmu))
