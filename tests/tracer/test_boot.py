"""One real boot of Debian's kernel: is what was recorded what happened?"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from db.check.rebuild import Rebuilt, compare, rebuild
from db.trace import TraceReader
from tests.conftest import Boot
from tests.tracer import names
from x86.event import ACCESS_FAULT, ACCESS_USER, ACCESS_WRITE, Event, Kind, unpack_words
from x86.registers import CR0_PG

pytestmark = pytest.mark.boot


def test_it_ended_by_power_off_and_is_sealed(boot: Boot) -> None:
    assert boot.outcome.ended == "poweroff"
    assert boot.outcome.lost == 0
    with TraceReader(boot.trace) as trace:
        assert trace.recording["events"] == trace.count() == boot.outcome.events
        assert (trace.recording["ended"], trace.recording["lost"]) == ("poweroff", 0)
        assert trace.recording["guest"] == "cloud-amd64"
        assert re.fullmatch(r"[0-9a-f]{64}", trace.recording["kernel_sha256"])
        assert trace.recording["kernel"].endswith("cloud-amd64")


def test_every_table_of_the_guest_is_what_the_events_rebuild(boot: Boot) -> None:
    verdict = boot.outcome.verdict
    assert verdict is not None
    assert verdict.details == []
    assert (verdict.missing, verdict.different, verdict.leaves_different) == (0, 0, 0)
    assert verdict.tables > 50
    assert verdict.entries > 5000
    assert verdict.leaves is not None
    assert verdict.leaves > 5000
    with TraceReader(boot.trace) as trace:
        (row,) = trace.rows("memory_check")
        assert (row["entries"], row["missing"], row["different"]) == (verdict.entries, 0, 0)


def test_cr3_loads_are_the_ones_qemu_logs(boot: Boot) -> None:
    """QEMU logs loads with paging on."""
    theirs = [int(value, 16) for value in re.findall(r"^CR3 update: CR3=([0-9a-f]+)", boot.log.read_text(errors="replace"), re.MULTILINE)]
    ours, paging = [], False
    with TraceReader(boot.trace) as trace:
        for event in trace.events((Kind.REGS, Kind.CR3)):
            if event.kind == Kind.REGS and isinstance(event.extra, tuple):
                paging = bool((event.extra[0] or 0) & CR0_PG)
            elif event.kind == Kind.CR3 and paging:
                ours.append(event.addr)
    assert len(theirs) > 1000
    assert ours == theirs


def test_page_faults_are_the_ones_qemu_logs(boot: Boot) -> None:
    pattern = r"v=0e e=([0-9a-f]+) .*CR2=([0-9a-f]+)"
    theirs = [(int(va, 16), int(error, 16) & 0b10110) for error, va in re.findall(pattern, boot.log.read_text(errors="replace"))]
    with TraceReader(boot.trace) as trace:
        faults = [event for event in trace.events((Kind.ACCESS,)) if event.flags & ACCESS_FAULT]
    ours = [(e.addr, 2 * bool(e.flags & ACCESS_WRITE) | 4 * bool(e.flags & ACCESS_USER) | 16 * bool(e.flags & 4)) for e in faults]
    assert len(theirs) > 1000
    assert ours == theirs


def test_phases_of_the_boot_are_marked_in_order(boot: Boot) -> None:
    with TraceReader(boot.trace) as trace:
        marks = trace.rows("mark")
    assert [mark["name"] for mark in marks] == ["reset", "kernel entry", "start_kernel", "run_init_process", "first user process"]
    assert [mark["seq"] for mark in marks] == sorted(mark["seq"] for mark in marks)
    assert marks[0]["seq"] == 0


def test_address_spaces_have_the_names_of_what_ran_in_them(boot: Boot) -> None:
    with TraceReader(boot.trace) as trace:
        spaces = names.learnt(trace, "exec")
        roots = {event.addr >> 12 & 0xFFFFFFFFFF for event in trace.events((Kind.CR3,))}
    assert (spaces[0]["comm"], spaces[0]["pid"]) == ("init", 1)
    assert len(spaces) > 100
    assert {space["comm"] for space in spaces[1:]} == {"busybox"}
    assert {space["root_gfn"] for space in spaces} <= roots
    pids = [space["pid"] for space in spaces]
    assert pids == sorted(pids)


def test_the_kernel_s_own_address_spaces_are_named_by_its_symbols(boot: Boot) -> None:
    """It starts on a table of its own; until user space there are two spaces, between which it goes each time it patches its code."""
    with TraceReader(boot.trace) as trace:
        kernel = {row["comm"]: row for row in names.learnt(trace, "symbol")}
        marks = {row["name"]: row["seq"] for row in trace.rows("mark")}
        rows = trace.stream("SELECT seq, addr FROM event WHERE kind = :kind ORDER BY seq", {"kind": Kind.CR3})
        loads = [(seq, cr3 & ~0xFFF) for seq, cr3 in rows]
    assert set(kernel) == {"early_top_pgt", "init_mm", "poking_mm"}
    assert [root for seq, root in loads if seq <= marks["kernel entry"]][-1] == kernel["early_top_pgt"]["root"]
    booting = Counter(root for seq, root in loads if marks["start_kernel"] < seq <= marks["first user process"])
    most = [root for root, _ in booting.most_common(2)]
    assert set(most) == {kernel["init_mm"]["root"], kernel["poking_mm"]["root"]}
    assert sum(booting[root] for root in most) > 0.99 * booting.total()
    others = {root for _, root in loads if root not in most}
    assert len(others) > 2, "both are told from the roots of processes"
    patching = [root for seq, root in loads if seq <= marks["first user process"] and root in most]
    assert {after for before, after in pairwise(patching) if before == kernel["poking_mm"]["root"]} == {kernel["init_mm"]["root"]}


def test_names_are_what_the_guest_printed(boot: Boot) -> None:
    assert boot.outcome.not_shown == []
    with TraceReader(boot.trace) as trace:
        names.check(trace)


def test_the_console_is_kept(boot: Boot) -> None:
    with TraceReader(boot.trace) as trace:
        lines = [row["line"] for row in trace.rows("console")]
    assert "shadowtrace: init" in lines
    assert "shadowtrace: 110 processes" in lines


def test_content_comes_before_use(boot: Boot) -> None:
    """Every store is to a page whose content the trace has given."""
    known = set()
    with TraceReader(boot.trace) as trace:
        for event in trace.events((Kind.PAGE, Kind.WRITE)):
            if event.kind == Kind.PAGE:
                known.add(event.addr >> 12)
            else:
                assert event.addr >> 12 in known


def compared(boot: Boot, keep: Callable[[int, Event], bool]) -> tuple[int, int]:
    """Missing and different entries when only some events are used to rebuild, against the guest's own tables."""
    with TraceReader(boot.trace) as trace:
        rebuilt = Rebuilt()
        for number, event in enumerate(trace.events((Kind.REGS, Kind.CR3, Kind.WRITE, Kind.PAGE))):
            if keep(number, event):
                rebuilt.apply(event)
        pages = {}
        for row in trace.rows("end_table"):
            page = bytearray(4096)
            for index, word in unpack_words(row["words"]):
                page[8 * index : 8 * index + 8] = word.to_bytes(8, "little")
            pages[row["gfn"]] = bytes(page)
        cpus = rebuild(trace).cpus
    verdict = compare(rebuilt, pages.get, cpus)
    return verdict.missing, verdict.different


