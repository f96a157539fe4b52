"""Writes the report of a real boot into README.md, and a picture of its page into docs/report.png. Run by ``make readme``.

The boot is demo.db's, which is recorded first where it is not there.
"""

from __future__ import annotations

import base64
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "report.png"
PROGRAM = Path(sys.executable).with_name("shadowtrace")

BEGIN, END = "<!-- report: written by make readme -->", "<!-- end of report -->"

#: What the picture shows, one under the other, and how wide the page is for it.
SHOWN = ("timeline", "matrix-end")
WIDTH = 1000

#: Parts of the report that README shows before the gap; after it comes the last.
PARTS = 3


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Chrome]:
    """Debian's chromium without a window, with a new profile, keeping its console and a log of what it asks the network for."""
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "hide-scrollbars")
    quiet = ("disable-background-networking", "disable-component-update", "disable-sync")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (*flags, *quiet, f"user-data-dir={profile}", f"window-size={width},{height}"):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        with Chrome(options=options, service=Service("/usr/bin/chromedriver")) as chrome:
            yield chrome


def block(report: str) -> str:
    """What README shows of a report: its beginning, a gap, its end."""
    parts = report.strip("\n").split("\n\n")
    shown = parts if len(parts) <= PARTS + 1 else [*parts[:PARTS], "...", parts[-1]]
    return "\n".join((BEGIN, "```text", "\n\n".join(shown), "```", END))


def with_block(readme: str, report: str) -> str:
    """README with this report between its markers."""
    before, rest = readme.split(BEGIN)
    return before + block(report) + rest.split(END)[1]


def picture(page: Path) -> bytes:
    """A PNG of the parts of a page that ``SHOWN`` names, in light colours."""
    with browser(WIDTH, 900) as chrome:
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]})
        chrome.get(page.as_uri())
        size = chrome.execute_script(
            """
            const shown = arguments[0].map((id) => document.getElementById(id));
            document.querySelector("main").replaceChildren(...shown);
            document.querySelectorAll("#contents, #filters, #closing, .moments, details").forEach((part) => part.remove());
            document.body.style.padding = "0 16px 16px";
            return [document.documentElement.clientWidth, document.body.offsetHeight];
            """,
            SHOWN,
        )
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(shot["data"])


def main() -> None:
    """Write both."""
    if not (ROOT / "demo.db").exists():
        subprocess.run([PROGRAM, "record", "cloud-amd64", "-o", "demo.db"], check=True, cwd=ROOT)
    printed = subprocess.run([PROGRAM, "report", "demo.db"], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    README.write_text(with_block(README.read_text(), printed))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        subprocess.run([PROGRAM, "report", "demo.db", "--format", "html", "-o", page], check=True, cwd=ROOT)
        PICTURE.write_bytes(picture(page))


if __name__ == "__main__":
    main()
