"""The verbs that look into a trace: stat, script, timeline, on a boot and on cases worked out by hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from db.trace import TraceReader
from db.writer import TraceWriter
from tests.conftest import Boot, Cli

#: Two address spaces on two vCPUs; the second's frame is recorded anew and used again.
EVENTS = """\
{"ev":"regs","cr4":"0x20","efer":"0x500","cr0":"0x80000011"}
{"ev":"page","gpa":"0x1000","words":{"0":"0x2067"}}
{"ev":"cr3","value":"0x1000"}
{"ev":"access","va":"0xffffffff81000000","write":0,"user":0,"fetch":1}
{"ev":"page","gpa":"0x5000","words":{}}
{"ev":"cr3","value":"0x8000000000005001"}
{"ev":"write","gpa":"0x2008","size":8,"value":"0x8000000000009067"}
{"ev":"write","gpa":"0x2011","size":2,"value":"0xffff"}
{"ev":"cr3","value":"0x1000"}
{"ev":"page","gpa":"0x5000","words":{"1":"0x3067"}}
{"ev":"cr3","value":"0x5000"}
{"ev":"invlpg","va":"0x400000"}
{"ev":"regs","cr0":"0x80000011","cr4":"0x20","efer":"0x500","vcpu":1}
{"ev":"cr3","value":"0x1000","vcpu":1}
{"ev":"access","va":"0x400000","write":1,"user":1,"fetch":0}
{"ev":"access","va":"0x400000","write":0,"user":0,"fetch":0,"vcpu":1}
"""


@pytest.fixture
def trace(tmp_path: Path, cli: Cli) -> Path:
    (tmp_path / "e.jsonl").write_text(EVENTS)
    done = cli("import", tmp_path / "e.jsonl", "-o", tmp_path / "t.db")
    assert done.returncode == 0, done.stderr
    return tmp_path / "t.db"


def test_stat_counts_what_is_there(trace: Path, cli: Cli) -> None:
    found = json.loads(cli("stat", trace, "--format", "json").stdout)
    assert found["kinds"] == {"regs": 2, "cr3": 5, "write": 2, "page": 3, "access": 3, "invlpg": 1}
    assert found["vcpus"]["1"] == {"regs": 1, "cr3": 1, "access": 1}
    assert [(phase["name"], phase["first"], phase["last"]) for phase in found["phases"]] == [("the whole trace", 1, 16)]
    assert (found["frames"], found["contents"], found["content_bytes"]) == (2, 3, 20)
    spaces = {(space["root"], space["generation"]): (space["loads"], space["resident"]) for space in found["spaces"]}
    # vCPU 0: root 1 in events 3-5 and 9-10, root 5 in 6-8, its next generation in 11-16; vCPU 1: root 1 in 14-16.
    assert spaces == {(0x1000, 0): (3, 3 + 2 + 3), (0x5000, 0): (1, 3), (0x5000, 1): (1, 6)}


def test_stat_and_timeline_divide_alike(trace: Path, cli: Cli) -> None:
    """Root 1 stays for 8 of 16 events on each of two vCPUs: a quarter."""
    lines = [re.split(r" +", line.strip()) for line in cli("stat", trace).stdout.splitlines() if re.search(r"0x[15]\.\d", line)]
    assert {line[1]: line[4] for line in lines} == {"0x1.0": "25.0", "0x5.0": "9.4", "0x5.1": "18.8"}
    rows = json.loads(cli("timeline", trace, "--format", "json").stdout)["rows"]
    means = {f"{row['root'] >> 12:#x}.{row['generation']}": sum(row["shares"]) / len(row["shares"]) for row in rows}
    assert {root: f"{100 * mean:.1f}" for root, mean in means.items()} == {"0x1.0": "25.0", "0x5.0": "9.4", "0x5.1": "18.8"}


def test_script_says_what_each_event_was(trace: Path, cli: Cli) -> None:
    lines = [line.split(maxsplit=1)[1] for line in cli("script", trace).stdout.splitlines()]
    assert lines == [
        "[0] regs: cr0=0x80000011 cr4=0x20 efer=0x500",
        "[0] page: gpa=0x1000 words=1",
        "[0] cr3: 0x1000 -",
        "[0] access: va=0xffffffff81000000 x s",
        "[0] page: gpa=0x5000 words=0",
        "[0] cr3: 0x8000000000005001 -",
        "[0] write: gpa=0x2008 size=8 value=0x8000000000009067 PWU--AD--N gfn=0x9 exact",
        "[0] write: gpa=0x2011 size=2 value=0xffff - exact",
        "[0] cr3: 0x1000 -",
        "[0] page: gpa=0x5000 words=1",
        "[0] cr3: 0x5000 -",
        "[0] invlpg: va=0x400000",
        "[1] regs: cr0=0x80000011 cr4=0x20 efer=0x500",
        "[1] cr3: 0x1000 -",
        "[0] access: va=0x400000 w u",
        "[1] access: va=0x400000 r s",
    ]


def test_script_as_json_says_the_same(trace: Path, cli: Cli) -> None:
    lines = [json.loads(line) for line in cli("script", trace, "--format", "jsonl").stdout.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, 17))
    assert lines[6] == {
        "seq": 7,
        "vcpu": 0,
        "ev": "write",
        "gpa": "0x2008",
        "size": 8,
        "value": "0x8000000000009067",
        "entry": "PWU--AD--N",
        "gfn": "0x9",
        "seen": "exact",
    }
    assert lines[3] == {"seq": 4, "vcpu": 0, "ev": "access", "va": "0xffffffff81000000", "write": 0, "user": 0, "fetch": 1, "fault": 0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--from", "15"], [15, 16]),
        (["--to", "2"], [1, 2]),
        (["--from", "3", "--to", "3"], [3]),
        (["--kind", "cr3"], [3, 6, 9, 11, 14]),
        (["--kind", "invlpg", "--kind", "write"], [7, 8, 12]),
        (["--vcpu", "1"], [13, 14, 16]),
        (["--vcpu", "1", "--vcpu", "0", "--kind", "regs"], [1, 13]),
        (["--from", "1,5"], [15, 16]),
        (["--vcpu", "63"], []),
        (["--from", "99999999999999999999"], []),
    ],
)
def test_script_takes_the_events_that_are_asked_for(options: list[str], expected: list[int], trace: Path, cli: Cli) -> None:
    done = cli("script", trace, *options)
    assert done.returncode == 0, done.stderr
    assert [int(line.split()[0]) for line in done.stdout.splitlines()] == expected


def test_a_four_byte_store_is_an_entry_of_two_level_paging(tmp_path: Path, cli: Cli) -> None:
    lines = [
        '{"ev":"regs","cr0":"0x80000011","cr4":"0x10","efer":"0"}',
        '{"ev":"write","gpa":"0x2004","size":4,"value":"0x4000e3"}',
        '{"ev":"regs","cr4":"0x20"}',
        '{"ev":"write","gpa":"0x2004","size":4,"value":"0x4000e3"}',
        '{"ev":"write","gpa":"0x2008","size":4,"value":"0x4000e3"}',
    ]
    (tmp_path / "e.jsonl").write_text("\n".join(lines))
    assert cli("import", tmp_path / "e.jsonl", "-o", tmp_path / "t.db").returncode == 0
    shown = cli("script", tmp_path / "t.db", "--kind", "write").stdout.splitlines()
    assert "PW---ADS- gfn=0x400 exact" in shown[0]
    assert shown[1].endswith("value=0x4000e3 - exact")
    assert "PW---ADS- gfn=0x400 exact" in shown[2]


def test_timeline_gives_each_address_space_its_share_of_each_bucket(trace: Path, cli: Cli) -> None:
    line = json.loads(cli("timeline", trace, "--format", "json", "--width", "50").stdout)
    assert (line["first"], line["last"], line["width"]) == (1, 16, 1)
    shares = {(row["root"], row["generation"]): row["shares"] for row in line["rows"]}
    half = [0.0, 0.5]
    assert shares[0x1000, 0] == [half[on] for on in (0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1)]
    assert shares[0x5000, 0] == [half[on] for on in (0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)]
    assert shares[0x5000, 1] == [half[on] for on in (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1)]
    some = json.loads(cli("timeline", trace, "--format", "json", "--from", "4", "--to", "9", "--limit", "1").stdout)
    assert [row["shares"] for row in some["rows"]] == [[0.5, 0.5, 0.0, 0.0, 0.0, 0.5]]
    assert some["others"] == 1


def test_timeline_says_what_a_column_is(trace: Path, cli: Cli) -> None:
    assert "a column is one event " in cli("timeline", trace).stdout


@pytest.mark.parametrize("verb", ["stat", "script", "timeline"])
def test_the_query_behind_a_verb_runs_in_sql(verb: str, trace: Path, cli: Cli) -> None:
    printed = cli(verb, trace, "--sql").stdout
    assert printed.startswith(("SELECT", "WITH"))
    with TraceReader(trace) as opened:
        for query in filter(str.strip, printed.split(";")):
            list(opened.stream(query))


@pytest.mark.parametrize("verb", ["script", "timeline"])
def test_an_unknown_mark_is_named_with_those_there_are(verb: str, trace: Path, cli: Cli) -> None:
    done = cli(verb, trace, "--from", "nowhere")
    assert done.returncode == 2
    assert "there is no mark called 'nowhere'" in done.stderr
    assert "hint: " in done.stderr


def test_an_empty_trace_is_no_error(tmp_path: Path, cli: Cli) -> None:
    with TraceWriter(tmp_path / "t.db") as writer:
        writer.describe(source="import", guest="t", title="t", vcpus=1, version="test")
        writer.seal("import", "nothing")
    for verb in ("stat", "script", "timeline"):
        done = cli(verb, tmp_path / "t.db")
        assert done.returncode == 0, done.stderr


@pytest.mark.boot
def test_stat_of_a_real_boot(boot: Boot, cli: Cli) -> None:
    found = json.loads(cli("stat", boot.trace, "--format", "json").stdout)
    assert found["events"] == boot.outcome.events == sum(sum(phase["kinds"].values()) for phase in found["phases"])
    assert {"start_kernel", "run_init_process", "first user process"} <= {phase["name"] for phase in found["phases"]}
    named = [space for space in found["spaces"] if space["comm"]]
    with TraceReader(boot.trace) as trace:
        rows = [row for row in trace.rows("address_space") if row["learnt"] != "end"]
    for key, none in (("pid", 0), ("comm", "")):
        assert sorted(space[key] or none for space in named) == sorted(row[key] or none for row in rows)
    done = cli("stat", boot.trace, COLUMNS="60")
    assert all(len(line) <= 60 for line in done.stdout.splitlines() if line.startswith(("phase", "reset", "start_kernel", "init")))


@pytest.mark.boot
def test_a_root_frame_used_again_is_another_address_space(boot: Boot, cli: Cli) -> None:
    """Every program that the boot ran lived for a while alone: no address space but init's spans a whole phase."""
    found = json.loads(cli("stat", boot.trace, "--format", "json").stdout)
    busybox = [space for space in found["spaces"] if space["comm"] == "busybox"]
    assert len(busybox) > 50
    assert all(space["resident"] < found["events"] / 50 for space in busybox)


