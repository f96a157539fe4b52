"""A real KVM's log as facts, and a model held against it."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from analyzer import livekvm
from analyzer.livekvm import Comparison, Key, LiveRun
from analyzer.model.parameters import parameters
from analyzer.model.role import Role
from db.check.verify import verify
from db.errors import UsageError
from db.exchange import kvmmmu
from db.exchange.importing import import_jsonl
from db.trace import TraceReader
from tests.conftest import Cli

#: Of each guest: keys of which a model and KVM made another number of pages: how many the model made, how many KVM, and why.
#: Every other key was made, and as often, by both; none was made by one of them alone, roots included.
DIFFERENCES = {
    "walk64": {
        Key(0x126, 3, 0, 0): (1, 2, ("rights",)),
        Key(0x127, 2, 0, 0): (1, 2, ("rights",)),
        Key(0x12B, 1, 0, 0): (1, 2, ("rights",)),
        Key(0x400, 1, 0, 1): (1, 2, ("rights",)),
    },
    "walkpae": {
        Key(0x118, 1, 0, 0): (2, 1, ("unsync",)),
        Key(0x11A, 1, 0, 0): (1, 2, ("rights",)),
        Key(0x400, 1, 0, 1): (1, 2, ("rights",)),
    },
    "walk32": {
        Key(0x100, 2, 0, 0): (1, 2, ("CR0.WP",)),
        Key(0x100, 2, 1, 0): (1, 4, ("CR0.WP", "zapped root")),
        Key(0x100, 2, 2, 0): (1, 4, ("CR0.WP", "zapped root")),
        Key(0x100, 2, 3, 0): (1, 5, ("CR0.WP", "zapped root")),
        Key(0x102, 1, 0, 0): (1, 2, ("CR0.WP",)),
        Key(0x103, 1, 0, 0): (3, 2, ("unsync",)),
        Key(0x103, 1, 1, 0): (2, 1, ("unsync",)),
        Key(0x104, 1, 0, 0): (2, 4, ("rights", "zaps")),
        Key(0x400, 1, 0, 1): (2, 3, ("rights",)),
        Key(0x800, 1, 0, 1): (1, 2, ("rights",)),
    },
}
#: walkall is the three, one after the other, in one machine: what is new is what two paging modes share.
DIFFERENCES["walkall"] = {
    **DIFFERENCES["walk32"],
    **DIFFERENCES["walkpae"],
    **DIFFERENCES["walk64"],
    Key(0x200, 1, 0, 1): (2, 1, ("entry size",)),
    Key(0x400, 1, 0, 1): (4, 5, ("rights", "CR0.WP")),
}
#: Keys that were made, by guest.
MADE = {"walk64": 27, "walkpae": 20, "walk32": 35, "walkall": 69}


def log(*lines: str) -> LiveRun:
    """A log of these events, one a millisecond."""
    text = "".join(f"  vmm-9 [000] ...1. 1.{number:03}000: {line}\n" for number, line in enumerate(lines))
    return livekvm.count(kvmmmu.parse(io.StringIO(text), "log"))


def lines_of(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)


def page(what: str, gfn: int, level: int, more: str = "8-byte q0 wux", end: str = "root 0 sync") -> str:
    return f"kvm_mmu_{what}: sp gen 0 gfn {gfn:x} l{level} {more} nxe ad {end}"


def made(gfn: int, level: int, more: str = "8-byte q0 wux") -> str:
    return page("get_page", gfn, level, more, "root 0 sync new")


OFF = [made(i << 18, 2, "8-byte q0 direct wux") for i in range(4)]


@pytest.fixture(scope="module", params=DIFFERENCES)
def walked(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, LiveRun, Comparison]:
    folder, name = tmp_path_factory.mktemp("walk"), request.param
    import_jsonl(shared / "guests" / name / "events.jsonl", folder / "model.db", False, "test")
    live = livekvm.import_log(shared / "kvmmmu" / f"{name}.trace.gz", folder / "kvm.db", False, "6.1.176", "test")
    with TraceReader(folder / "model.db") as trace:
        return name, live, livekvm.compare(trace, parameters("kvm-2.6.20"), live)


def test_model_and_kvm_made_the_same_pages(walked: tuple[str, LiveRun, Comparison]) -> None:
    name, live, compared = walked
    assert compared.both == len(live.keys) == MADE[name]
    assert all(difference.model and difference.live for difference in compared.differences)


def test_each_difference_has_its_reason(walked: tuple[str, LiveRun, Comparison]) -> None:
    name, _, compared = walked
    found = {difference.key: (difference.model, difference.live, difference.reasons) for difference in compared.differences}
    assert found == DIFFERENCES[name]
    assert compared.equal == MADE[name] - len(found)
    assert {reason for difference in compared.differences for reason in difference.reasons} <= set(livekvm.REASONS)


def test_a_page_that_no_rule_allows_is_not_explained(shared: Path, tmp_path: Path) -> None:
    """One page is gone from the log, one that the guest never had is in it."""
    lines = lines_of(shared / "kvmmmu" / "walk64.trace.gz")
    wanted = next(line for line in lines if "gfn 124 l1 8-byte q0 w-x" in line and line.endswith("new\n"))
    changed = [line for line in lines if line != wanted] + [wanted.replace("gfn 124", "gfn 999")]
    (tmp_path / "kvm.trace").write_text("".join(changed))
    import_jsonl(shared / "guests" / "walk64" / "events.jsonl", tmp_path / "model.db", False, "test")
    live = livekvm.import_log(tmp_path / "kvm.trace", tmp_path / "kvm.db", False, None, "test")
    with TraceReader(tmp_path / "model.db") as trace:
        compared = livekvm.compare(trace, parameters("kvm-2.6.20"), live)
    assert {d.key.gfn: (d.model, d.live) for d in compared.differences if not d.reasons} == {0x124: (1, 0), 0x999: (0, 1)}


def test_glevels_come_from_the_root_in_force() -> None:
    run = log(
        *OFF,
        made(0x200, 1, "8-byte q0 direct wux"),
        *(made(0x10, 2, f"4-byte q{i} wux") for i in range(4)),
        made(0x600, 1, "4-byte q1 direct wux"),
        made(0x20, 2),
        made(0x21, 1),
        *(line.replace("new", "existing") for line in OFF),
        made(0x30, 4),
        made(0x31, 3),
        made(0x32, 2),
        made(0x40000, 2, "8-byte q0 direct w-x"),
        made(0x33, 1),
    )
    assert {(role.glevels, role.level, role.quadrant, role.metaphysical) for role in run.roles} == {
        *((0, 2, quadrant, 1) for quadrant in range(4)),
        (0, 1, 1, 1),
        *((2, 2, quadrant, 0) for quadrant in range(4)),
        (2, 1, 1, 1),
        (3, 2, 0, 0),
        (3, 1, 0, 0),
        (4, 4, 0, 0),
        (4, 3, 0, 0),
        (4, 2, 0, 0),
        (4, 2, 0, 1),
        (4, 1, 0, 0),
    }
    assert Key(0x400, 1, 1, 1) in run.keys, "the second half of a 4 MiB page"
    assert Key(0, 2, 3, 1) in run.keys, "the fourth root of paging off"


def test_each_thread_has_a_mode_of_its_own() -> None:
    text = "".join(
        f"  vmm-{thread} [000] 1.0: {line}\n"
        for thread, line in (
            (1, made(0x30, 4)),
            (2, made(0x10, 2, "4-byte q0 wux")),
            (1, made(0x31, 2)),
            (2, made(0x11, 1, "4-byte q0 wux")),
        )
    )
    run = livekvm.count(kvmmmu.parse(io.StringIO(text), "log"))
    assert {(role.glevels, role.level) for role in run.roles} == {(4, 4), (4, 2), (2, 2), (2, 1)}
    assert len(run.threads) == 2


def test_zaps_are_counted_as_the_table_says() -> None:
    """Two rights of one key; one zapped; a root zapped in use and released later; the end of the machine left out."""
    run = log(
        made(0x30, 4),
        made(0x31, 1, "8-byte q0 w-x"),
        made(0x31, 1),
        page("prepare_zap_page", 0x31, 1, "8-byte q0 w-x"),
        page("prepare_zap_page", 0x30, 4, end="root 1 sync"),
        made(0x30, 4),
        page("prepare_zap_page", 0x30, 4, "8-byte q0 wux invalid"),
        page("unsync_page", 0x31, 1),
        page("sync_page", 0x31, 1, end="root 0 unsync"),
        page("prepare_zap_page", 0x31, 1),
        page("prepare_zap_page", 0x30, 4),
    )
    leaf, root = run.keys[Key(0x31, 1, 0, 0)], run.keys[Key(0x30, 4, 0, 0)]
    assert (leaf.made, leaf.zapped, leaf.rights, leaf.unsyncs) == (2, 1, {"w-x", "wux"}, 1)
    assert (root.made, root.zapped) == (2, 1)
    facts = livekvm.facts(run)
    assert facts["zaps"]["total"] == 2
    assert facts["live"]["total"] == 2
    assert facts["live_kvm"] == {
        "syncs": 1,
        "unsyncs": 1,
        "roots_zapped": 1,
        "roots_released": 1,
        "zapped_at_the_end": 2,
        "zapped_unseen": 0,
        "keys": 2,
        "keys_with_several_rights": 1,
    }
    row = next(row for row in facts["roles"] if row["level"] == 1)
    assert (row["made"], row["live"], row["peak"], row["deaths"], row["unsyncs"]) == (2, 1, 2, {"zap": 1}, 1)


def test_what_was_not_traced_is_blank() -> None:
    assert {"zaps", "access", "events", "fills"}.isdisjoint(livekvm.facts(log(*OFF)))
    facts = livekvm.facts(log(*OFF, "kvm_exit: vcpu 0 reason write_cr3 rip 0x1", "kvm_page_fault: vcpu 0", "kvm_inj_exception: #PF (0x2)"))
    assert facts["events"] == {"cr3": 1, "invlpg": 0}
    assert facts["access"] == {"faults": 1, "guest_faults": 1}


def test_a_whole_boot_is_counted_line_by_line(shared: Path) -> None:
    path = shared / "kvmmmu" / "linux-686.trace.gz"
    lines = [line.rstrip() for line in lines_of(path)]
    facts = livekvm.facts(livekvm.count(kvmmmu.read(path)))
    gets = [line for line in lines if "kvm_mmu_get_page" in line]
    assert facts["get_page"]["lookups"] == len(gets) > 60_000
    assert facts["get_page"]["hits"] == sum(line.endswith("existing") for line in gets)
    zaps = [line for line in lines if "kvm_mmu_prepare_zap_page" in line and " invalid " not in line]
    assert facts["zaps"]["total"] + facts["live_kvm"]["zapped_at_the_end"] == len(zaps)
    assert facts["live_kvm"]["zapped_unseen"] == 0
    roots = {row["quadrant"]: row["lookups"] for row in facts["roles"] if (row["glevels"], row["level"]) == (2, 2)}
    assert roots == dict.fromkeys(range(4), sum(" l2 4-byte q0 " in line for line in gets))
    assert {Role(row["glevels"], row["level"], 0, 0)[:2] for row in facts["roles"]} == {(0, 1), (0, 2), (2, 1), (2, 2)}


def test_a_log_becomes_a_sealed_trace_with_a_run(shared: Path, tmp_path: Path, cli: Cli) -> None:
    target = tmp_path / "kvm.db"
    done = cli("import", shared / "kvmmmu" / "walkpae.trace.gz", "-o", target, "--kernel", "6.1.176")
    assert done.returncode == 0, done.stderr
    with TraceReader(target) as trace:
        assert [finding.check.name for finding in verify(trace) if finding.failures] == []
        assert trace.count() == 0
        (run,) = trace.rows("run")
    assert (run["model"], run["core"], run["events"]) == ("kvm-6.1.176 (live)", "live", 707)
    report = cli("report", target)
    assert "kvm-6.1.176 (live) · 707 tracepoints" in report.stdout
    assert "48 lookups, 52.1% hit    33 faults, 2 of them the guest's own" in report.stdout
    assert json.loads(cli("report", target, "--format", "json").stdout)["facts"] == json.loads(run["facts"])
    refused = cli("replay", target)
    assert refused.returncode == 2
    assert "what a live KVM did" in refused.stderr


def test_the_verb_holds_a_log_against_a_trace(shared: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("import", shared / "guests" / "walkpae" / "events.jsonl", "-o", tmp_path / "walkpae.db").returncode == 0
    log = shared / "kvmmmu" / "walkpae.trace.gz"
    done = cli("import", log, "-o", tmp_path / "kvm.db", "--against", tmp_path / "walkpae.db")
    assert done.returncode == 0, done.stderr
    assert "both made the pages of 20 keys, 17 of them equally often; 3 keys differ" in done.stdout
    assert "NOT EXPLAINED" not in done.stdout
    assert cli("import", shared / "guests" / "walkpae" / "events.jsonl", "-o", tmp_path / "x.db", "--kernel", "6.1").returncode == 2


def test_lost_events_lead_the_report(tmp_path: Path, cli: Cli) -> None:
    lines = "".join(f" vmm-9 [000] 1.0: {line}\n" for line in OFF)
    (tmp_path / "kvm.trace").write_text("# tracer: nop\n# entries-in-buffer/entries-written: 4/11   #P:1\n" + lines)
    assert cli("import", tmp_path / "kvm.trace", "-o", tmp_path / "kvm.db").returncode == 0
    shown = cli("report", tmp_path / "kvm.db").stdout
    assert "LOST 7 events: lost by the host's tracer, says line 2" in shown


def test_a_log_without_shadow_pages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kvm.trace").write_text(" vmm-9 [000] 1.0: kvm_entry: vcpu 0\n")
    with pytest.raises(UsageError, match="no event of a shadow page"):
        livekvm.import_log(tmp_path / "kvm.trace", tmp_path / "kvm.db", False, None, "test")
    assert [path.name for path in tmp_path.iterdir()] == ["kvm.trace"]
