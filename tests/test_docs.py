"""The documentation says what the code does, and its commands run."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from analyzer.facts.collect import facts
from analyzer.model.counters import SECTIONS
from analyzer.model.machine import Mmu
from analyzer.model.outcome import outcome
from analyzer.model.parameters import parameters
from db.trace import TraceReader
from shadowtrace.__main__ import VERBS
from shadowtrace.__main__ import cli as program
from tests.conftest import Boot, Cli, record_boot
from tests.tracer.test_gdb_engine import running
from tracer import resources
from tracer.apt import Apt

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_pages_are_what_the_code_gives(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == generate.PAGES[name](), "run make docs"


def test_every_fact_of_a_replay_is_defined() -> None:
    text = (ROOT / "docs" / "counters.md").read_text()
    for name, value in facts(outcome(Mmu(parameters("kvm-2.6.20")))).items():
        if not isinstance(value, dict):
            assert f"`{name}`" in text
            continue
        for key in value:
            assert f"`{name}.{key}`" in text
    assert all(f"`{section}." in text for section in SECTIONS)


_NETBOOT = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"

KVM_LOG = """\
# tracer: nop
 vmm-9 [000] ...1. 1.000000: kvm_mmu_get_page: sp gen 0 gfn 120 l4 8-byte q0 wux nxe ad root 0 sync new
"""


def commands() -> list[tuple[str, str]]:
    """(page, command) for every line of a console block that starts with ``$ shadowtrace``."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            found += [(page.name, line[2:]) for line in block.splitlines() if line.startswith("$ shadowtrace")]
    return found


def examples() -> list[tuple[str, str]]:
    """(help, command) for every example in the help of the command itself and of each verb, as click has it."""
    context = click.Context(program)
    helps = {"--help": program, **{f"{verb} --help": program.get_command(context, verb) for verb in VERBS}}
    found = []
    for name, command in helps.items():
        assert command is not None
        (block,) = re.findall(r"\x08\nExample:\n(.*?)(?:\n\n|$)", inspect.cleandoc(command.help or ""), re.DOTALL)
        found += [(name, line.strip()) for line in block.splitlines()]
    return found


def runs() -> list[tuple[str, str]]:
    """Every command of the pages, and every example of the helps: one that was written elsewhere too is run once."""
    by_command = {command: (page, command) for page, command in reversed(commands() + examples())}
    return list(reversed(by_command.values()))


def test_there_are_commands_to_run() -> None:
    assert len(commands()) >= 10
    assert {name for name, _ in examples()} == {"--help", *(f"{verb} --help" for verb in VERBS)}
    assert all(command.startswith("shadowtrace ") for _, command in examples())
    assert {command for _, command in runs()} == {command for _, command in commands() + examples()}


#: Files that commands name: the package that each comes from, and where it is in there.
PACKAGED = {
    "my.iso": ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso"),
    "grub-rescue-cdrom.iso": ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso"),
    "grub-rescue-floppy.img": ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-floppy.img"),
    "memtest86+x64.bin": ("memtest86+", "boot/memtest86+x64.bin"),
    "memtest86+x64.iso": ("memtest86+", "usr/lib/memtest86+/memtest86+x64.iso"),
    "linux": ("debian-installer-12-netboot-amd64", f"{_NETBOOT}/linux"),
    "initrd.gz": ("debian-installer-12-netboot-amd64", f"{_NETBOOT}/initrd.gz"),
}


@pytest.fixture(scope="module")
def short_boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """A boot as far as some of its first processes: each of a hundred commands goes through all of it."""
    return record_boot(tmp_path_factory.mktemp("boot"), events=1_300_000)


@pytest.fixture(scope="session")
def packaged() -> Callable[[str], Path]:
    """Where a file of ``PACKAGED`` lies; its package is fetched the first time, into the cache."""

    def find(name: str) -> Path:
        package = PACKAGED[name][0]
        kept = resources.cache("tests") / "packaged" / package
        if not (kept / "done").exists():
            shutil.rmtree(kept, ignore_errors=True)
            unpacked = Apt(kept / "apt", "amd64", "bookworm").unpack(package)
            for file, (other, inside) in PACKAGED.items():
                if other == package:
                    shutil.copy(unpacked / inside, kept / file)
            shutil.rmtree(kept / "apt")
            (kept / "done").touch()
        return kept / name

    return find


def build_hello(folder: Path) -> None:
    """The kernel of docs/your-own-os.md, by the commands there."""
    text = (ROOT / "docs" / "your-own-os.md").read_text()
    (source,) = re.findall(r"```asm\n(.*?)```", text, re.DOTALL)
    (folder / "hello.S").write_text(source)
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for command in commands.splitlines():
        subprocess.run(shlex.split(command), cwd=folder, check=True)


