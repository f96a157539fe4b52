"""Whatever a guest does, the model stays consistent with itself, and ends."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.facts.collect import facts, state
from analyzer.model.audit import AuditError, audit
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from analyzer.model.parameters import MODELS, parameters
from tests.analyzer.guests import Step, apply, start, steps

VARIANTS = [
    *({"model": model} for model in MODELS),
    {"model": "kvm-2.6.20", "strict": True},
    {"model": "kvm-2.6.20", "pages": 40, "keep_roots": 0},
    {"model": "kvm-2.6.20", "pages": 64, "keep_roots": 3},
    {"model": "kvm-2.6.20", "flood": 0},
    {"model": "kvm-2.6.20", "flood": 1, "hash": "hash_64"},
    {"model": "kvm-2.6.20", "ram_pages": 9},
    {"model": "uncached", "pages": 40},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))
@given(mode=st.sampled_from(["two-level", "pae", "long"]), events=steps(), vcpus=st.integers(1, 2))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_guest_breaks_the_model(variant: dict[str, object], mode: str, events: list[Step], vcpus: int) -> None:
    mmu = Mmu(parameters(**variant), vcpus)
    for step in start(mode) + events:
        apply(mmu, step, vcpus, audit)
    counters = mmu.counters
    assert counters.get_page_lookups == counters.get_page_hits + counters.get_page_misses + counters.corner_out_of_pages
    assert counters.access_faults == (
        counters.access_shadow_fixed
        + counters.access_guest_faults
        + counters.access_write_to_shadowed
        + counters.access_mmio
        + counters.access_unresolved
    )
    end = outcome(mmu)
    assert len(list(state(end))) == facts(end)["live"]["total"] == counters.get_page_misses - counters.zaps_freed


def shadowed() -> Mmu:
    """A model with shadow pages at every level."""
    mmu = Mmu(parameters("kvm-2.6.20"))
    for step in start("long"):
        apply(mmu, step, 1)
    mmu.access(0, 0, False, False, False)
    audit(mmu)
    return mmu


def lose_a_parent(mmu: Mmu) -> None:
    next(page for page in mmu.cache.active.values() if page.parents()).parent_pte = None


def lose_from_hash(mmu: Mmu) -> None:
    next(bucket for bucket in mmu.cache.buckets if bucket).pop()


def count_a_root_twice(mmu: Mmu) -> None:
    next(page for page in mmu.cache.active.values() if page.root_count).root_count += 1


def allow_a_write(mmu: Mmu) -> None:
    leaf = next(page for page in mmu.cache.active.values() if page.role == 0x14)
    leaf.entries[511] = 1 << 12 | 3
    mmu.cache.rmap_add(leaf.index << 9 | 511)


@pytest.mark.parametrize("damage", [lose_a_parent, lose_from_hash, count_a_root_twice, allow_a_write])
def test_the_audit_notices(damage: object) -> None:
    mmu = shadowed()
    damage(mmu)  # type: ignore[operator]
    with pytest.raises(AuditError):
        audit(mmu)
