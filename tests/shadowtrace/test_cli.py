"""The command line: what people type, wrong things above all."""

from __future__ import annotations

import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analyzer.model.parameters import MODELS
from shadowtrace.__main__ import VERBS
from tests.conftest import Boot, Cli

EVENTS = """\
{"ev":"page","gpa":"0x1000","words":{"0":"0x2067"}}
{"ev":"page","gpa":"0x2000","words":{"3":"0x9067"}}
{"ev":"regs","cr4":"0x20","efer":"0x100"}
{"ev":"cr3","value":"0x1000"}
{"ev":"regs","cr0":"0x80010011"}
{"ev":"access","va":"0x3000","write":0,"user":0,"fetch":0}
"""


@pytest.fixture
def trace(tmp_path: Path, cli: Cli) -> Path:
    (tmp_path / "e.jsonl").write_text(EVENTS)
    done = cli("import", tmp_path / "e.jsonl", "-o", tmp_path / "t.db")
    assert done.returncode == 0, done.stderr
    assert "6 events" in done.stdout
    return tmp_path / "t.db"


def test_a_trace_that_a_verb_goes_through_is_fetched_from_the_disk_at_once(trace: Path) -> None:
    """And what is no file is left to whoever reads it: a pipe would be waited for."""
    os.mkfifo(trace.parent / "pipe")
    calls = "import os; os.posix_fadvise = lambda *a: print(os.fstat(a[0]).st_ino, a[1:]); from shadowtrace.__main__ import main; main()"
    names = [str(trace.parent / name) for name in (trace.name, "pipe", "nothing", ".")]
    done = subprocess.run([sys.executable, "-c", calls, "replay", *names], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines() == [f"{trace.stat().st_ino} (0, 0, {os.POSIX_FADV_WILLNEED})"]
    assert "Got unexpected extra arguments" in done.stderr


@pytest.mark.parametrize("option", [["--linger", "0"], ["--linger=0"]])
def test_an_option_is_known_by_its_earlier_name_and_shown_by_its_own(option: list[str], tmp_path: Path, cli: Cli) -> None:
    done = cli("record", "bare", "-o", tmp_path / "t.db", *option)
    assert (done.returncode, "--retire-after-stores" in done.stderr) == (2, True)
    assert "--linger" not in cli("record", "--help").stdout
    # Behind -- are QEMU's own words.
    assert "'--linger'" not in cli("record", "-o", tmp_path / "t.db", "--for", "1", "--", "-m", "0", "--linger").stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(cli: Cli, verb: str) -> None:
    done = cli(verb, "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout
    assert f"shadowtrace {verb}" in done.stdout


def test_export_writes_what_was_imported(cli: Cli, trace: Path) -> None:
    done = cli("export", trace, "--format", "jsonl")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [json.loads(line) for line in EVENTS.splitlines()]


def test_report_replays_by_itself_and_keeps_the_run(cli: Cli, trace: Path) -> None:
    first = cli("report", trace)
    assert first.returncode == 0, first.stderr
    assert "1 cr3 loads  ->  9 lookups" in first.stdout
    size = trace.stat().st_mtime_ns
    again = cli("report", trace)
    assert again.stdout == first.stdout
    assert trace.stat().st_mtime_ns == size


def test_report_of_a_file_that_cannot_be_written(cli: Cli, trace: Path) -> None:
    trace.chmod(stat.S_IRUSR)
    trace.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert cli("report", trace).returncode == 0
    finally:
        trace.parent.chmod(stat.S_IRWXU)


def test_json_report_holds_what_the_table_shows(cli: Cli, trace: Path) -> None:
    report = json.loads(cli("report", trace, "--format", "json").stdout)
    assert report["trace"]["events"] == 6
    assert report["run"]["model"] == "kvm-2.6.20"
    assert report["facts"]["get_page"]["lookups"] == 9
    assert report["facts"]["roles"]


def test_all_models_are_listed_and_run(cli: Cli, trace: Path) -> None:
    listed = cli("models").stdout
    for model in MODELS:
        assert model in listed
        done = cli("replay", trace, "--model", model, "--audit", "1", "--format", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["events"]["total"] == 6


WRONG = {
    "unknown guest": (["record", "beos", "-o", "x.db"], "there is no guest called 'beos'", "cloud-amd64"),
    "nothing to record": (["record", "-o", "x.db"], "say what to record", "record GUEST"),
    "trace exists": (["record", "cloud-amd64", "-o", "t.db"], "exists already", "--force"),
    "no folder": (["record", "cloud-amd64", "-o", "a/b.db"], "no folder", "make it"),
    "output is a folder": (["record", "cloud-amd64", "-o", "."], "is a folder", "-o FILE"),
    "no such trace": (["report", "absent.db"], "there is no file absent.db", "record one"),
    "not a trace": (["report", "e.jsonl"], "is not a trace", "shadowtrace import"),
    "no such model": (["replay", "t.db", "--model", "xen"], "no model called 'xen'", "kvm-2.6.20"),
    "too few pages": (["replay", "t.db", "--pages", "8"], "8 shadow pages are too few", "--help"),
    "not a power of two": (["replay", "t.db", "--hash", "hash_64", "--buckets", "100"], "power of two", "--help"),
    "no such events": (["import", "absent.jsonl", "-o", "x.db"], "there is no file absent.jsonl", "shadowtrace import"),
    "events that are none": (["import", "t.db", "-o", "x.db"], "t.db", "JSON Lines"),
    "an argument of ours": (["record", "-o", "x.db", "--", "-m", "16M", "-S"], "-S cannot be given", "leave it out"),
    "KVM": (["record", "-o", "x.db", "--", "-accel", "kvm"], "only an emulated guest", "tcg"),
    "too much RAM": (["record", "-o", "x.db", "--", "-m", "8G"], "up to 2 GiB", "-m 2G"),
    "no such symbol": (["record", "cloud-amd64", "--until", "no_such_function", "-o", "x.db"], "no symbol 'no_such_function'", "kallsyms"),
    "no kernel": (["record", "-o", "x.db", "--", "-kernel", "absent"], "no kernel image absent", "takes a file"),
    "export over a trace": (["export", "t.db", "-o", "t.db"], "t.db is a database: it is not replaced", "another file"),
    "state over a trace": (["replay", "t.db", "--state", "t.db"], "t.db is a database: it is not replaced", "another file"),
    "state into no folder": (["replay", "t.db", "--state", "nowhere/x"], "cannot be written", "name a file"),
    "two guests": (["record", "cloud-amd64", "amd64", "-o", "x.db"], "one guest at a time", "after --"),
    "a network": (["record", "-o", "x.db", "--", "-nic", "user"], "guests get no network", "leave it out"),
    "a network of old": (["record", "-o", "x.db", "--", "-net", "user"], "guests get no network", "leave it out"),
    "no number": (["record", "cloud-amd64", "-o", "x.db", "--for", "nan"], "no number of seconds", "--for 60"),
    "an option without its value": (["record", "-o", "x.db", "--", "-cdrom"], "-cdrom needs a value", "--help"),
    "a model without a replay": (["annotate", "t.db", "--no-replay", "--pages", "64"], "nothing is replayed", "--no-replay"),
    "a model for events": (["export", "t.db", "--pages", "64"], "nothing is replayed", "--format perfetto --replay"),
    "a model for tracks": (
        ["export", "t.db", "--format", "perfetto", "-o", "x.db", "--model", "uncached"],
        "nothing is replayed",
        "--replay",
    ),
    "a list and a query": (["sql", "t.db", "--list", "SELECT 1"], "the query would not be run", "leave out one"),
    "nothing to import": (["import", "empty.jsonl", "-o", "x.db"], "there is no event in empty.jsonl", "docs/formats.md"),
    "a sweep of nothing": (["sweep", "absent.db"], "there is no file", "record one"),
    "nearly a guest": (["record", "cloud-amd46", "-o", "x.db"], "no guest called 'cloud-amd46'", "did you mean cloud-amd64?"),
    "nearly a verb": (["reprot", "t.db"], "there is no verb 'reprot'", "did you mean report?"),
    "nearly a model": (["replay", "t.db", "--model", "kvm-2.6.42"], "no model called 'kvm-2.6.42'", "did you mean kvm-2.6.2"),
    "bad touch": (["record", "cloud-amd64", "-o", "x.db", "--touch-entries", "100"], "no power of two", "1024"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_gets_a_sentence_a_hint_and_exit_code_2(cli: Cli, trace: Path, case: str) -> None:
    arguments, sentence, hint = WRONG[case]
    (trace.parent / "empty.jsonl").write_text("\n")
    before = trace.read_bytes()
    done = cli(*arguments, cwd=trace.parent)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "hint: " in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert trace.read_bytes() == before
    assert not (trace.parent / "x.db").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "line 1: this is no JSON from character 2 on"),
        (b'{"ev":"cr3","value":"zero"}', "line 1: value is no number: 'zero'"),
        (b'{"ev":"page","gpa":"0x1000","words":{"x":"0x1"}}', "line 1: word index is no number"),
        (b'{"ev":"page","gpa":"0x1000","words":[1]}', "line 1: a value is of another type"),
        (b'{"ev":"cr3"}', "line 1: 'value' is missing"),
        (b"[" * 60000, "line 1: it is nested too deep"),
        (b"\xff\xfe", "cannot be read: it is no text in UTF-8"),
    ],
)
def test_what_cannot_be_imported_is_told_in_our_words(content: bytes, sentence: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(content)
    done = cli("import", "e.jsonl", "-o", "t.db", cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "hint: " in done.stderr


def test_gzip_that_is_none_or_cut_short_is_told_in_our_words(cli: Cli, tmp_path: Path) -> None:
    whole = gzip.compress(EVENTS.encode())
    for content, sentence in ((b"no gzip", "it is not in gzip"), (whole[:-12], "cut short or damaged")):
        (tmp_path / "e.jsonl.gz").write_bytes(content)
        done = cli("import", "e.jsonl.gz", "-o", "t.db", cwd=tmp_path)
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


def test_no_event_in_a_range_is_said_where_it_disturbs_nobody(cli: Cli, trace: Path) -> None:
    for options in (("--from", "999999999"), ("--vcpu", "5"), ("--kind", "invlpg", "--format", "jsonl")):
        done = cli("script", trace, *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "no such event among the 6 of this trace\n")
    assert cli("script", trace, "--from", "6").stderr == ""
    for options in (("--from", "7"), ("--from", "5", "--to", "4")):
        done = cli("timeline", trace, *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "no such event among the 6 of this trace\n")


def test_a_limit_of_0_means_all_everywhere(cli: Cli, trace: Path) -> None:
    for verb in (["report", "--by", "gfn"], ["annotate"], ["timeline"], ["diff", "--pages", "64", "--pages", "256", "--all"]):
        found = [cli(verb[0], trace, *verb[1:], "--limit", limit).stdout for limit in ("0", "1000000")]
        assert found[0] == found[1] != ""


def test_interrupted_while_it_still_imports_is_interrupted(trace: Path) -> None:
    """The finder sends Ctrl-C's signal at the first import of click, and is asked before any other."""
    code = """
import os, signal, sys
wanted = sys.argv[1]
class Finder:
    def find_spec(self, name, *rest):
        if name == wanted:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
import shadowtrace.start
sys.argv[1:] = ["stat", sys.argv[2]]
sys.exit(shadowtrace.start.main())
"""
    for module in ("click", "shadowtrace.__main__", "shadowtrace.stat", "db.trace"):
        done = subprocess.run([sys.executable, "-c", code, module, trace], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "shadowtrace: interrupted"), module


@pytest.mark.parametrize(
    ("first", "arguments"),
    [("shadowtrace.export", ["export", "--format", "perfetto", "--replay", "-o"]), ("db.btree", ["replay", "--core", "fast", "--state"])],
)
def test_an_interrupt_that_a_callback_swallowed_is_not_lost(first: str, arguments: list[str], trace: Path) -> None:
    """Ctrl-C comes while the callback of a weak reference runs, of which imports make thousands: Python drops what that raises."""
    code = """
import os, signal, sys, weakref
wanted = sys.argv[1]
class Finder:
    def find_spec(self, name, *rest):
        if name == wanted:
            sys.meta_path.remove(self)
            class Thing: pass
            thing = Thing()
            kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del thing
sys.meta_path.insert(0, Finder())
import shadowtrace.start
sys.argv[1:] = sys.argv[2:]
sys.exit(shadowtrace.start.main())
"""
    command = [sys.executable, "-c", code, first, arguments[0], str(trace), *arguments[1:], str(trace.with_name("made"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Exception ignored in" in done.stderr
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (130, "", "shadowtrace: interrupted")
    assert not trace.with_name("made").exists()


def test_output_that_cannot_be_written_is_one_sentence(cli: Cli, trace: Path) -> None:
    with Path("/dev/full").open("w") as full:
        program = Path(sys.executable).with_name("shadowtrace")
        done = subprocess.run([program, "export", trace], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "hint: is the disk full" in done.stderr


@pytest.mark.boot
def test_a_damaged_page_of_a_trace_is_one_sentence(cli: Cli, boot: Boot, tmp_path: Path) -> None:
    damaged = bytearray(boot.trace.read_bytes())
    damaged[10_000_000:10_300_000] = b"\xff" * 300_000
    (tmp_path / "d.db").write_bytes(damaged)
    for verb, code in (("replay", 2), ("export", 2), ("verify", 1)):
        done = cli(verb, tmp_path / "d.db")
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert "damaged" in (done.stdout if verb == "verify" else done.stderr)


def test_a_running_recording_is_reported_as_that_and_cannot_be_replaced(cli: Cli, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("shadowtrace")
    trace = tmp_path / "t.db"
    with subprocess.Popen(
        [program, "record", "memtest86", "--for", "300", "-o", trace], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while cli("verify", trace).returncode == 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        shown = cli("report", trace)
        replaced = cli("record", "bare", "-o", trace, "--force")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert "STILL BEING RECORDED" in shown.stdout
    assert (replaced.returncode, "is being recorded" in replaced.stderr) == (2, True)
    assert "interrupted" in cli("report", trace).stdout


def test_export_in_gzip_can_be_imported_again(cli: Cli, trace: Path) -> None:
    assert cli("export", trace, "-o", trace.with_name("again.jsonl.gz")).returncode == 0
    assert cli("import", trace.with_name("again.jsonl.gz"), "-o", trace.with_name("again.db")).returncode == 0


def test_the_report_names_parameters_that_are_not_the_model_s_own(cli: Cli, trace: Path) -> None:
    assert "· flood 7 · strict True ·" in cli("report", trace, "--flood", "7", "--strict").stdout
    assert "buckets" not in cli("report", trace, "--model", "uncached").stdout.splitlines()[2]


def test_unknown_verbs_and_options_are_usage_errors(cli: Cli) -> None:
    assert cli("dance").returncode == 2
    assert cli("report", "--dance").returncode == 2


@pytest.mark.parametrize(
    ("missing", "fix"), [("qemu-system-x86_64", "qemu-system-x86"), ("gdb", "apt-get install gdb"), ("cc", "apt-get install gcc")]
)
def test_a_missing_program_is_named_with_the_command_that_brings_it(missing: str, fix: str, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("qemu-system-x86_64", "gdb", "cc", "setsid", "prlimit", "apt-get", "apt-cache", "dpkg-deb", "as", "ld"):
        if name != missing:
            os.symlink(f"/usr/bin/{name}", folder / name)
    environment = {"PATH": str(folder), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = cli("record", "-o", tmp_path / "x.db", "--for", "1", "--", "-m", "16M", **environment)
    assert done.returncode == 1, done.stderr
    assert fix in done.stderr
    doctor = cli("doctor", **environment)
    assert doctor.returncode == 1
    assert f"fix: apt-get install {fix.removeprefix('apt-get install ')}" in doctor.stdout
    assert "Traceback" not in doctor.stderr


def test_doctor_is_content_here(cli: Cli) -> None:
    done = cli("doctor")
    assert done.returncode == 0, done.stdout
    assert "missing" not in done.stdout


@pytest.mark.boot
def test_a_reader_that_leaves_is_no_error(boot: Boot) -> None:
    program = Path(sys.executable).with_name("shadowtrace")
    done = subprocess.run(f"{program} export {boot.trace} | head -1", shell=True, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["ev"]
    assert done.stderr == ""


@pytest.mark.boot
def test_the_report_of_a_real_boot(cli: Cli, boot: Boot) -> None:
    done = cli("report", boot.trace)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cloud-amd64 · Debian 6.1 cloud kernel for amd64 · ")
    assert ", 0 lost; poweroff" in lines[1]
    assert "0 missing, 0 differ" in lines[2]
    assert all(len(line) <= 200 for line in lines)


def test_names_from_a_trace_are_shown_escaped(cli: Cli, tmp_path: Path) -> None:
    events = tmp_path / "bad\x1b[31mname.jsonl"
    events.write_text(EVENTS)
    assert cli("import", events, "-o", tmp_path / "t.db").returncode == 0
    shown = cli("report", tmp_path / "t.db").stdout
    assert "\x1b" not in shown
    assert "bad\\x1b[31mname" in shown
