"""The capture from inside gdb: on one run of a guest it gives what the plugin gives, and what QEMU logs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from db.check.capture_diff import Compared, captured, compare, logged
from db.check.verify import verify
from db.trace import TraceReader
from tests.conftest import Cli
from tests.tracer import metal
from tests.tracer.test_ends import descendants, wait_for_events
from tests.tracer.test_known_guests import GUESTS, arguments
from tracer import guest, qemu, resources
from tracer.attach import Attachment, attach
from tracer.record import record
from tracer.request import Outcome, Request
from x86.event import ACCESS_FAULT, WRITE_SEEN_SHIFT, Kind, Seen

pytestmark = pytest.mark.boot

#: A whole boot, but a short one: one program, which ends, which makes the kernel panic and restart the machine. Without
#: noreplace-smp the kernel loads cr3 another 16 thousand times, two stops each.
APPEND = "console=ttyS0 quiet panic=-1 noreplace-smp rdinit=/bin/busybox -- true"
CLOCK = ["-rtc", "base=2020-01-01,clock=vm"]

#: With SeaBIOS the 32-bit kernel looks long for the MP table, and maps what is left of the BIOS's area anew every 16 bytes: 40,000
#: stores to one table and as many INVLPGs, a stop each. qboot puts that table where the kernel looks earlier.
FIRMWARE = {"cloud-amd64": [], "686": ["-bios", "qboot.rom"]}

#: More changes than this are made to the tables of each guest.
STORES = {"cloud-amd64": 5000, "686": 3000}


def counted(how: str, log: Path) -> list[str]:
    """Arguments for a run on instruction counts that is recorded by QEMU itself, or replayed."""
    return ["-append", APPEND, "-icount", f"shift=3,sleep=off,rr={how},rrfile={log}", *CLOCK]


@dataclass(frozen=True)
class Runs:
    """One run of a guest, replayed: both engines' traces, how they ended, QEMU's log."""

    guest: str
    plugin: Path
    gdb: Path
    log: Path
    plugin_outcome: Outcome
    gdb_outcome: Outcome


@pytest.fixture(scope="module", params=["cloud-amd64", "686"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """QEMU alone records the run, as nobody disturbs it; both engines see it replayed."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = guest.load(request.param)
    replay_log, log = folder / "run.rr", folder / "qemu.log"
    firmware = FIRMWARE[request.param]
    size = qemu.ram_bytes(recipe.arguments(recipe.images()))
    command = [
        qemu.find_qemu(None),
        *("-object", f"memory-backend-ram,id=shadowtrace-ram,size={size},share=on", *recipe.arguments(recipe.images()), *firmware),
        *("-machine", "memory-backend=shadowtrace-ram", "-accel", "tcg", "-nic", "none", "-no-reboot", *counted("record", replay_log)),
    ]
    subprocess.run(command, check=True, timeout=500, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    outcomes = {}
    for engine, logging in (("plugin", ["-d", "mmu,int", "-D", str(log)]), ("gdb", [])):
        arguments = [*firmware, *counted("replay", replay_log), *logging]
        traced = Request(folder / f"{engine}.db", recipe, arguments, engine=engine, version="test")
        outcomes[engine] = record(traced)
    yield Runs(request.param, folder / "plugin.db", folder / "gdb.db", log, outcomes["plugin"], outcomes["gdb"])
    replay_log.unlink()


def by_name(lists: list[Compared]) -> dict[str, Compared]:
    return {compared.name: compared for compared in lists}


def test_loads_stores_and_faults_are_the_plugin_s(runs: Runs) -> None:
    with TraceReader(runs.plugin) as plugin, TraceReader(runs.gdb) as gdb:
        lists = by_name(compare(captured(plugin), captured(gdb)))
    assert [(name, compared.difference, compared.left_out) for name, compared in lists.items() if compared.difference] == []
    assert lists["cr3 loads"].ours > 100
    assert lists["stores to tables"].ours > STORES[runs.guest]
    assert lists["page faults"].ours > 10


def test_both_are_what_qemu_logs(runs: Runs) -> None:
    told = logged(runs.log)
    for path in (runs.plugin, runs.gdb):
        with TraceReader(path) as trace:
            lists = by_name(compare(captured(trace), told))
        for name in ("cr3 loads", "page faults"):
            assert lists[name].difference is None, (path.name, name)
            assert not lists[name].left_out


def test_the_same_address_spaces_are_named(runs: Runs) -> None:
    """The plugin notes them without a stop, gdb stops at the same functions."""
    found = []
    for path in (runs.plugin, runs.gdb):
        with TraceReader(path) as trace:
            found.append([(row["learnt"], row["root"], row["pid"], row["comm"], row["argv"]) for row in trace.rows("address_space")])
    assert found[0] == found[1]
    assert "exec" in {row[0] for row in found[0]}


def test_modes_and_invlpgs_are_the_plugin_s(runs: Runs) -> None:
    """Compatibility code's far jumps and the like aside, these are not asked for; they come with the sites."""
    found = []
    for path in (runs.plugin, runs.gdb):
        with TraceReader(path) as trace:
            found.append([(e.kind, e.addr, e.extra) for e in trace.events((Kind.REGS, Kind.INVLPG))])
    assert found[0] == found[1]


def test_the_tables_are_rebuilt_and_the_trace_verified(runs: Runs) -> None:
    verdict = runs.gdb_outcome.verdict
    assert verdict is not None
    assert runs.gdb_outcome.lost == 0
    assert verdict.details == []
    assert (verdict.missing, verdict.different, verdict.leaves_different) == (0, 0, 0)
    assert verdict.entries > 1000
    with TraceReader(runs.gdb) as trace:
        assert (trace.recording["engine"], trace.recording["touch"]) == ("gdb", "none")
        assert [finding.check.name for finding in verify(trace) if finding.failures] == []
        accesses = list(trace.events((Kind.ACCESS,)))
        ways = {event.flags >> WRITE_SEEN_SHIFT for event in trace.events((Kind.WRITE,))}
    assert all(event.flags & ACCESS_FAULT for event in accesses)
    assert ways == {Seen.EXACT}


def test_the_verb_says_so(runs: Runs, cli: Cli) -> None:
    done = cli("diff", "--capture", runs.plugin, runs.gdb, "--log", runs.log)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stores to tables: equal" in done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trace = tmp_path_factory.mktemp("bare") / "bare.db"
    outcome = record(Request(trace, guest.load("bare"), engine="gdb", seconds=60, version="test"))
    assert (outcome.ended, outcome.lost) == ("exit", 0)
    return trace


def test_the_bare_metal_guest_gives_exactly_its_loads_modes_invlpgs_and_faults(bare: Path) -> None:
    expected = json.loads((resources.scripts() / "guests" / "bare" / "expect.json").read_text())
    with TraceReader(bare) as opened:
        events = list(opened.events())
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []
    assert [hex(e.addr) for e in events if e.kind == Kind.CR3] == expected["cr3"]
    assert [hex(e.addr) for e in events if e.kind == Kind.INVLPG] == expected["invlpg"]
    faults = [e for e in events if e.kind == Kind.ACCESS]
    as_lines = [{"va": hex(e.addr), "write": e.flags & 1, "user": e.flags >> 1 & 1, "fetch": e.flags >> 2 & 1} for e in faults]
    assert as_lines == expected["faults"]
    assert [[hex(value) for value in e.extra or () if isinstance(value, int)] for e in events if e.kind == Kind.REGS] == expected["modes"]
    loads = [[hex(entry) for entry in e.extra or () if isinstance(entry, int)] for e in events if e.kind == Kind.CR3 and e.extra]
    assert loads == expected["pdptes"]


def against_plugin(gdb: Path, folder: Path, request: Request) -> list[Compared]:
    record(request)
    with TraceReader(request.output) as ours, TraceReader(gdb) as theirs:
        return compare(captured(ours), captured(theirs))


def test_the_bare_metal_guest_s_stores_are_the_plugin_s(bare: Path, tmp_path: Path) -> None:
    lists = by_name(against_plugin(bare, tmp_path, Request(tmp_path / "plugin.db", guest.load("bare"), seconds=60, version="test")))
    assert lists["stores to tables"].ours > 15
    assert [compared for compared in lists.values() if compared.difference or compared.left_out] == []


@pytest.mark.parametrize("name", GUESTS)
def test_known_guests_are_captured_alike(name: str, shared: Path, tmp_path: Path) -> None:
    own = arguments(shared / "guests", name)
    outcome = record(Request(tmp_path / "gdb.db", arguments=own, engine="gdb", seconds=60, version="test"))
    assert (outcome.lost, outcome.verdict.missing, outcome.verdict.different) == (0, 0, 0)  # type: ignore[union-attr]
    lists = against_plugin(tmp_path / "gdb.db", tmp_path, Request(tmp_path / "plugin.db", arguments=own, seconds=60, version="test"))
    assert [compared for compared in lists if compared.difference or compared.left_out] == []


@pytest.mark.parametrize("name", ["alias", "cross", "gate", "missing", "rom", "touch"])
def test_guests_of_a_few_instructions_are_captured_alike(name: str, tmp_path: Path) -> None:
    """Among them a store across two tables, and an interrupt table in ROM."""
    (tmp_path / "plugin").mkdir()
    ours, _ = metal.recorded(name, tmp_path / "plugin")
    theirs, outcome = metal.recorded(name, tmp_path, engine="gdb")
    assert (outcome.ended, outcome.lost) == ("exit", 0)
    with TraceReader(ours) as plugin, TraceReader(theirs) as gdb:
        lists = compare(captured(plugin), captured(gdb))
        assert list(plugin.events((Kind.INVLPG,))) == list(gdb.events((Kind.INVLPG,)))
    assert [compared for compared in lists if compared.difference or compared.left_out] == []
    assert sum(compared.ours for compared in lists) > 1


def test_each_invlpg_of_64_bit_code_is_the_plugin_s(tmp_path: Path) -> None:
    """Whatever prefixes it has. Of the stores of one instruction gdb sees the sum: those are not compared."""
    (tmp_path / "plugin").mkdir()
    ours, _ = metal.recorded("long", tmp_path / "plugin")
    theirs, outcome = metal.recorded("long", tmp_path, engine="gdb")
    verdict = outcome.verdict
    assert verdict is not None
    assert (outcome.ended, outcome.lost, verdict.details, verdict.missing, verdict.different) == ("exit", 0, [], 0, 0)
    found = []
    for path in (ours, theirs):
        with TraceReader(path) as trace:
            found.append([(event.kind, event.addr) for event in trace.events((Kind.CR3, Kind.INVLPG))])
    assert found[0] == found[1]
    assert len(found[0]) > 20


def test_a_watchpoint_that_the_stub_refuses_is_a_loss(tmp_path: Path) -> None:
    """QEMU takes none that goes beyond the end of the address space. The plugin, which needs none, loses nothing."""
    trace, outcome = metal.recorded("wrap", tmp_path, engine="gdb")
    assert outcome.lost == 1
    with TraceReader(trace) as opened:
        (loss,) = opened.rows("loss")
        assert (opened.recording["lost"], [event.addr for event in opened.events((Kind.WRITE,))]) == (1, [0x23008])
    assert (loss["count"], loss["cause"].split(" (")[0]) == (1, "watchpoints or breakpoints that QEMU's stub refused")
    (tmp_path / "plugin").mkdir()
    assert metal.recorded("wrap", tmp_path / "plugin")[1].lost == 0


def test_net_sees_what_differs_between_stops(tmp_path: Path) -> None:
    outcome = record(Request(tmp_path / "net.db", guest.load("bare"), engine="gdb-net", seconds=60, version="test"))
    assert outcome.lost == 0
    with TraceReader(tmp_path / "net.db") as trace:
        assert trace.recording["engine"] == "gdb-net"
        writes = list(trace.events((Kind.WRITE,)))
        loads = [hex(event.addr) for event in trace.events((Kind.CR3,))]
    assert writes
    assert {event.flags >> WRITE_SEEN_SHIFT for event in writes} == {Seen.NET}
    # Two task switches come and go between two stops.
    assert loads == ["0x20000", "0x20000", "0x24000", "0x24000", "0x27000"]


def test_several_vcpus_are_refused(tmp_path: Path, cli: Cli) -> None:
    done = cli("record", "cloud-amd64-smp", "--engine", "gdb", "-o", tmp_path / "t.db")
    assert done.returncode == 2
    assert "vCPU" in done.stderr
    assert not (tmp_path / "t.db").exists()


@contextlib.contextmanager
def running(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Somebody else's QEMU, in the middle of its boot, and its stub's socket; the console is a file beside that."""
    images = guest.load("cloud-amd64").images()
    console, socket = folder / "console", folder / "gdb.socket"
    command = [
        *(qemu.find_qemu(None), "-nodefaults", "-display", "none", "-M", "pc", "-m", "128M", "-nic", "none", "-no-reboot"),
        *("-kernel", str(images.paths["kernel"]), "-initrd", str(images.paths["initramfs"])),
        *("-append", "console=ttyS0 panic=-1 noreplace-smp", "-serial", f"file:{console}"),
        *("-chardev", f"socket,path={socket},server=on,wait=off,id=gdb", "-gdb", "chardev:gdb", *more),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            wait_for_line(console, "Memory:")
            yield process, socket
        finally:
            process.kill()


def reaches_its_end(process: subprocess.Popen[bytes], socket: Path) -> bool:
    """Whether a guest that was let go runs on: it powers itself off."""
    return process.wait(timeout=120) == 0 and "Power down" in socket.with_name("console").read_text(errors="replace")


@pytest.mark.parametrize("with_file", [True, False], ids=["with its RAM file", "through the stub"])
def test_a_running_qemu_is_attached_to_and_left_running(with_file: bool, tmp_path: Path) -> None:
    """It reaches the end of its boot afterwards, and no breakpoint stops it on the way."""
    ram = tmp_path / "ram"
    memory = ("-object", f"memory-backend-file,id=ram,size=128M,share=on,mem-path={ram}", "-machine", "memory-backend=ram")
    with running(tmp_path, *(memory if with_file else ())) as (process, socket):
        request = Request(tmp_path / "t.db", engine="gdb", seconds=5, version="test")
        outcome = attach(Attachment(socket, ram if with_file else None), request)
        assert process.poll() is None
        assert reaches_its_end(process, socket)
    assert (outcome.ended, outcome.lost) == ("for", 0)
    verdict = outcome.verdict
    assert verdict is not None
    assert (verdict.missing, verdict.different, verdict.leaves) == (0, 0, None)
    assert verdict.entries > 20
    with TraceReader(tmp_path / "t.db") as trace:
        assert [finding.check.name for finding in verify(trace) if finding.failures] == []
        assert trace.rows("mark")[0]["name"] == "attached"


def test_a_qemu_that_starts_later_than_the_recorder_is_waited_for(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("shadowtrace")
    command = [program, "record", "--attach", tmp_path / "gdb.socket", "--wait", "60", "--for", "3", "-o", tmp_path / "t.db"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as recorder:
        assert recorder.stderr is not None
        said = recorder.stderr.readline()
        assert said == f"waiting for QEMU to open {tmp_path / 'gdb.socket'}, 60 s at the most\n"
        with running(tmp_path):
            out, err = recorder.communicate(timeout=120)
    assert recorder.returncode == 0, err
    assert ", 0 lost; for: 3 seconds were over" in out


def test_a_guest_that_is_not_attached_to_after_all_runs_on(tmp_path: Path, cli: Cli) -> None:
    """The stub was connected to, which stopped it, before the RAM file was found to be another's."""
    (tmp_path / "ram").write_bytes(bytes(4096))
    with running(tmp_path) as (process, socket):
        done = cli("record", "--attach", socket, "--ram-file", tmp_path / "ram", "--for", "3", "-o", tmp_path / "t.db")
        assert done.returncode == 2, done.stderr
        assert "has 4,096 bytes, the guest 134,217,728" in done.stderr
        assert "mem-path" in done.stderr
        assert not (tmp_path / "t.db").exists()
        assert reaches_its_end(process, socket)


@pytest.mark.parametrize("victim", ["gdb", "qemu"])
def test_an_attached_recording_that_is_cut_off_is_sealed_and_the_guest_runs_on(victim: str, tmp_path: Path) -> None:
    trace = tmp_path / "t.db"
    program = Path(sys.executable).with_name("shadowtrace")
    with running(tmp_path) as (process, socket):
        command = [program, "record", "--attach", socket, "--for", "60", "-o", trace]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as recorder:
            wait_for_events(trace, 100)
            os.kill(descendants(recorder.pid)["gdb"] if victim == "gdb" else process.pid, signal.SIGKILL)
            out, err = recorder.communicate(timeout=120)
        assert "defect" not in err
        assert recorder.returncode == (1 if victim == "gdb" else 0), err
        assert ("gdb was lost, and the capture with it" if victim == "gdb" else "the QEMU that was attached to ended") in out
        assert victim == "qemu" or reaches_its_end(process, socket)
    with TraceReader(trace) as opened:
        assert opened.recording["ended"] == ("crash" if victim == "gdb" else "exit")
        assert opened.count() >= 100
        assert [finding.check.name for finding in verify(opened) if finding.failures] == []


def wait_for_line(console: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if console.exists() and text in console.read_text(errors="replace"):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {text!r} on the console")


@pytest.mark.parametrize("socket", ["localhost:1234", "no-such-socket"])
def test_what_cannot_be_attached_to_is_refused_with_a_sentence(socket: str, tmp_path: Path, cli: Cli) -> None:
    done = cli("record", "--attach", socket, "--wait", "0.5", "-o", tmp_path / "t.db", cwd=tmp_path)
    assert done.returncode == 2
    assert ("TCP" if ":" in socket else "no socket") in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "t.db").exists()


@pytest.mark.parametrize(
    ("by", "options"),
    [
        *((by, option) for by in ("attach", "gdb", "net") for option in ("--touch every", "--touch first", "--touch-entries 64")),
        *(
            (by, option)
            for by in ("attach", "gdb", "net")
            for option in ("--no-invalidate-on-pt-write", "--drop-when-behind", "--user-stores")
        ),
        *((by, "--deterministic") for by in ("attach", "gdb", "net")),
        *(("attach", option) for option in ("--engine plugin", "--qemu true", "--until f", "--mark f", "-- -m 64M")),
    ],
)
def test_what_gdb_cannot_honour_is_refused(by: str, options: str, tmp_path: Path, cli: Cli) -> None:
    ways = {"attach": ["--attach", "socket"], "gdb": ["bare", "--engine", "gdb"], "net": ["bare", "--engine", "gdb", "--net"]}
    done = cli("record", *ways[by], "-o", tmp_path / "t.db", *options.split(), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "is no socket" not in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "t.db").exists()
