"""The plugin under gcc's analyzer, and, where asked for, through a boot under AddressSanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bench.capture import boot
from tracer import guest, plugin, resources


def compiled(target: Path, *flags: str) -> str:
    """Build the plugin with other flags; what the compiler said."""
    sources = sorted((resources.scripts() / "plugin").glob("*.c"))
    done = subprocess.run(
        ["cc", *plugin.CFLAGS, *flags, "-o", target, *sources, "-ldl", "-lpthread"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_analyzer_finds_nothing(tmp_path: Path) -> None:
    assert compiled(tmp_path / "plugin.so", "-fanalyzer") == ""


@pytest.mark.boot
@pytest.mark.skipif("SHADOWTRACE_SANITIZE" not in os.environ, reason="asked for by make test-sanitize")
@pytest.mark.parametrize("touch_entries", [1024, 0])
def test_a_boot_under_address_sanitizer(touch_entries: int, tmp_path: Path) -> None:
    """QEMU is not built for it: the runtime is loaded before it. Leaks are not looked for, QEMU has its own."""
    target = tmp_path / "plugin.so"
    compiled(target, "-g", "-fsanitize=address", "-fno-omit-frame-pointer")
    assert "__asan_report_load8" in subprocess.run(["nm", "-u", target], capture_output=True, text=True, check=True).stdout
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    options = f"detect_leaks=0:log_path={tmp_path / 'asan'}"
    done = boot(guest.load("cloud-amd64"), touch_entries, target, environment={"LD_PRELOAD": runtime, "ASAN_OPTIONS": options})
    assert done.written > 24 * 300_000
    said = "".join(log.read_text() for log in tmp_path.glob("asan.*"))
    assert "ERROR: AddressSanitizer" not in said, said
