"""A trace.dat, made by trace-cmd itself from what a kernel gives it, is read as the text log of the same events is."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from db.exchange.kvmmmu import Lost, PageEvent, is_log, read
from db.trace import TraceReader
from tests.conftest import Cli

needs_trace_cmd = pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="trace-cmd is not installed")

_PAGE_BYTES, _HEAD_BYTES = 4096, 16

#: An event's header: its length in words, and 27 bits of nanoseconds since the event before.
_DELTA_SHIFT, _LONGEST_DELTA = 5, (1 << 27) - 1

#: In the length of a page's data: events before these were lost.
_MISSED = 1 << 31

HEADER_PAGE = """\
\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;
"""

COMMON = """\
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""

#: Linux 6.1's fields of the events about a page. What it prints is made by code that no reader of formats runs.
FIELDS = """\
\tfield:__u8 mmu_valid_gen;\toffset:8;\tsize:1;\tsigned:0;
\tfield:__u64 gfn;\toffset:16;\tsize:8;\tsigned:0;
\tfield:__u32 role;\toffset:24;\tsize:4;\tsigned:0;
\tfield:__u32 root_count;\toffset:28;\tsize:4;\tsigned:0;
\tfield:bool unsync;\toffset:32;\tsize:1;\tsigned:0;
"""
CREATED = "\tfield:bool created;\toffset:33;\tsize:1;\tsigned:0;\n"
PRINTED = '\nprint fmt: "%s", ({ const char *saved_ptr = trace_seq_buffer_ptr(p); saved_ptr; })\n'

IDS = {"kvm_mmu_get_page": 1501, "kvm_mmu_prepare_zap_page": 1502, "kvm_mmu_sync_page": 1503, "kvm_mmu_unsync_page": 1504}

PAGE = PageEvent(1, 234, 38.043966, "kvm_mmu_get_page", 0x12B, 1, 8, 0, True, "w-x", False, 2, True, True)
ZAP = PageEvent(1, 234, 38.043967, "kvm_mmu_prepare_zap_page", 0xC0000, 2, 4, 3, False, "-u-", True, 0, False, None)


def tracefs(folder: Path) -> Path:
    """The part of a kernel's tracing folder that goes into a trace.dat."""
    events = folder / "tracing" / "events"
    files = {
        "header_page": HEADER_PAGE,
        "header_event": "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n\tarray       :   32 bits\n",
        "ftrace/bprint/format": f"name: bprint\nID: 6\nformat:\n{COMMON}{PRINTED}",
    }
    for name, number in IDS.items():
        created = CREATED if name == "kvm_mmu_get_page" else ""
        files[f"kvmmmu/{name}/format"] = f"name: {name}\nID: {number}\nformat:\n{COMMON}{FIELDS}{created}{PRINTED}"
    for name, text in files.items():
        path = events / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return events.parent


def in_buffer(event: PageEvent) -> bytes:
    """An event as the kernel writes it into its buffer, without the header."""
    role = event.level | (event.entry_bytes == 4) << 4 | event.quadrant << 5 | event.direct << 7 | event.invalid << 11
    role |= sum(bit for bit, letter in ((2, "w"), (4, "u"), (1, "x")) if letter in event.access) << 8
    numbers = (0, event.gfn, role, event.root_count, event.unsync, event.created or False)
    return struct.pack("<HBBiB7xQIIBB2x", IDS[event.name], 0, 0, event.thread, *numbers)


