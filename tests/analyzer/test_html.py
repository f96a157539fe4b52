"""The report as a page: what a browser makes of it, and that it needs nothing but itself."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tests.conftest import Boot, Cli

ROOT = Path(__file__).resolve().parent.parent.parent


def script(name: str) -> Any:
    """A program of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


readme, vendor = script("readme"), script("vendor")

#: Address spaces of long mode that share the table at 0x2000 and what is under it, and a user's table apart for two. Stores
#: zap two tables; then frame 1 is the directory of two-level paging: both halves of a table are used, and one that long mode uses too.
EVENTS = """\
{"ev":"page","gpa":"0x1000","words":{"0":"0x5067","511":"0x2067"}}
{"ev":"page","gpa":"0x6000","words":{"0":"0x7067","511":"0x2067"}}
{"ev":"page","gpa":"0x2000","words":{"0":"0x3067"}}
{"ev":"page","gpa":"0x3000","words":{"0":"0x4067"}}
{"ev":"page","gpa":"0x4000","words":{"1":"0x9067","2":"0xa067"}}
{"ev":"page","gpa":"0x5000","words":{"0":"0x8067"}}
{"ev":"page","gpa":"0x7000","words":{"0":"0x8067"}}
{"ev":"page","gpa":"0x8000","words":{"0":"0xb067"}}
{"ev":"page","gpa":"0xb000","words":{"1":"0xc067"}}
{"ev":"regs","cr4":"0x20","efer":"0x500"}
{"ev":"cr3","value":"0x1000"}
{"ev":"regs","cr0":"0x80010011"}
{"ev":"access","va":"0xffffff8000001000","write":0,"user":0,"fetch":0}
{"ev":"access","va":"0x1000","write":1,"user":1,"fetch":0}
{"ev":"cr3","value":"0x6000"}
{"ev":"access","va":"0xffffff8000001000","write":0,"user":0,"fetch":0}
{"ev":"access","va":"0x1000","write":0,"user":1,"fetch":0}
{"ev":"write","gpa":"0x4008","value":"0xd067","size":8}
{"ev":"access","va":"0xffffff8000001000","write":0,"user":0,"fetch":0}
{"ev":"cr3","value":"0x1000"}
{"ev":"access","va":"0xffffff8000002000","write":0,"user":0,"fetch":0}
{"ev":"page","gpa":"0xe000","words":{"511":"0x2067"}}
{"ev":"cr3","value":"0xe000"}
{"ev":"access","va":"0xffffff8000002000","write":0,"user":0,"fetch":0}
{"ev":"write","gpa":"0x4010","value":"0xa067","size":8}
{"ev":"write","gpa":"0x4010","value":"0xd067","size":8}
{"ev":"write","gpa":"0x4010","value":"0xa067","size":8}
{"ev":"write","gpa":"0x3010","value":"0x0","size":8}
{"ev":"write","gpa":"0x3010","value":"0x0","size":8}
{"ev":"write","gpa":"0x3010","value":"0x0","size":8}
{"ev":"cr3","value":"0x1000"}
{"ev":"regs","cr0":"0x11"}
{"ev":"write","gpa":"0x1004","value":"0xb067","size":4}
{"ev":"regs","cr4":"0x10","efer":"0x0"}
{"ev":"regs","cr0":"0x80010011"}
{"ev":"access","va":"0x0","write":0,"user":0,"fetch":0}
{"ev":"access","va":"0x200000","write":0,"user":0,"fetch":0}
{"ev":"access","va":"0x400000","write":0,"user":0,"fetch":0}
"""

HOSTILE = "</script><script>alert(1)</script><!--\x1b[31m\"'`${alert(2)}&lt;\u202egnp\x00"

#: How that is shown: what is not printable, escaped.
SHOWN = "</script><script>alert(1)</script><!--\\x1b[31m\"'`${alert(2)}&lt;\\u202egnp\\x00"

