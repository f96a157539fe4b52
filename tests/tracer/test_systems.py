"""Guests that are whole systems: recorded by name, their tables rebuilt, their processes named; and images that cannot be built."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from db.errors import ShadowtraceError
from db.trace import TraceReader
from tests.conftest import Cli
from tests.tracer import names
from tracer import guest, images, system
from tracer.record import record
from tracer.request import Outcome, Request


def recorded(name: str, folder: Path) -> tuple[Path, Outcome]:
    trace = folder / f"{name}.db"
    outcome = record(Request(trace, guest.load(name), version="test"))
    verdict = outcome.verdict
    assert (outcome.ended, outcome.lost, list(outcome.not_shown)) == ("poweroff", 0, [])
    assert verdict is not None
    assert (verdict.missing, verdict.different, verdict.leaves_different, verdict.details) == (0, 0, 0, [])
    assert verdict.entries > 1000
    return trace, outcome


@pytest.mark.parametrize("name", [pytest.param("debian12", marks=pytest.mark.boots), pytest.param("debian13", marks=pytest.mark.boot)])
def test_a_whole_debian_is_recorded_and_every_process_of_it_named(name: str, tmp_path: Path, cli: Cli) -> None:
    trace, outcome = recorded(name, tmp_path)
    assert outcome.events > 10_000_000
    with TraceReader(trace) as opened:
        assert opened.recording["unnamed"] is None
        forked = Counter(row["comm"] for row in names.learnt(opened, "fork"))
        executed = Counter(row["comm"] for row in names.learnt(opened, "exec"))
        ended, left = len(names.learnt(opened, "end")), len(names.alive(opened))
    # One group of hackbench is 20 senders and 20 receivers, forked by the one that was executed, which never execute anything.
    assert (executed["hackbench"], forked["hackbench"]) == (1, 40)
    assert executed.total() > 100
    # What runs when the machine goes off never ends; an exec that fails ends what had no name.
    born = executed.total() + forked.total()
    assert 0 < left < born / 10
    assert ended >= born - left
    shown = cli("report", trace, "--by", "process", "--only", "process=hackbench")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["process", "hackbench"]
    assert "no program has a name" not in cli("stat", trace).stdout


@pytest.mark.boots
def test_xen_is_recorded_and_says_that_its_domain_s_programs_have_no_names(tmp_path: Path, cli: Cli) -> None:
    trace, _ = recorded("xen", tmp_path)
    for verb in ("report", "stat"):
        assert "no program has a name: " in cli(verb, trace).stdout


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing is yet, as a new user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shadowtrace" / "guests"


@pytest.mark.parametrize("name", ["cloud-amd64", "debian13"])
def test_an_image_that_cannot_be_fetched_leaves_nothing_behind(name: str, empty_cache: Path, tmp_path: Path, cli: Cli) -> None:
    """A network without a way to Debian's packages: a proxy that is not there."""
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "http_proxy": "http://127.0.0.1:1"}
    done = cli("record", name, "-o", tmp_path / "t.db", **environment)
    assert done.returncode == 1, done.stderr
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith("shadowtrace: ")
    assert second.startswith("  hint: does this machine reach Debian's packages")
    assert list(empty_cache.iterdir()) == []
    assert not (tmp_path / "t.db").exists()


@pytest.mark.boot
def test_a_system_with_a_package_that_is_gone_leaves_nothing_behind(empty_cache: Path) -> None:
    recipe = guest.load("debian13")
    gone = system.System("trixie", ("a-package-that-is-gone",), "/bin/true")
    with pytest.raises(ShadowtraceError, match="a-package-that-is-gone"):
        replace(recipe, sources={"disk": images.Source(system=gone)}).images()
    assert list(empty_cache.iterdir()) == []


def test_a_system_without_its_tools_names_their_packages(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(system.TOOLS, "no-such-tool", "the-package")
    with pytest.raises(ShadowtraceError, match="there is no the-package") as raised:
        guest.load("debian12").images()
    assert raised.value.hint == "apt-get install the-package"
    assert list(empty_cache.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_an_image_for_which_there_is_no_room_leaves_nothing_behind(tmp_path: Path, cli: Cli) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", cache], check=True)
    try:
        done = cli("record", "cloud-amd64", "-o", tmp_path / "t.db", XDG_CACHE_HOME=str(cache))
        assert done.returncode == 1, done.stderr
        assert "MiB are free in" in done.stderr
        assert "hint: set XDG_CACHE_HOME to a folder with room" in done.stderr
        assert list((cache / "shadowtrace" / "guests").iterdir()) == []
    finally:
        subprocess.run(["umount", cache], check=True)