def test_the_check_finds_nothing_where_nothing_is_dropped(boot: Boot) -> None:
    assert compared(boot, lambda number, event: True) == (0, 0)


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.PAGE])
def test_the_check_notices_one_dropped_event(boot: Boot, kind: Kind) -> None:
    """The last event of its place is dropped, of a place that ends with a present entry."""
    with TraceReader(boot.trace) as trace:
        live = {row["gfn"] for row in trace.rows("end_table")}
        last = {}
        for number, event in enumerate(trace.events((Kind.REGS, Kind.CR3, Kind.WRITE, Kind.PAGE))):
            if event.kind == kind and event.addr >> 12 in live:
                last[event.addr] = (number, event)
    dropped = next(number for number, event in last.values() if event.kind == Kind.PAGE or event.value & 1)
    assert compared(boot, lambda number, event: number != dropped) != (0, 0)


def test_the_check_notices_a_cr3_load_that_was_dropped_before_the_end(boot: Boot) -> None:
    with TraceReader(boot.trace) as trace:
        loads = [event.addr for event in trace.events((Kind.CR3,))]
    last_value = max(number for number, value in enumerate(loads) if value != loads[-1])
    seen = iter(range(len(loads)))
    assert compared(boot, lambda number, event: event.kind != Kind.CR3 or next(seen) <= last_value) != (0, 0)


def test_views_read_in_sql(boot: Boot) -> None:
    connection = sqlite3.connect(f"file:{boot.trace}?mode=ro", uri=True)
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'view'")]
    for name in names:
        assert connection.execute(f"SELECT * FROM {name} LIMIT 1").fetchone() is not None, name
    assert {"init", "init_mm", None} <= {comm for (comm,) in connection.execute("SELECT DISTINCT comm FROM v_cr3_load")}
    connection.close()


def test_bytes_an_event(boot: Boot) -> None:
    assert Path(boot.trace).stat().st_size / boot.outcome.events <= 24
