"""Writes into README.md the report of a real boot and what a whole system shows, each with a picture in docs/. Run by ``make readme``.

The recordings are demo.db and debian13.db, which are made first where they are not there.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "report.png"
SYSTEM_PICTURE = ROOT / "docs" / "debian13.png"
PROGRAM = Path(sys.executable).with_name("shadowtrace")

BEGIN, END = "<!-- report: written by make readme -->", "<!-- end of report -->"
BEGIN_SYSTEM, END_SYSTEM = "<!-- a whole system: written by make readme -->", "<!-- end of the whole system -->"

#: A cache that a whole system fits into.
LARGER = 1024

#: What the picture shows, one under the other, and how wide the page is for it.
SHOWN = ("timeline", "matrix-end")
SYSTEM_SHOWN = ("timeline",)
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
    return "\n".join(("```text", "\n\n".join(shown), "```"))


def between(readme: str, begin: str, text: str, end: str) -> str:
    """README with a text between these markers, which stay."""
    before, rest = readme.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def paragraph(small: dict[str, Any], larger: dict[str, Any], guest: str) -> str:
    """What two replays of a whole system show, of the cache of 2007 and of a larger one: their documents as ``report --format json`` has them."""

    def facts(document: dict[str, Any]) -> tuple[int, int, int, float]:
        found = document["facts"]
        upper = [row for row in found["roles"] if row["level"] > 1 and row["glevels"] == 4]
        made, evicted = sum(row["made"] for row in upper), sum(row["deaths"].get("evict", 0) for row in upper)
        pages = found["get_page"]
        return pages["misses"], found["zaps"]["evict"], round(100 * evicted / made), 100 * pages["hits"] / pages["lookups"]

    made, evicted, upper, hits = facts(small)
    _, then, _, better = facts(larger)
    return (
        f"A kernel with a busybox fits into 256 shadow pages; a system does not. `{guest}`, systemd to the multi-user target and then hackbench,\n"
        f"gives {small['trace']['events']:,} events and makes {made:,} shadow pages in that cache, which evicts {evicted:,} of them"
        f" ({100 * evicted / made:.0f} %)\nand {upper} % of its upper tables. With {LARGER:,} pages it evicts {then:,}. The hit rate is {better:.1f} %"
        f" then, {hits:.1f} % before:\nflood detection, which zaps a leaf table at its third store in a row, decides it, not the size."
    )


def picture(page: Path, shown: Sequence[str]) -> bytes:
    """A PNG of some parts of a page, by their ids, in light colours."""
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
            shown,
        )
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(shot["data"])


def run(*arguments: str | Path) -> str:
    """What the command prints."""
    return subprocess.run([PROGRAM, *arguments], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Write all of it."""
    for guest, trace in (("cloud-amd64", "demo.db"), ("debian13", "debian13.db")):
        if not (ROOT / trace).exists():
            run("record", guest, "-o", trace)
    readme = between(README.read_text(), BEGIN, block(run("report", "demo.db")), END)
    documents = [json.loads(run("report", "debian13.db", "--format", "json", "--pages", str(pages))) for pages in (256, LARGER)]
    README.write_text(between(readme, BEGIN_SYSTEM, paragraph(documents[0], documents[1], "debian13"), END_SYSTEM))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        for trace, shown, target in (("demo.db", SHOWN, PICTURE), ("debian13.db", SYSTEM_SHOWN, SYSTEM_PICTURE)):
            page.unlink(missing_ok=True)
            run("report", trace, "--format", "html", "-o", page)
            target.write_bytes(picture(page, shown))


if __name__ == "__main__":
    main()
