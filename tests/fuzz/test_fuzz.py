"""Some thousands of damaged inputs: no traceback, no hang, no growth. FUZZ_RUNS asks for more."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.figures import note
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import CORPUS, TARGETS, seeds

#: Inputs of each target where nobody asks for more.
RUNS = {"reader": 300, "verbs": 80, "importer": 400, "stream": 2000, "pack": 150}

#: Seconds that one input may take, and MiB that the whole process may grow by.
SECONDS = 10
GROWTH = 200


@contextmanager
def in_time() -> Iterator[None]:
    def over(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("target", TARGETS)
def test_good_inputs_are_taken(target: str) -> None:
    for seed in seeds(target):
        TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_inputs_are_read_or_refused(target: str) -> None:
    runs, good = int(os.environ.get("FUZZ_RUNS") or RUNS[target]), seeds(target)
    TARGETS[target](good[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(runs):
        data = mutated(good, number)
        try:
            with in_time():
                TARGETS[target](data)
        except BaseException as error:
            kept = CORPUS / target
            kept.mkdir(parents=True, exist_ok=True)
            (kept / f"mutation-{number}").write_bytes(data)
            raise AssertionError(f"input {number} of {target}, now in the corpus: {error!r}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < GROWTH
    note(f"fuzz {target}", inputs=runs, grown_MiB=grown)


@pytest.mark.parametrize("kept", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_a_finding_once(kept: Path) -> None:
    with in_time():
        TARGETS[kept.parent.name](kept.read_bytes())


@given(st.binary(max_size=600))
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_as_a_stream(data: bytes) -> None:
    TARGETS["stream"](data)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["0x1000", "-0x1", "1_0", "٣"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)
_KEYS = st.sampled_from(["ev", "vcpu", "value", "pdptes", "gpa", "size", "words", "va", "write", "user", "fetch", "cr0", "cr4", "efer"])
_NAMES = st.sampled_from(["regs", "cr3", "write", "page", "access", "invlpg"])


@given(st.lists(st.tuples(_NAMES, st.dictionaries(_KEYS, _VALUES, max_size=5)), max_size=4))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_as_events(lines: list[tuple[str, dict[str, object]]]) -> None:
    import json

    text = "\n".join(json.dumps({"ev": name, **line}) for name, line in lines)
    TARGETS["importer"](text.encode())
