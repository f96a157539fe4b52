"""Text logs of kvmmmu tracepoints, as they come and as they should not."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.errors import UsageError
from db.exchange.kvmmmu import Lost, OtherEvent, PageEvent, Record, is_log, parse, read

HEAD = "             vmm-234     [000] ...1.    38.043966: "
PAGE = "sp gen 0 gfn 12b l1 8-byte q0 direct w-x !nxe ad root 2 unsync"


def parsed(text: str) -> list[Record]:
    return list(parse(io.StringIO(text), "log"))


def test_a_page_is_read_as_tracefs_prints_it() -> None:
    (event,) = parsed(f"{HEAD}kvm_mmu_get_page: {PAGE} new\n")
    assert event == PageEvent(1, 234, 38.043966, "kvm_mmu_get_page", 0x12B, 1, 8, 0, True, "w-x", False, 2, True, True)
    (zap,) = parsed(f"{HEAD}kvm_mmu_prepare_zap_page: sp gen 1 gfn c0000 l2 4-byte q3 -u- invalid nxe !ad root 0 sync\n")
    assert zap == PageEvent(1, 234, 38.043966, "kvm_mmu_prepare_zap_page", 0xC0000, 2, 4, 3, False, "-u-", True, 0, False, None)


def test_raw_fields_say_the_same() -> None:
    """As trace-cmd and perf print what they cannot format: the role is a word of 6.1's bits."""
    role = 1 | 0 << 4 | 0 << 5 | 1 << 7 | 0b011 << 8
    raw = f"[FAILED TO PARSE] mmu_valid_gen=0x0 gfn=299 role={role} root_count=2 unsync=1 created=1"
    (shown,) = parsed(f"{HEAD}kvm_mmu_get_page: {PAGE} new\n")
    for prefix in ("  vmm-234 [000]    38.043966: kvm_mmu_get_page:     ", "vmm 3 -234 [000] 38.043966: kvmmmu:kvm_mmu_get_page: "):
        assert parsed(prefix + raw + "\n") == [shown]


def test_other_events_are_kept_as_text_and_heads_are_skipped() -> None:
    log = f"# tracer: nop\n#\ncpus=4\nversion = 7\nCPU 1 is empty\n\n{HEAD}kvm_exit: vcpu 0 reason invlpg rip 0x1\n"
    assert parsed(log) == [OtherEvent(7, 234, 38.043966, "kvm_exit", "vcpu 0 reason invlpg rip 0x1")]


def test_what_the_tracer_lost_is_told() -> None:
    assert parsed("# entries-in-buffer/entries-written: 20/25   #P:1\n") == [Lost(1, 5)]
    assert parsed("# entries-in-buffer/entries-written: 25/25   #P:1\n") == []
    assert parsed("CPU:0 [LOST 12 EVENTS]\nCPU:1 [7 EVENTS DROPPED]\nCPU:1 [EVENTS DROPPED]\n") == [Lost(1, 12), Lost(2, 7), Lost(3, 1)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "no line of a tracepoint log"),
        (f"{HEAD}kvm_mmu_get_page: new sp gfn 0 0 q0 direct --- pae nxe wp root 0 sync", "printed in a way that is not known"),
        (f"{HEAD}kvm_mmu_get_page: {PAGE}", "new or existing"),
        (f"{HEAD}kvm_mmu_sync_page: {PAGE} new", "new or existing"),
        (f"{HEAD}kvm_mmu_get_page: gfn=1 role=1 unsync=0 created=1", "no field 'root_count'"),
        (f"{HEAD}kvm_mmu_get_page: {PAGE.replace('l1', 'l9')} new", "no such shadow page"),
        (f"{HEAD}kvm_mmu_get_page: {PAGE.replace('12b', 'f' * 16)} new", "no such shadow page"),
    ],
)
def test_a_wrong_line_is_named(line: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        parsed(f"{HEAD}kvm_entry: vcpu 0\n{line}\n")
    assert "log, line 2" in str(error.value)
    assert reason in str(error.value)


@given(st.text(max_size=80) | st.from_regex(re.compile(r"\s*\w+-\d+ \[\d+\] \d+\.\d+: kvm_mmu_(get|sync)_page: .*")))
@settings(max_examples=300)
def test_no_text_makes_it_do_anything_but_refuse(text: str) -> None:
    with contextlib.suppress(UsageError):
        parsed(text)


def test_a_line_without_end_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 10_000_000)
    with pytest.raises(UsageError, match="line 1:"):
        list(read(log))


def test_files_are_told_apart(tmp_path: Path) -> None:
    files = {
        "a.trace": b"# tracer: nop\n",
        "b.trace.gz": gzip.compress(f"{HEAD}kvm_entry: vcpu 0\n".encode()),
        "c.jsonl": b'{"ev":"invlpg","va":1}\n',
        "d.gz": b"no gzip",
        "e.bin": b"\xff\xfe\x00",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert [name for name in files if is_log(tmp_path / name)] == ["a.trace", "b.trace.gz"]


def test_real_logs_are_read_to_the_last_line(shared: Path) -> None:
    for path in sorted((shared / "kvmmmu").glob("*.gz")):
        lines = [line for line in gzip.decompress(path.read_bytes()).decode().splitlines() if not line.startswith("#")]
        names = Counter(re.search(r": (\w+): ", line)[1] for line in lines)  # type: ignore[index]
        assert Counter(record.name for record in read(path) if not isinstance(record, Lost)) == names, path.name
