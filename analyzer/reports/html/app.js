"use strict";

/* What is chosen, and drawing again when that or the width changes. */

const report = JSON.parse(document.getElementById("report").textContent);
const chosen = { phase: null, space: null, mode: null };
const views = [];

/** Give each slice of time its end: the first event after it. */
function prepare({ over_time: over }, events) {
  over?.buckets.forEach((bucket, i) => { bucket.end = over.buckets[i + 1]?.first ?? Math.max(events + 1, bucket.first + 1); });
}

function opening() {
  const [title, ...lines] = report.opening;
  const parts = title.split(" · ");
  document.getElementById("opening").append(
    el("p", { class: "brand" }, "shadowtrace report"),
    el("h1", {}, parts[0]),
    el("p", { class: "what" }, parts.slice(1).join(" · ")),
    ...lines.map((line) => el("p", { class: /LOST|WRONG|NOT SEALED|RECORDED/.test(line) ? "judged loud" : "judged" }, line.trim())),
  );
}

function choice(key, label, options) {
  const select = el("select", { id: `choose-${key}`, change: () => { chosen[key] = select.value === "" ? null : +select.value; draw(); } },
    el("option", { value: "" }, "all"), ...options.map(([value, text]) => el("option", { value }, text)));
  return options.length > 1 ? el("label", {}, `${label} `, select) : null;
}

const THEMES = ["auto", "light", "dark"];

function filters() {
  const { phases = [], spaces = [], roles } = report.facts;
  const modes = [...new Set(roles.map((role) => role.glevels))].sort((a, b) => b - a);
  let theme = 0;
  const themed = el("button", { type: "button", id: "theme", click: () => {
    theme = (theme + 1) % THEMES.length;
    document.documentElement.dataset.theme = THEMES[theme];
    themed.replaceChildren(`Colours: ${THEMES[theme]}`);
  } }, "Colours: auto");
  const opened = el("button", { type: "button", id: "numbers", "aria-pressed": "false", click: () => {
    const open = opened.getAttribute("aria-pressed") !== "true";
    opened.setAttribute("aria-pressed", open);
    document.querySelectorAll("main details").forEach((details) => { details.open = open; });
  } }, "All numbers");
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(...[
    choice("phase", "Phase", phases.map((phase, index) => [index, printable(phase.name)])),
    choice("space", "Address space", spaceNames(spaces).map((name, index) => [index, name])),
    choice("mode", "Paging mode", modes.map((mode) => [mode, report.modes[mode]])),
    el("span", { class: "gap" }), opened, themed,
  ].filter(Boolean));
}

function contents() {
  document.getElementById("contents").append(...[...document.querySelectorAll("main > section")].map((part) =>
    el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
}

/** Draw every view again; each keeps its place, its focus and its open numbers. */
function draw() {
  for (const view of views) view();
  reachable();
}

prepare(report.facts, report.run.events);
opening();
filters();
story(document.getElementById("story"));
contents();
draw();

let drawnWidth = document.documentElement.clientWidth;
document.addEventListener("toggle", reachable, true);
addEventListener("resize", () => {
  if (document.documentElement.clientWidth === drawnWidth) return;
  drawnWidth = document.documentElement.clientWidth;
  draw();
});

/** Paper is drawn for its own width, so that letters keep their size. */
addEventListener("beforeprint", () => {
  document.body.style.width = "760px";
  draw();
  document.body.style.width = "";
});
addEventListener("afterprint", draw);

document.getElementById("closing").append(el("p", {},
  `Made by shadowtrace ${report.run.version}. Charts: Observable Plot and D3 (ISC licence, in this file). `,
  "Every number is defined in docs/counters.md."));