#: Every figure that has a chart, in order.
CHARTS = [
    "hits", "levels", "quadrants", "timeline", "programs", "apart", "frames-time", "apart-time", "parents-levels", "parents-time",
    "matrix-peak", "matrix-end", "origin-who", "age-roots", "age-tables", "deaths-roles", "chains", "key-parts", "saved-counts",
]  # fmt: skip


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """A trace of two programs and three phases, whose names are meant to do harm."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "events.jsonl").write_text(EVENTS)
    done = cli("import", folder / "events.jsonl", "-o", folder / "t.db")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(folder / "t.db") as database:
        database.executemany("INSERT INTO mark (seq, name, vcpu) VALUES (?, ?, 0)", [(9, "kernel"), (14, HOSTILE)])
        database.executemany(
            "INSERT INTO address_space (seq, root_gfn, pid, comm) VALUES (?, ?, ?, ?)", [(10, 1, 1, "init"), (14, 6, 2, HOSTILE)]
        )
        database.execute("UPDATE recording SET guest = ?, title = ?", (HOSTILE, HOSTILE))
    return folder / "t.db"


@pytest.fixture(scope="session")
def page(trace: Path, cli: Cli) -> Path:
    """Its report as a page."""
    done = cli("report", trace, "--format", "html", "--saved", "-o", trace.with_name("t.html"))
    assert done.returncode == 0, done.stderr
    return trace.with_name("t.html")


@pytest.fixture(scope="session")
def facts(trace: Path, page: Path, cli: Cli) -> Any:
    """What the page has to show."""
    return json.loads(cli("report", trace, "--format", "json", "--saved").stdout)["facts"]


@pytest.fixture(scope="session")
def chrome() -> Iterator[Chrome]:
    with readme.browser() as driver:
        yield driver


@pytest.fixture
def shown(chrome: Chrome, page: Path) -> Chrome:
    """The page in a browser, just opened."""
    return opened(chrome, page)


def opened(chrome: Chrome, page: Path) -> Chrome:
    for log in ("browser", "performance"):
        chrome.get_log(log)
    chrome.get(page.as_uri())
    return chrome


def requests(chrome: Chrome) -> list[str]:
    """The addresses that the page asked for, itself and what it holds left out."""
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    assert asked, "the log of requests is kept"
    return [url for url in asked if url != chrome.current_url and not url.startswith("data:")]


def text(chrome: Chrome, selector: str) -> str:
    return chrome.find_element(By.CSS_SELECTOR, selector).text


def choose(chrome: Chrome, name: str, index: int) -> None:
    Select(chrome.find_element(By.ID, f"choose-{name}")).select_by_value(str(index))


def cells(chrome: Chrome, selector: str) -> list[list[str]]:
    """The text of a table, closed or not, row by row, all of them."""
    chrome.execute_script("document.querySelectorAll(arguments[0] + ' .more:not([hidden])').forEach((button) => button.click())", selector)
    found = chrome.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))",
        selector,
    )
    assert isinstance(found, list)
    return found


def test_it_loads_without_errors_and_asks_for_nothing(shown: Chrome) -> None:
    assert shown.get_log("browser") == []
    assert requests(shown) == []


def test_the_log_of_requests_would_show_one(chrome: Chrome, tmp_path: Path) -> None:
    (tmp_path / "asks.html").write_text('<img src="file:///absent.png"><script>nothing()</script>')
    opened(chrome, tmp_path / "asks.html")
    assert requests(chrome) == ["file:///absent.png"]
    assert any("nothing is not defined" in entry["message"] for entry in chrome.get_log("browser"))


def test_its_policy_admits_its_own_scripts_only(shown: Chrome, page: Path) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page.read_text())
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "unsafe" not in policy[1].split("script-src")[1]
    shown.execute_script("const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s)")
    assert shown.execute_script("return window.ran") is None
    assert any("Content Security Policy" in entry["message"] for entry in shown.get_log("browser"))


def test_it_refers_to_nothing_outside(page: Path) -> None:
    shell = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', shell)) == {"data:,", "#answer"}
    assert not re.search(r"url\(|@import", shell)


def test_it_is_small_and_the_same_each_time(page: Path, trace: Path, cli: Cli) -> None:
    content = page.read_bytes()
    data = re.search(rb'<script type="application/json" id="report">(.*?)</script>', content, re.DOTALL)
    assert data is not None
    assert len(content) - len(data[1]) < 1_000_000
    again = cli("report", trace, "--format", "html", "--saved")
    assert again.stdout.encode() == content


@pytest.mark.parametrize("chart", CHARTS)
def test_every_chart_is_drawn_says_what_it_shows_and_has_its_numbers(shown: Chrome, chart: str) -> None:
    drawn = shown.execute_script(
        """
        const marks = document.querySelectorAll(`#${arguments[0]} svg :is(rect, path, line)`);
        return [...marks].filter((mark) => { const box = mark.getBBox(); return box.width > 1 && box.height > 1; }).length
        """,
        chart,
    )
    # One part of the key alone explains misses of this trace.
    assert drawn >= (1 if chart == "key-parts" else 2)
    assert len(text(shown, f"#{chart} .says")) > 30
    for svg in shown.find_elements(By.CSS_SELECTOR, f"#{chart} svg"):
        assert svg.get_attribute("role") == "img"
        assert svg.get_attribute("aria-label")
    assert cells(shown, f"#{chart} details")


def test_every_chart_of_the_page_is_in_that_test(shown: Chrome) -> None:
    drawn = shown.execute_script("return [...document.querySelectorAll('figure:has(.chart)')].map((figure) => figure.id)")
    assert drawn == CHARTS


def test_no_figure_is_left_without_a_sentence(shown: Chrome) -> None:
    figures = shown.find_elements(By.CSS_SELECTOR, "figure")
    assert len(figures) >= len(CHARTS)
    for figure in figures:
        assert len(figure.find_element(By.CSS_SELECTOR, ".says").text) > 10
        assert "undefined" not in figure.text
        assert "NaN" not in figure.text


def test_it_tells_the_story_of_the_terminal_in_its_order(shown: Chrome, trace: Path, cli: Cli) -> None:
    printed = cli("report", trace, "--saved").stdout
    headings = [part for line in printed.splitlines() if re.match(r"[A-Z][a-z]", line) for part in re.split(" {3,}", line)]
    titles = [
        title.split(" (")[0] for title in shown.execute_script("return [...document.querySelectorAll('h2')].map((h) => h.textContent)")
    ]
    assert len(titles) > 10
    assert [title for title in titles if title in headings] == [heading for heading in headings if heading in titles]
    assert set(titles) - set(headings) <= {"The answer", "Worth a look"}


def test_the_answer_is_the_report_s(shown: Chrome, facts: Any) -> None:
    answer = text(shown, "#answer")
    assert f"{facts['events']['cr3']}\ncr3 loads" in answer
    assert f"{facts['get_page']['hits']} of {facts['get_page']['lookups']}" in answer
    assert f"{facts['access']['faults']}\npage faults" in answer


def test_a_phase_changes_the_answer_a_table_and_a_chart(shown: Chrome, facts: Any) -> None:
    before = shown.find_element(By.CSS_SELECTOR, "#timeline .stage").get_attribute("innerHTML")
    slices = cells(shown, "#timeline details")
    choose(shown, "phase", 2)
    phase = facts["phases"][2]
    assert phase["name"] == HOSTILE
    assert f"{phase['cr3']}\nloads of roots\nof {sum(one['cr3'] for one in facts['phases'])} in all" in text(shown, "#answer")
    assert [row[0] for row in cells(shown, "#phases")] == [SHOWN]
    assert shown.find_element(By.CSS_SELECTOR, "#timeline .stage").get_attribute("innerHTML") != before
    narrowed = cells(shown, "#timeline details")
    assert [row for row in slices if int(row[0]) >= phase["first"]] == narrowed
    assert 0 < len(narrowed) < len(slices)
    Select(shown.find_element(By.ID, "choose-phase")).select_by_visible_text("all")
    assert cells(shown, "#timeline details") == slices


def test_an_address_space_changes_tables_and_a_chart(shown: Chrome, facts: Any) -> None:
    index = next(i for i, space in enumerate(facts["spaces"]) if space["name"] == "init")
    before = shown.find_element(By.CSS_SELECTOR, "#matrix-end svg").get_attribute("outerHTML")
    assert len(cells(shown, "#spaces-all")) == len(facts["spaces"]) > 1
    choose(shown, "space", index)
    assert [row[0] for row in cells(shown, "#spaces-all")] == ["init"]
    assert [row[0] for row in cells(shown, "#programs details")] == ["init"]
    assert shown.find_element(By.CSS_SELECTOR, "#matrix-end svg").get_attribute("outerHTML") != before


def test_a_mode_leaves_only_its_roles(shown: Chrome) -> None:
    modes = {row[0] for row in cells(shown, "#hits details")}
    assert modes == {"long", "32-bit", "no paging"}
    choose(shown, "mode", 4)
    assert {row[0] for row in cells(shown, "#hits details")} == {"long"}


def test_the_matrix_holds_the_facts(shown: Chrome, facts: Any) -> None:
    matrix = facts["space_sharing"]["end"]["matrix"]
    rows = cells(shown, "#matrix-end .numbers > :last-child")
    assert [[int(cell.replace("·", "0")) for cell in row[1:]] for row in rows] == matrix["shared"]
    assert max(max(row) for row in matrix["shared"]) > 2
    assert any(row[0].startswith(SHOWN) for row in rows)


def test_names_are_text_and_do_nothing(shown: Chrome, page: Path) -> None:
    scripts = shown.execute_script("return [...document.scripts].map((script) => script.type || 'script')")
    assert scripts.count("application/json") == 1
    assert len(scripts) == page.read_text().count("<script")
    assert shown.title.startswith("</script><script>alert(1)</script><!--")
    everything = shown.execute_script("return document.body.innerText")
    assert SHOWN in everything
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", everything)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page.read_text())


def test_a_table_is_sorted_by_any_column(shown: Chrome) -> None:
    column = shown.find_elements(By.CSS_SELECTOR, "#spaces-all th button")[5]
    for order, reverse in (("descending", True), ("ascending", False)):
        column.click()
        loads = [int(row[5].replace("·", "0")) for row in cells(shown, "#spaces-all")]
        assert loads == sorted(loads, reverse=reverse)
        assert shown.execute_script("return arguments[0].parentNode.getAttribute('aria-sort')", column) == order


def test_it_can_be_used_with_the_keyboard_alone(shown: Chrome) -> None:
    body = shown.find_element(By.TAG_NAME, "body")
    visited: list[str] = []
    while len(visited) < 200:
        shown.switch_to.active_element.send_keys(Keys.TAB)
        focus = shown.switch_to.active_element
        if focus == body:
            break
        visited.append(focus.get_attribute("id") or focus.get_attribute("class") or focus.tag_name)
        if focus.get_attribute("id") == "moment":
            focus.send_keys(Keys.ARROW_RIGHT)
            assert text(shown, ".moment").startswith("Events 2 to 2")
            assert shown.find_element(By.CSS_SELECTOR, ".cursor").is_displayed()
    assert visited[0] == "skip"
    order = ["choose-phase", "choose-space", "choose-mode", "numbers", "theme", "moment"]
    assert [stop for stop in visited if stop in order] == order
    assert visited.count("summary") >= len(CHARTS)


def test_focus_and_open_numbers_outlive_a_choice(shown: Chrome) -> None:
    summary = shown.find_element(By.CSS_SELECTOR, "#hits summary")
    summary.send_keys(Keys.ENTER)
    select = shown.find_element(By.ID, "choose-mode")
    select.send_keys(Keys.ARROW_DOWN)
    assert shown.switch_to.active_element == select
    assert shown.find_element(By.CSS_SELECTOR, "#hits table").is_displayed()


def test_all_numbers_open_and_close_at_once(shown: Chrome) -> None:
    button = shown.find_element(By.ID, "numbers")
    for pressed in (True, False):
        button.click()
        states = shown.execute_script("return [...document.querySelectorAll('main details')].map((one) => one.open)")
        assert set(states) == {pressed}


LUMINANCE = """
const read = (element, property) => getComputedStyle(element)[property].match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const page = light(read(document.body, 'backgroundColor'));
const contrast = (element) => { const ink = light(read(element, 'color')); return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05); };
return [page, ...['body', '.says', 'a', '.judged'].map((which) => contrast(document.querySelector(which)))];
"""


#: The least contrast of a number in a cell of a chart with its cell, as drawn and at every part that a cell can show.
CELLS = """
const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const found = [];
for (const id of ['matrix-peak', 'matrix-end', 'quadrants', 'parents-levels']) {
  const svg = document.querySelector(`#${id} .scroll svg`);
  const card = rgb(getComputedStyle(svg.closest('figure')).backgroundColor);
  const rects = [...svg.querySelectorAll('rect')].filter((rect) => rect.hasAttribute('fill-opacity'));
  for (const text of svg.querySelectorAll('g[aria-label="text"] text')) {
    const at = text.getBoundingClientRect();
    const over = (box) => box.left <= at.left + at.width / 2 && at.left + at.width / 2 <= box.right
      && box.top <= at.top + at.height / 2 && at.top + at.height / 2 <= box.bottom;
    const rect = rects.find((one) => over(one.getBoundingClientRect()));
    if (!rect) continue;
    const [cell, ink] = [rgb(getComputedStyle(rect).fill), light(rgb(getComputedStyle(text).fill))];
    for (const part of [Number(rect.getAttribute('fill-opacity')), ...Array.from({ length: 48 }, (_, i) => 0.06 + 0.02 * i)]) {
      const under = light(cell.map((v, i) => part * v + (1 - part) * card[i]));
      found.push((Math.max(ink, under) + 0.05) / (Math.min(ink, under) + 0.05));
    }
  }
}
return found;
"""


@pytest.mark.parametrize("kind", ["screen", "print"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_in_cells_are_readable_whatever_their_part(shown: Chrome, scheme: str, kind: str) -> None:
    try:
        media(shown, kind=kind, prefers_color_scheme=scheme)
        contrasts = shown.execute_script(CELLS)
        assert len(contrasts) > 500
        assert min(contrasts) >= 4.5
    finally:
        media(shown)


def media(chrome: Chrome, **features: str) -> None:
    kind = features.pop("kind", "screen")
    wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": wanted})


def test_it_is_dark_or_light_as_asked_and_readable_in_both(shown: Chrome) -> None:
    try:
        media(shown, prefers_color_scheme="light")
        page, *contrasts = shown.execute_script(LUMINANCE)
        assert page > 0.9
        assert min(contrasts) > 4.5
        media(shown, prefers_color_scheme="dark")
        page, *contrasts = shown.execute_script(LUMINANCE)
        assert page < 0.02
        assert min(contrasts) > 4.5
        theme = shown.find_element(By.ID, "theme")
        theme.click()
        assert shown.execute_script(LUMINANCE)[0] > 0.9
        theme.click()
        media(shown, prefers_color_scheme="light")
        assert shown.execute_script(LUMINANCE)[0] < 0.02
    finally:
        media(shown)


def test_on_paper_it_is_dark_on_white_without_controls(shown: Chrome) -> None:
    try:
        media(shown, kind="print", prefers_color_scheme="dark")
        page, *contrasts = shown.execute_script(LUMINANCE)
        assert page == 1
        assert min(contrasts) > 4.5
        for hidden in ("#filters", "#contents", ".moments", "#hits details"):
            assert not shown.find_element(By.CSS_SELECTOR, hidden).is_displayed()
        assert shown.find_element(By.CSS_SELECTOR, "#hits svg").is_displayed()
    finally:
        media(shown)


@pytest.mark.parametrize("width", [320, 340, 360, 768, 1600])
def test_no_width_makes_the_page_scroll_sideways(chrome: Chrome, page: Path, width: int) -> None:
    try:
        chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        )
        opened(chrome, page)
        chrome.find_element(By.ID, "numbers").click()
        assert chrome.execute_script("return document.documentElement.scrollWidth") == width
        assert chrome.get_log("browser") == []
    finally:
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_narrow_page_cuts_no_role_s_name(chrome: Chrome, page: Path) -> None:
    """The longest is "no paging level 2 q0..3 meta". Each line of it lies within the chart."""
    script = """
        const drawn = document.querySelector("#hits svg");
        return [...drawn.querySelectorAll('g[aria-label="y-axis tick label"] > text')].map((label) => [
          label.children.length ? [...label.children].map((line) => line.textContent).join(" ") : label.textContent,
          label.getBoundingClientRect().left - drawn.getBoundingClientRect().left,
        ]);
    """
    try:
        for width in (360, 420, 1600):
            chrome.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            )
            opened(chrome, page)
            labels = chrome.execute_script(script)
            assert "no paging level 2 q0..3 meta" in [name for name, _ in labels]
            assert all("…" not in name and left >= 0 for name, left in labels)
    finally:
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_survives_what_facts_do_not_hold(chrome: Chrome, page: Path, tmp_path: Path) -> None:
    before, rest = page.read_text().split('id="report">')
    data, after = rest.split("</script>", 1)
    report = json.loads(data)
    newer = (
        "roles",
        "key",
        "frames",
        "parents",
        "hash",
        "origin",
        "phases",
        "spaces",
        "processes",
        "space_sharing",
        "over_time",
        "saved",
        "findings",
    )
    for name in newer[5:]:
        report["facts"].pop(name)
    for name in ("parents_top", "memory"):
        report["facts"].pop(name)
    for name in ("top", "most_made"):
        report["facts"]["frames"].pop(name)
    for name in ("chains", "worst"):
        report["facts"]["hash"].pop(name)
    bare = json.dumps(report).replace("<", "\\u003c")
    (tmp_path / "bare.html").write_text(f'{before}id="report">{bare}</script>{after}')
    opened(chrome, tmp_path / "bare.html")
    assert chrome.get_log("browser") == []
    assert "replay it again" in text(chrome, "#timeline")
    assert chrome.find_elements(By.CSS_SELECTOR, "#hits svg")


def test_a_run_without_a_cache_has_a_page_too(chrome: Chrome, trace: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("report", trace, "--model", "uncached", "--format", "html", "-o", tmp_path / "u.html")
    assert done.returncode == 0, done.stderr
    opened(chrome, tmp_path / "u.html")
    assert chrome.get_log("browser") == []


def test_a_page_is_not_for_a_terminal(trace: Path) -> None:
    ours, theirs = os.openpty()
    program = Path(sys.executable).with_name("shadowtrace")
    done = subprocess.run([program, "report", trace, "--format", "html"], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert "-o FILE" in done.stderr


def test_a_page_replaces_no_trace_and_holds_no_rows(trace: Path, cli: Cli) -> None:
    onto = cli("report", trace, "--format", "html", "-o", trace)
    assert onto.returncode == 2
    assert "it is not replaced" in onto.stderr
    rows = cli("report", trace, "--format", "html", "--by", "level")
    assert rows.returncode == 2
    assert "leave out --by" in rows.stderr


def test_any_report_can_be_written_to_a_file(trace: Path, tmp_path: Path, cli: Cli) -> None:
    for arguments in (("--format", "table"), ("--format", "json"), ("--by", "level", "--format", "csv")):
        assert cli("report", trace, *arguments, "-o", tmp_path / "out").stdout == ""
        assert (tmp_path / "out").read_text() == cli("report", trace, *arguments).stdout


@pytest.mark.parametrize("library", vendor.LIBRARIES, ids=lambda library: library.name)
def test_the_chart_library_is_what_was_fetched(library: Any) -> None:
    kept = vendor.VENDOR / f"{library.name}.min.js"
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == library.sha256, "run make vendor"
    assert library.version in kept.read_text()[:200]
    assert "Permission to use, copy, modify" in (vendor.VENDOR / f"{library.name}.LICENSE").read_text()


def test_the_licences_travel_with_the_page(page: Path) -> None:
    content = page.read_text()
    for library in vendor.LIBRARIES:
        assert (vendor.VENDOR / f"{library.name}.LICENSE").read_text() in content


def test_of_many_names_the_first_are_shown_and_all_when_asked(chrome: Chrome, tmp_path: Path, cli: Cli) -> None:
    """Fourteen address spaces share the table at 0x2000 and what is under it."""
    tables = [line for line in EVENTS.splitlines() if any(f'"gpa":"{gpa}"' in line for gpa in ("0x2000", "0x3000"))]
    modes = [line for line in EVENTS.splitlines() if '"regs"' in line]
    roots = [f"0x{gfn:x}000" for gfn in range(0x20, 0x2E)]
    contents = [f'{{"ev":"page","gpa":"{root}","words":{{"511":"0x2067"}}}}' for root in roots]
    used = [
        line
        for root in roots
        for line in (f'{{"ev":"cr3","value":"{root}"}}', '{"ev":"access","va":"0xffffff8000001000","write":0,"user":0,"fetch":0}')
    ]
    events = [*tables, '{"ev":"page","gpa":"0x4000","words":{"1":"0x9067"}}', *contents, modes[0], used[0], modes[1], *used[1:]]
    (tmp_path / "many.jsonl").write_text("\n".join(events) + "\n")
    assert cli("import", tmp_path / "many.jsonl", "-o", tmp_path / "many.db").returncode == 0
    done = cli("report", tmp_path / "many.db", "--format", "html", "-o", tmp_path / "many.html")
    assert done.returncode == 0, done.stderr
    opened(chrome, tmp_path / "many.html")
    (row,) = [row for row in cells(chrome, "#parents-top") if row[0] == "gfn 0x2"]
    assert row[-1] == ", ".join(f"gfn 0x{gfn:x}" for gfn in range(0x20, 0x28)) + " and 6 more"
    chrome.execute_script("document.querySelector('#parents-top .rest-of-names').click()")
    (row,) = [row for row in cells(chrome, "#parents-top") if row[0] == "gfn 0x2"]
    assert row[-1] == ", ".join(f"gfn 0x{gfn:x}" for gfn in range(0x20, 0x2E))
    assert chrome.get_log("browser") == []


def made(
    folder: Path, events: list[str], cli: Cli, marks: Sequence[tuple[int, str]] = (), programs: Sequence[tuple[int, int, str]] = ()
) -> Path:
    """The page of these events; a program has the event before its root's first, the root's frame, its name."""
    (folder / "e.jsonl").write_text("\n".join(events) + "\n")
    assert cli("import", folder / "e.jsonl", "-o", folder / "e.db").returncode == 0
    with sqlite3.connect(folder / "e.db") as database:
        database.executemany("INSERT INTO mark (seq, name, vcpu) VALUES (?, ?, 0)", marks)
        database.executemany("INSERT INTO address_space (seq, root_gfn, pid, comm) VALUES (?, ?, NULL, ?)", programs)
    done = cli("report", folder / "e.db", "--format", "html", "-o", folder / "e.html")
    assert done.returncode == 0, done.stderr
    return folder / "e.html"


LOADED = '{"ev":"cr3","value":"0x1000"}'


def test_a_phase_shorter_than_a_slice_is_not_drawn_with_others_events(chrome: Chrome, tmp_path: Path, cli: Cli) -> None:
    """1,000 loads more: slices of 6 events. Events 23 to 25 lie within the fourth, 26 to 40 hold the slices from 31 on to 36 whole."""
    page = made(tmp_path, EVENTS.splitlines() + [LOADED] * 1000, cli, [(23, "short"), (26, "longer"), (41, "rest")])
    opened(chrome, page)
    (bucket,) = {int(b) - int(a) for a, b in itertools.pairwise(row[0] for row in cells(chrome, "#timeline details")[:9])}
    assert bucket == 6
    choose(chrome, "phase", 1)
    for figure in ("timeline", "frames-time", "apart-time", "parents-time"):
        assert "No slice of 6 events lies wholly in this phase of 3" in text(chrome, f"#{figure} .says")
        assert not chrome.find_elements(By.CSS_SELECTOR, f"#{figure} svg")
    choose(chrome, "phase", 2)
    assert [row[0] for row in cells(chrome, "#timeline details")] == ["31"]
    assert "left out" in text(chrome, "#timeline .says")
    assert chrome.get_log("browser") == []


def test_short_lives_are_at_least_a_pixel_wide(chrome: Chrome, tmp_path: Path, cli: Cli) -> None:
    """Each of 40 address spaces is loaded once among 8,000 events: an eighth of a pixel."""
    events = [line for line in EVENTS.splitlines() if '"page"' in line or '"regs"' in line][:11]
    events = [*events, LOADED, '{"ev":"regs","cr0":"0x80010011"}']
    for gfn in range(0x20, 0x48):
        events += [f'{{"ev":"page","gpa":"0x{gfn:x}000","words":{{"511":"0x2067"}}}}', f'{{"ev":"cr3","value":"0x{gfn:x}000"}}']
        events += [LOADED] * 198
    opened(chrome, made(tmp_path, events, cli))
    widths = chrome.execute_script(
        "return [...document.querySelectorAll('#timeline svg[aria-label^=\"Address spaces\"] rect')].map((rect) => rect.width.baseVal.value)"
    )
    assert len(widths) > 40
    assert min(widths) > 0.99


def test_a_frame_that_is_a_root_in_two_modes_is_named_with_each(chrome: Chrome, tmp_path: Path, cli: Cli) -> None:
    """The trace of the other tests, but that nothing names its programs: frame 1 is a root of long mode and of two-level paging."""
    opened(chrome, made(tmp_path, EVENTS.splitlines(), cli))
    offered = [option.text for option in Select(chrome.find_element(By.ID, "choose-space")).options]
    assert [name for name in offered if name.startswith("gfn 0x1")] == ["gfn 0x1 (long)", "gfn 0x1 (32-bit)"]
    assert "gfn 0x6" in offered
    names = [row[0] for row in cells(chrome, "#matrix-end .numbers > :last-child")]
    assert len(names) == len(set(names)) > 2
    assert "gfn 0x1 (32-bit)" in names


def test_only_names_that_several_have_say_from_when_on(chrome: Chrome, tmp_path: Path, cli: Cli) -> None:
    """Frames 1, in two paging modes, and 6 are roots of programs of one name, frame 0xe of another."""
    opened(chrome, made(tmp_path, EVENTS.splitlines(), cli, programs=[(10, 1, "sh"), (14, 6, "sh"), (22, 0xE, "init")]))
    offered = [option.text for option in Select(chrome.find_element(By.ID, "choose-space")).options][1:]
    assert offered == ["no paging", "sh from 12", "sh from 15", "init", "sh from 35"]
    named = {key: [row[0] for row in cells(chrome, f"#matrix-{key} .numbers > :last-child")] for key in ("peak", "end")}
    assert named == {"peak": offered[:3], "end": offered}


@pytest.mark.boot
def test_the_page_of_a_real_boot(chrome: Chrome, boot: Boot, tmp_path: Path, cli: Cli) -> None:
    done = cli("report", boot.trace, "--format", "html", "-o", tmp_path / "boot.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "boot.html").stat().st_size < 1_500_000
    opened(chrome, tmp_path / "boot.html")
    assert chrome.get_log("browser") == []
    assert requests(chrome) == []
    assert {"init", "busybox"} <= {row[0] for row in cells(chrome, "#programs details")}
    assert "first user process" in [row[0] for row in cells(chrome, "#phases")]
    assert len(chrome.find_elements(By.CSS_SELECTOR, "#timeline svg rect")) > 500


@pytest.mark.boot
def test_readme_shows_what_the_command_prints(boot: Boot, cli: Cli, tmp_path: Path) -> None:
    shutil.copy(boot.trace, tmp_path / "demo.db")
    printed = readme.block(cli("report", "demo.db", cwd=tmp_path).stdout)
    page = readme.README.read_text()
    kept = page[page.index(readme.BEGIN) + len(readme.BEGIN) + 1 : page.index(readme.END) - 1]
    assert form(kept) == form(printed)
    assert readme.between(page, readme.BEGIN, printed, readme.END).count(readme.BEGIN) == 1


def test_readme_says_of_a_whole_system_what_its_replays_have() -> None:
    role = {"glevels": 4, "level": 2, "made": 50, "deaths": {"evict": 40, "flood": 3}}
    leaf = {"glevels": 4, "level": 1, "made": 150, "deaths": {"evict": 10}}

    def document(evicted: int, hits: int) -> dict[str, Any]:
        facts = {"roles": [role, leaf], "get_page": {"misses": 200, "lookups": 400, "hits": hits}, "zaps": {"evict": evicted}}
        return {"trace": {"events": 5000}, "facts": facts}

    text = readme.paragraph(document(50, 200), document(3, 220), "debian13")
    assert "5,000 events and makes 200 shadow pages in that cache, which evicts 50 of them (25 %)" in text
    assert "80 % of its upper tables. With 1,024 pages it evicts 3. The hit rate is 55.0 % then, 50.0 % before" in text
    page = readme.README.read_text()
    kept = page[page.index(readme.BEGIN_SYSTEM) : page.index(readme.END_SYSTEM)]
    assert re.sub(r"[\d.,]*\d", "N", text) in re.sub(r"[\d.,]*\d", "N", kept)


def form(block: str) -> list[str]:
    """The lines of README's block that every boot has, without numbers: its opening, the answer, headings."""
    lines = [re.sub(r"[\d.,]*\d", "N", re.sub(r" +|, all \w.*", " ", line)).rstrip() for line in block.splitlines()]
    return [*lines[:7], *(line for line in lines[7:] if line and not line.startswith(" "))]


@pytest.mark.parametrize("picture", [readme.PICTURE, readme.SYSTEM_PICTURE])
def test_the_pictures_are_small_pngs(picture: Path) -> None:
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 200_000
    assert f"({picture.relative_to(ROOT)})" in readme.README.read_text()


def test_a_picture_is_made_of_a_page(page: Path) -> None:
    picture = readme.picture(page, readme.SHOWN)
    width = int.from_bytes(picture[16:20], "big")
    height = int.from_bytes(picture[20:24], "big")
    assert width == readme.WIDTH
    assert height > 900
