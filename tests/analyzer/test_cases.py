"""The model against the original C code, compiled for user space: counter by counter, shadow page by shadow page."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analyzer.replay import CORES
from tests.conftest import SHARED, Cli

#: Keys of the reference program's own, which a replay need not have.
THEIRS = {"source", "bug", "asserts", "corrupt_selfzap", "corrupt_rmap"}

MANIFEST = SHARED / "cases" / "MANIFEST.json"
CASES = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else [{"name": "absent"}]
MODELS = {"kvm-2.6.20": "", "kvm-2.6.21": "-2.6.21.5"}


def missing_or_different(expected: Any, got: Any, path: str = "") -> list[str]:
    """Where ``got`` lacks or contradicts something of ``expected``."""
    if isinstance(expected, dict):
        found = []
        for key, value in expected.items():
            if key not in THEIRS:
                found += missing_or_different(value, got.get(key) if isinstance(got, dict) else None, f"{path}.{key}")
        return found
    return [] if expected == got else [f"{path}: {expected!r} expected, {got!r} came"]


@pytest.fixture(scope="module")
def imported(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a trace of a file of events, once for all models and cores."""
    folder = tmp_path_factory.mktemp("cases")

    def made(events: Path) -> Path:
        trace = folder / f"{events.name}.db"
        if not trace.exists():
            assert cli("import", events, "-o", trace).returncode == 0
        return trace

    return made


def replay_and_compare(cli: Cli, trace: Path, expected: Path, state: Path | None, folder: Path, *options: str) -> None:
    done = cli("replay", trace, "--format", "json", "--state", folder / "state", *options)
    assert done.returncode == 0, done.stderr
    assert missing_or_different(json.loads(expected.read_text()), json.loads(done.stdout)) == []
    if state is not None:
        lines = gzip.decompress(state.read_bytes()) if state.suffix == ".gz" else state.read_bytes()
        assert (folder / "state").read_bytes() == lines


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_case_comes_out_as_the_original_code_has_it(
    case: dict[str, Any], model: str, core: str, shared: Path, imported: Callable[[Path], Path], cli: Cli, tmp_path: Path
) -> None:
    base = shared / "cases" / case["name"]
    options = [f"--{key.replace('_', '-')}={case[key]}" for key in ("pages", "ram_pages") if key in case]
    state = base.with_suffix(".state.jsonl") if model == "kvm-2.6.20" else None
    expected = base.with_name(f"{case['name']}.expected{MODELS[model]}.json")
    trace = imported(base.with_suffix(".jsonl"))
    replay_and_compare(cli, trace, expected, state, tmp_path, "--strict", "--core", core, "--model", model, *options)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("model", MODELS)
def test_a_whole_real_boot_comes_out_as_the_original_code_has_it(
    model: str, core: str, shared: Path, imported: Callable[[Path], Path], cli: Cli, tmp_path: Path
) -> None:
    real = shared / "cases" / "real"
    state = real / "amd64.state.jsonl.gz" if model == "kvm-2.6.20" else None
    expected = real / f"amd64.expected{MODELS[model]}.json"
    replay_and_compare(cli, imported(real / "amd64.jsonl.gz"), expected, state, tmp_path, "--core", core, "--model", model)


def test_the_comparison_notices_a_wrong_counter(shared: Path) -> None:
    expected = json.loads((shared / "cases" / "24_tiny_a.expected.json").read_text())
    wrong = json.loads(json.dumps(expected))
    wrong["zaps"]["total"] += 1
    del wrong["hash"]
    assert len(missing_or_different(expected, wrong)) == 1 + len(expected["hash"])
