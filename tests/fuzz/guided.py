"""Coverage-guided fuzzing with atheris: python -m tests.fuzz.guided TARGET RUNS. What it finds is written into tests/corpus."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["analyzer", "db", "shadowtrace", "tracer", "x86"]):
    from tests.fuzz.targets import CORPUS, TARGETS, seeds


def main() -> None:
    """Run one target for a number of inputs, from the good ones on."""
    target, runs = sys.argv[1], int(sys.argv[2])
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(target)):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        limits = [f"-runs={runs}", "-timeout=20", "-rss_limit_mb=1500", "-max_len=200000", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={CORPUS / target}/", folder], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