@pytest.mark.boot
def test_timeline_of_a_real_boot_keeps_the_width_and_has_no_colours_in_a_pipe(boot: Boot, cli: Cli) -> None:
    for columns in (60, 100, 173):
        lines = cli("timeline", boot.trace, COLUMNS=str(columns)).stdout.splitlines()
        assert all(len(line) <= columns for line in lines)
        assert any("init[1]" in line for line in lines)
        assert any("start_kernel" in line for line in lines)
        assert "\x1b" not in "".join(lines)
    assert cli("timeline", boot.trace, PYTHONIOENCODING="ascii").stdout.isascii()


def in_a_terminal(*arguments: str | Path, **environment: str) -> str:
    """What the command prints on a terminal of 24 lines and 100 columns."""
    import fcntl
    import pty
    import struct
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    program = Path(sys.executable).with_name("shadowtrace")
    environment = (
        {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm"} | environment
    )
    with subprocess.Popen([program, *map(str, arguments)], stdout=child, stdin=child, stderr=child, env=environment) as process:
        os.close(child)
        read = b""
        while True:
            try:
                block = os.read(parent, 65536)
            except OSError:
                break
            if not block:
                break
            read += block
        process.wait()
    os.close(parent)
    return read.decode()


def test_colours_are_for_terminals_without_no_color(trace: Path) -> None:
    coloured = in_a_terminal("timeline", trace)
    assert "\x1b[" in coloured
    assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= 100 for line in coloured.splitlines())
    assert "\x1b" not in in_a_terminal("timeline", trace, NO_COLOR="1")
    assert "\x1b" not in in_a_terminal("timeline", trace, TERM="dumb")


@pytest.mark.boot
def test_script_of_a_real_boot_streams_and_stops_when_its_reader_does(boot: Boot, cli: Cli) -> None:
    program = Path(sys.executable).with_name("shadowtrace")
    done = subprocess.run(f"{program} script {boot.trace} | head -1", shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split()[0] == "1"
    whole = cli("script", boot.trace, "--kind", "cr3", "--kind", "write").stdout.splitlines()
    with TraceReader(boot.trace) as trace:
        loads, stores = (next(trace.stream(f"SELECT count(*) FROM event WHERE kind = {kind}"))[0] for kind in (2, 3))
    assert len(whole) == loads + stores
    assert any(re.search(r"cr3: 0x[0-9a-f]+ init\[1\]$", line) for line in whole)
    assert (
        sum(" exact" in line and re.search(r" P[-W][-U][-T][-C][-A][-D][-S][-G][-N] gfn=", line) is not None for line in whole) > stores / 4
    )