#: Files that commands read and that other commands of ours have made before.
MADE_BY = {
    "kvm.db": "shadowtrace import kvm.trace -o kvm.db",
    "hello.db": "shadowtrace record -o hello.db -- -kernel hello.elf -device isa-debug-exit,iobase=0xf4,iosize=1",
    "other.db": "shadowtrace record bare -o other.db",
    "traces/": "mkdir traces && shadowtrace record bare -o traces/bare.db",
    "plugin.db": "shadowtrace record bare -o plugin.db",
    "gdb.db": "shadowtrace record bare -o gdb.db --engine gdb",
    "boot.pack": "shadowtrace pack boot.db -o boot.pack",
}


def read_by(command: str) -> set[str]:
    """What may be the name of a file that a command reads: what it writes must not be there before."""
    words = shlex.split(command)
    read = [word for before, word in zip(["", *words], words, strict=False) if before != "-o"]
    return {part for word in read for part in re.split("[=,]", word)}


def typed(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as bash does; one with a pipe fails where any command of it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=600,
        env={**os.environ, "PATH": path},
    )


def prepare(command: str, folder: Path, request: pytest.FixtureRequest, running_qemu: contextlib.ExitStack) -> None:
    """Put into the folder what a command reads: a recorded boot, what is packaged, what others write, what commands of ours make."""
    names = read_by(command)
    if names & {"boot.db", "qemu.log"}:
        boot: Boot = request.getfixturevalue("short_boot")
        for name, path in {"boot.db": boot.trace, "qemu.log": boot.log}.items():
            if name in names:
                (folder / name).symlink_to(path)
    for name in sorted(names & set(PACKAGED)):
        (folder / name).symlink_to(request.getfixturevalue("packaged")(name))
    written = {
        "events.jsonl": b'{"ev":"cr3","value":"0x1000"}\n',
        "kvm.trace": KVM_LOG.encode(),
        "kvm.trace.gz": gzip.compress(KVM_LOG.encode()),
        "old.db": gzip.decompress((ROOT / "tests" / "data" / "trace-v1.db.gz").read_bytes()),
    }
    for name in sorted(names & set(written)):
        (folder / name).write_bytes(written[name])
    if "hello.elf" in names:
        build_hello(folder)
    if "gdb.socket" in names:
        running_qemu.enter_context(running(folder))
    for name in sorted(names & set(MADE_BY)):
        prepare(MADE_BY[name], folder, request, running_qemu)
        done = typed(MADE_BY[name], folder)
        assert done.returncode == 0, done.stderr


@pytest.mark.boot
@pytest.mark.parametrize(("page", "command"), runs())
def test_the_docs_commands_run(page: str, command: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each in a folder of its own that holds the files it reads: none is left out, and none runs with another guest than it names."""
    with contextlib.ExitStack() as running_qemu:
        prepare(command, tmp_path, request, running_qemu)
        done = typed(command, tmp_path)
    assert done.returncode == 0, f"{page}: {done.stderr}"
    words = shlex.split(command)
    for option, name in itertools.pairwise(words):
        assert option != "-o" or (tmp_path / name).stat().st_size > 0
    if words[1] == "record" and "--until" in words and words.index("--until") < words.index("--"):
        assert "until: " in done.stdout


@pytest.mark.boot
def test_the_kernel_of_the_docs_does_what_they_say(cli: Cli, tmp_path: Path) -> None:
    build_hello(tmp_path)
    command = next(line for page, line in commands() if page == "your-own-os.md" and "--mark paging_on" in line)
    assert cli(*shlex.split(command)[1:], cwd=tmp_path).returncode == 0
    with TraceReader(tmp_path / "hello.db") as trace:
        assert [row["name"] for row in trace.rows("mark")] == ["reset", "paging_on"]
        assert [row["line"] for row in trace.rows("console")] == ["hello from 0xc0000000"]
        assert trace.recording["ended"] == "exit"
        (check,) = trace.rows("memory_check")
    assert (check["entries"], check["missing"], check["different"]) == (2, 0, 0)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_s_commands_are_makefile_targets() -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", readme, re.MULTILINE)
    assert targets[:2] == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_contributing_names_every_file_of_the_repository() -> None:
    listed = (ROOT / "CONTRIBUTING.md").read_text()
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.split():
        folder = str(Path(name).parent)
        assert f"`{name}`" in listed or f"`{folder}/`" in listed or Path(name).name == "__init__.py", name


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix not in (".gz", ".db"):
            assert not re.search(r"/(home|root|wor[k])/", path.read_text(errors="replace")), name


def test_wheel_carries_the_scripts(tmp_path: Path) -> None:
    """The built wheel, installed elsewhere, finds its plugin source and its guests."""
    import sys

    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel],
        check=True,
        capture_output=True,
    )
    code = "import json; from tracer import guest, plugin; print(json.dumps([guest.names(), str(plugin.build())]))"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    names, plugin_object = json.loads(done.stdout)
    assert "cloud-amd64" in names
    assert Path(plugin_object).is_file()