def buffer(events: Iterable[PageEvent], missed: bool = False) -> bytes:
    """The buffer of one processor; ``missed`` says of every page that events before it were lost."""
    pages: list[tuple[int, bytes]] = []
    last = 0
    for event in events:
        now, data = round(event.time * 1e6) * 1000, in_buffer(event)
        full = not pages or len(pages[-1][1]) + 4 + len(data) > _PAGE_BYTES - _HEAD_BYTES
        if full or now - last > _LONGEST_DELTA:
            pages.append((now, b""))
            last = now
        begun, before = pages[-1]
        pages[-1] = begun, before + struct.pack("<I", len(data) // 4 | now - last << _DELTA_SHIFT) + data
        last = now
    flags = _MISSED if missed else 0
    return b"".join((struct.pack("<QQ", begun, len(data) | flags) + data).ljust(_PAGE_BYTES, b"\0") for begun, data in pages)


def trace_dat(folder: Path, events: Iterable[PageEvent], name: str = "trace.dat", missed: bool = False) -> Path:
    """The file that trace-cmd makes of a kernel's formats and the buffer of its processor."""
    (folder / "kallsyms").write_text("")
    (folder / "cpu0").write_bytes(buffer(events, missed))
    tracing = tracefs(folder)
    for arguments in (["-c", "-t", tracing, "-k", "kallsyms", "-o", "partial.dat"], ["-i", "partial.dat", "-o", "made.dat", "cpu0"]):
        subprocess.run(["trace-cmd", "restore", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
    return (folder / "made.dat").rename(folder / name)


def without_lines(events: Iterable[object]) -> list[PageEvent]:
    return [event._replace(line=0) for event in events if isinstance(event, PageEvent)]


@needs_trace_cmd
@pytest.mark.parametrize("name", ["trace.dat", "-o.dat", "a b;$(touch c).dat"])
def test_its_events_are_read_through_trace_cmd(name: str, tmp_path: Path) -> None:
    made = trace_dat(tmp_path, [PAGE, ZAP], name)
    assert made.read_bytes().startswith(b"\x17\x08\x44tracing")
    assert is_log(made)
    assert without_lines(read(made)) == without_lines([PAGE, ZAP])
    assert not (tmp_path / "c").exists()


@needs_trace_cmd
def test_what_a_real_kvm_did_comes_back_the_same(shared: Path, tmp_path: Path, cli: Cli) -> None:
    text = shared / "kvmmmu" / "walkall.trace.gz"
    events = without_lines(read(text))
    assert len(events) > 200
    made = trace_dat(tmp_path, events)
    assert without_lines(read(made)) == events
    done = cli("import", made, "-o", tmp_path / "kvm.db", "--kernel", "6.1")
    assert done.returncode == 0, done.stderr
    assert f"{len(events):,} tracepoints of a live KVM" in done.stdout
    with TraceReader(tmp_path / "kvm.db") as trace:
        assert (trace.recording["source"], trace.recording["lost"]) == ("kvmmmu", 0)


@needs_trace_cmd
def test_what_the_kernel_lost_is_told(tmp_path: Path) -> None:
    records = list(read(trace_dat(tmp_path, [PAGE], missed=True)))
    assert [record.events for record in records if isinstance(record, Lost)] == [1]
    assert without_lines(records) == without_lines([PAGE])


@needs_trace_cmd
def test_a_reader_that_leaves_waits_for_nothing(tmp_path: Path) -> None:
    """The text of 40 thousand events is more than a pipe holds."""
    events = read(trace_dat(tmp_path, [PAGE] * 40_000))
    assert isinstance(next(events), PageEvent)
    events.close()  # type: ignore[attr-defined]


@needs_trace_cmd
@pytest.mark.parametrize(("length", "sentence"), [(12, "trace-cmd cannot read "), (300, "no event in "), (5000, "no event in ")])
def test_one_that_is_cut_short_is_refused(length: int, sentence: str, tmp_path: Path, cli: Cli) -> None:
    made = trace_dat(tmp_path, [PAGE] * 1000)
    made.write_bytes(made.read_bytes()[:length])
    done = cli("import", made, "-o", tmp_path / "kvm.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "hint: is the file whole?" in done.stderr
    assert not (tmp_path / "kvm.db").exists()


def test_without_trace_cmd_the_command_that_makes_text_is_named(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "trace.dat").write_bytes(b"\x17\x08\x44tracing6\0")
    done = cli("import", "trace.dat", "-o", "kvm.db", cwd=tmp_path, PATH=str(tmp_path))
    assert done.returncode == 2
    assert "trace.dat is a trace.dat, which trace-cmd alone reads, and that is not installed" in done.stderr
    assert "apt-get install trace-cmd" in done.stderr
    assert "trace-cmd report -R -N -i trace.dat > kvm.trace" in done.stderr
    assert not (tmp_path / "kvm.db").exists()
