"""The report as one HTML file: the JSON report and a page that draws it, with no network, no server and no build.

The parts lie in ``html/``: ``template.html``, ``style.css``, our scripts, and under ``vendor/`` the chart library as
``docs/vendor.py`` fetched it. Everything from the trace goes into the page as data, which the scripts show as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from string import Template

from analyzer.replay import Run
from analyzer.reports import json as json_report
from analyzer.reports.about import About, opening
from analyzer.reports.text import printable
from x86.registers import Mode

#: Chart libraries, and our own scripts: in the order in which the page has to load them.
LIBRARIES = ("d3", "plot")
SCRIPTS = ("page.js", "names.js", "figures.js", "charts.js", "timeline.js", "where.js", "when.js", "sharing.js", "story.js", "app.js")


def report(about: About, run: Run) -> str:
    """The whole page; the same for the same trace and run, to the last byte."""
    document = json.loads(json_report.report(about, run))
    document["opening"] = list(opening(about, run))
    document["modes"] = {str(mode.value): mode.label for mode in Mode}
    scripts = [*map(_library, LIBRARIES), *map(_part, SCRIPTS)]
    return Template(_part("template.html")).substitute(
        policy=" ".join(map(_source, scripts)),
        title=escape(f"{printable(about.guest)} · shadowtrace"),
        style=_part("style.css"),
        report=_data(document),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _part(name: str) -> str:
    return (resources.files("analyzer.reports") / "html" / name).read_text("utf-8")


def _library(name: str) -> str:
    """A chart library under its licence."""
    return f"/*\n{_part(f'vendor/{name}.LICENSE')}*/\n{_part(f'vendor/{name}.min.js')}"


def _source(script: str) -> str:
    """How a content security policy names this script, and with it no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _data(document: object) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(document, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
