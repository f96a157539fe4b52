"""No line of any table goes past the width that the terminal, or COLUMNS, has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.shadowtrace.test_report import EVENTS, on_a_terminal

KVM_LOG = """\
 vmm-9 [000] ...1. 1.000000: kvm_mmu_get_page: sp gen 0 gfn 120 l4 8-byte q0 wux nxe ad root 0 sync new
 vmm-9 [000] ...1. 1.100000: kvm_mmu_get_page: sp gen 0 gfn 120 l4 8-byte q0 wux nxe ad root 1 sync existing
"""

#: For each trace: imported, captured by gdb, a live KVM's.
OF_A_TRACE = [
    "report {}",
    "report {} --all",
    "report {} --saved --pages 64",
    "report {} --by mode,level,quadrant,meta,process,phase,cause",
    "replay {}",
    "stat {}",
    "stat {} --all",
    "timeline {}",
    "annotate {} --by instruction",
    "annotate {} --no-replay",
    "verify {}",
    "diff {} --pages 256 --pages 64 --all --limit 0",
    "diff {} --model kvm-2.6.20 --model uncached",
    "sweep {} --pages 32..256 --model kvm-2.6.20,uncached --flood 3,10",
    "sql {} --list",
    "sql {} 'SELECT * FROM recording'",
    "sql {} 'SELECT seq, hex(seq) || sql AS longest FROM event, sqlite_schema LIMIT 20'",
]
OTHERS = ["ls", "guests", "models", "doctor", "verify --explain end-state", "report kvm.db", "diff --capture small.db gdb.db"]
COMMANDS = [*(command.format(trace) for command in OF_A_TRACE for trace in ("small.db", "gdb.db")), *OTHERS]


@pytest.fixture(scope="module")
def folder(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace of each kind, one that is damaged, and names as long as people give them."""
    folder = tmp_path_factory.mktemp("width")
    (folder / "e.jsonl").write_text(EVENTS)
    (folder / "kvm.trace").write_text(KVM_LOG)
    for command in ("import e.jsonl -o small.db", "record bare --engine gdb -o gdb.db", "import kvm.trace -o kvm.db"):
        done = cli(*command.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    (folder / "a-trace-that-was-cut-while-somebody-copied-it-from-another-machine.db").write_bytes((folder / "gdb.db").read_bytes()[:5000])
    return folder


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_columns(command: str, width: int, folder: Path, cli: Cli) -> None:
    done = cli(*shlex.split(command), cwd=folder, COLUMNS=str(width))
    assert done.returncode in (0, 3), done.stderr
    assert done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > width] == []


@pytest.mark.parametrize("command", ["report gdb.db", "stat gdb.db", "verify gdb.db", "timeline gdb.db", "models"])
def test_no_line_is_wider_than_the_terminal(command: str, folder: Path) -> None:
    shown = on_a_terminal(60, *command.split(), cwd=folder)
    assert [line for line in re.sub(r"\x1b\[\d*m", "", shown).splitlines() if len(line) > 60] == []


def test_a_pipe_without_columns_has_whole_sentences_and_a_file_too(folder: Path, cli: Cli) -> None:
    piped = cli("report", "gdb.db", cwd=folder, COLUMNS="").stdout
    assert max(map(len, piped.splitlines())) > 100
    on_a_terminal(60, "report", "gdb.db", "-o", "report.txt", cwd=folder)
    assert (folder / "report.txt").read_text() == piped


def test_page_tables_alone_are_said_to_be_that_with_the_faults_there_are(folder: Path, cli: Cli) -> None:
    """By gdb the two accesses of the bare guest are those that ended in its page faults."""
    shown = cli("report", "gdb.db", cwd=folder, COLUMNS="").stdout
    assert "  page tables only: the 2 accesses recorded are those that ended in a guest page fault" in shown
    assert "2 faults of 2 accesses" in shown


def test_narrow_text_says_what_wide_text_says(folder: Path, cli: Cli) -> None:
    """Sentences are folded, not cut: the words of the claims that verify prints are the same in any width."""
    narrow, wide = (cli("verify", "gdb.db", cwd=folder, COLUMNS=columns).stdout for columns in ("40", "400"))
    assert narrow.split() == wide.split()
    assert len(narrow.splitlines()) > len(wide.splitlines())
