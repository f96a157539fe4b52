"""Names on every kernel that Debian has, from the oldest that it still keeps to the newest of its backports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from db.trace import TraceReader
from tests.tracer import names
from tracer import guest, kernelimage
from tracer.images import Source
from tracer.qemu import Capture
from tracer.record import record
from tracer.request import Request

pytestmark = pytest.mark.boot

#: The release, and the guest of ours whose package of that release is tried: those of bookworm are recorded by other tests.
KERNELS = [
    *(("bullseye", name) for name in ("cloud-amd64", "amd64", "686", "686-pae")),
    *((release, name) for release in ("trixie", "trixie-backports") for name in ("cloud-amd64", "amd64")),
]

#: Where a package has its kernel: newer ones beside the modules.
PATH = "boot/vmlinuz-* usr/lib/modules/*/vmlinuz"


@pytest.mark.parametrize(("release", "name"), KERNELS)
def test_programs_forks_and_ends_are_seen(release: str, name: str, tmp_path: Path) -> None:
    recipe = guest.load(name)
    kernel = Source(package=recipe.sources["kernel"].package, path=PATH, release=release)
    recipe = replace(recipe, name=f"{name}-{release}", sources={**recipe.sources, "kernel": kernel})
    trace = tmp_path / "t.db"
    outcome = record(Request(trace, recipe, ["-m", "256M"], capture=Capture(touch_entries=0), version="test"))
    verdict = outcome.verdict
    assert (outcome.ended, outcome.lost) == ("poweroff", 0)
    assert verdict is not None
    assert (verdict.missing, verdict.different, verdict.leaves_different) == (0, 0, 0)
    with TraceReader(trace) as opened:
        version = opened.recording["kernel"]
        assert version == kernelimage.version(recipe.images().paths["kernel"].read_bytes())
        names.check(opened)
        own = {row["comm"] for row in names.learnt(opened, "symbol")}
    if recipe.arch == "amd64":
        patching = "text_poke_mm" if release == "trixie-backports" else "poking_mm"
        assert own == {"early_top_pgt", "init_mm", patching}


def test_the_releases_are_those_that_are_meant() -> None:
    """What is in the cache is each release's own kernel, not the one of the machine or of another release."""
    versions = []
    for release in ("bullseye", "trixie"):
        recipe = guest.load("cloud-amd64")
        kernel = Source(package="linux-image-cloud-amd64", path=PATH, release=release)
        images = replace(recipe, name=f"cloud-amd64-{release}", sources={**recipe.sources, "kernel": kernel}).images()
        versions.append((kernelimage.version(images.paths["kernel"].read_bytes()) or "").split("-")[0].rsplit(".", 1)[0])
    assert versions == ["5.10", "6.12"]
