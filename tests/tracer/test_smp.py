"""Two vCPUs: one total order, tables that are right, and the use the patch was made for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from analyzer.model.audit import audit
from analyzer.model.machine import Mmu
from analyzer.model.parameters import parameters
from analyzer.replay import feed
from db.check.verify import verify
from db.trace import TraceReader
from tests.analyzer.test_kernel import assert_cores_agree
from tests.tracer import names
from tracer import guest
from tracer.record import record
from tracer.request import Outcome, Request
from x86.event import Kind
from x86.registers import Mode

pytestmark = pytest.mark.boot


@pytest.fixture(scope="module")
def smp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A boot of Debian's cloud kernel on two vCPUs, stopped now and then to be held against memory."""
    trace = tmp_path_factory.mktemp("smp") / "smp.db"
    return trace, record(Request(trace, guest=guest.load("cloud-amd64-smp"), checks=4, version="test"))


def test_the_tables_of_both_vcpus_are_rebuilt(smp: tuple[Path, Outcome]) -> None:
    _, outcome = smp
    assert (outcome.ended, outcome.lost) == ("poweroff", 0)
    verdict = outcome.verdict
    assert verdict is not None
    assert verdict.details == []
    assert (verdict.missing, verdict.different, verdict.leaves_different) == (0, 0, 0)
    assert verdict.leaves is not None
    assert verdict.leaves > 10000


def test_the_guest_shows_what_its_recipe_says_and_its_trace_is_verified(smp: tuple[Path, Outcome]) -> None:
    trace, outcome = smp
    assert outcome.not_shown == []
    with TraceReader(trace) as opened:
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []
        names.check(opened)
        checks = opened.rows("memory_check")
    assert len(checks) > 1
    assert sum(check["missing"] + check["different"] + (check["leaves_different"] or 0) for check in checks) == 0


def test_both_vcpus_are_in_the_trace(smp: tuple[Path, Outcome]) -> None:
    with TraceReader(smp[0]) as trace:
        assert trace.recording["vcpus"] == 2
        events = Counter((event.vcpu, event.kind) for event in trace.events())
    for kind in (Kind.REGS, Kind.CR3, Kind.WRITE, Kind.ACCESS):
        assert events[0, kind] > 1
        assert events[1, kind] > 1


def test_both_cores_make_the_same_of_it(smp: tuple[Path, Outcome]) -> None:
    with TraceReader(smp[0]) as trace:
        assert_cores_agree(trace)


def test_the_second_vcpu_comes_up_without_paging_while_the_first_is_in_long_mode(smp: tuple[Path, Outcome]) -> None:
    """It finds the pages that the first made before it had paging, and goes on to share those of long mode."""
    mmu = Mmu(parameters("kvm-2.6.20"), 2)
    first, second = mmu.contexts
    side_by_side = hits_without_paging = shared_roots = 0
    with TraceReader(smp[0]) as trace:
        for number, event in enumerate(trace.events()):
            before = mmu.counters.get_page_hits
            feed(mmu, event)
            if event.vcpu == 1 and first.root_level == Mode.LONG and second.root_level == Mode.NONE:
                live = {page.role & 15 for page in mmu.cache.active.values()}
                side_by_side += live >= {Mode.NONE, Mode.LONG}
                hits_without_paging += mmu.counters.get_page_hits - before
            if event.kind == Kind.CR3 and event.vcpu == 1 and first.roots and second.roots:
                shared_roots += first.roots.pages == second.roots.pages
            if number % 100_000 == 0:
                audit(mmu)
    audit(mmu)
    assert side_by_side > 0
    assert hits_without_paging >= 4
    assert shared_roots > 0
