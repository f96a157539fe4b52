"""Completion in bash, as bash itself does it, and the manual pages."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analyzer.facts.group_counts import COUNTS, MORE
from analyzer.facts.grouping import KEYS
from analyzer.model.parameters import HASHES
from db.check.verify import CHECKS
from shadowtrace.__main__ import VERBS
from tracer import guest
from x86.event import Kind

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = Path(sys.executable).with_name("shadowtrace")

_spec = importlib.util.spec_from_file_location("manpages", ROOT / "docs" / "manpages.py")
assert _spec is not None
assert _spec.loader is not None
manpages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(manpages)


def completed(line: str) -> set[str]:
    """What bash offers at the end of a line, with the completion switched on as docs/looking.md says."""
    words = line.split(" ")
    script = f"""
eval "$(_SHADOWTRACE_COMPLETE=bash_source shadowtrace)"
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
COMP_LINE='{line}'
compopt() {{ :; }}
_shadowtrace_completion shadowtrace
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = os.environ | {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    return set(done.stdout.splitlines()) - ({""} if done.stdout == "\n" else set())


def test_verbs_are_completed() -> None:
    assert completed("shadowtrace ") == set(VERBS)
    assert completed("shadowtrace re") == {"record", "replay", "report"}


def test_options_are_completed() -> None:
    assert completed("shadowtrace script --f") == {"--from", "--format"}
    assert completed("shadowtrace script boot.db --kind a") == {"access"}
    assert "--version" in completed("shadowtrace --v")


def test_guests_and_models_are_completed() -> None:
    assert completed("shadowtrace record ") == set(guest.names())
    assert completed("shadowtrace record cloud-amd64-p") == {"cloud-amd64-pti"}
    assert completed("shadowtrace replay boot.db --model kvm-2.6.2") == {"kvm-2.6.20", "kvm-2.6.21", "kvm-2.6.24"}
    assert completed("shadowtrace diff boot.db --model unc") == {"uncached"}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("report boot.db --by pha", {"phase"}),
        ("report boot.db --by ", set(KEYS)),
        ("report boot.db --by phase,pro", {"phase,process"}),
        ("report boot.db --by level,mode,", {f"level,mode,{key}" for key in KEYS if key not in ("level", "mode")}),
        ("report boot.db --only m", {"mode=", "meta="}),
        ("report boot.db --only ", {f"{key}=" for key in KEYS}),
        ("report boot.db --sort ", {*COUNTS, *MORE}),
        ("report boot.db --by phase,process --sort p", {"peak", "parents", "phase", "process"}),
        ("report boot.db --by level --sort p", {"peak", "parents"}),
        ("report boot.db --format ", {"table", "json", "html", "jsonl", "csv", "markdown"}),
        ("script boot.db --kind ", {kind.name.lower() for kind in Kind}),
        ("export boot.db --format ", {"jsonl", "csv", "parquet", "perfetto"}),
        ("import kvm.trace --format ", {"auto", "jsonl", "kvmmmu"}),
        ("annotate boot.db --sort z", {"zaps"}),
        ("verify --explain ", set(CHECKS)),
        ("verify boot.db --explain con", {"content-before-use"}),
        ("sql boot.db --li", {"--list", "--limit"}),
        ("replay boot.db --hash ", set(HASHES)),
        ("replay boot.db --core ", {"reference", "fast"}),
        ("sweep boot.db --model kvm-2.6.20,unc", {"kvm-2.6.20,uncached"}),
        ("sweep boot.db --hash ", set(HASHES)),
        ("record --engine ", {"plugin", "gdb"}),
    ],
)
def test_the_values_of_options_are_completed(line: str, offered: set[str]) -> None:
    assert completed(f"shadowtrace {line}") == offered


def test_files_are_left_to_the_shell() -> None:
    """A path's completion is one line that says so; bash itself then looks for files."""
    for line in ("report ", "record --attach ", "record --qemu ", "import ", "diff boot.db --log "):
        words = f"shadowtrace {line}"
        environment = os.environ | {"_SHADOWTRACE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run([PROGRAM], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout == "file,\n", line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell: str) -> None:
    done = subprocess.run(
        [PROGRAM], capture_output=True, text=True, check=False, env=os.environ | {"_SHADOWTRACE_COMPLETE": f"{shell}_source"}
    )
    assert done.returncode == 0
    assert "_SHADOWTRACE_COMPLETE" in done.stdout
    assert f"_SHADOWTRACE_COMPLETE={shell}_source shadowtrace" in (ROOT / "docs" / "looking.md").read_text()


def test_the_manual_pages_are_what_the_code_gives() -> None:
    assert {path.name: path.read_text() for path in (ROOT / "man").glob("*.1")} == manpages.pages(), "run make man"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", manpages.pages())
def test_groff_takes_every_manual_page_without_a_warning(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-P-cbou"], input=manpages.pages()[name], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    sections = re.findall(r"^[A-Z][A-Z ]+$", done.stdout, re.MULTILINE)
    assert sections[:2] == ["NAME", "SYNOPSIS"]
    assert "EXAMPLES" in sections
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "|" not in line and "  shadowtrace" not in line)


@pytest.mark.parametrize("verb", VERBS)
def test_a_manual_page_names_every_option_and_the_example(verb: str) -> None:
    page = manpages.page(verb).replace("\\-", "-").replace("\\e", "\\")
    text = subprocess.run([PROGRAM, verb, "--help"], capture_output=True, text=True, check=True).stdout
    for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE):
        assert option in page
    for example in re.findall(r"^    (shadowtrace .*)$", text.split("Example:")[1].split("Options:")[0], re.MULTILINE):
        assert example in page
