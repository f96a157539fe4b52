"use strict";

/* The boot over time: panels that share an x-axis of events, and one moment that keys and mouse move through them. */

const EDGE = { marginLeft: 58, marginRight: 14 };

/** How the axis of events is labelled. */
function axis(width) {
  return { ticks: Math.max(3, Math.round(width / 120)), tickFormat: (at) => (Number.isInteger(at) ? `event ${short(at)}` : "") };
}

/** Address spaces that have room in the timeline. */
const LANES = 10;

const SERIES = [
  ["cr3", "loads of roots: cr3, changes of mode", "var(--cr3)"],
  ["faults", "page faults (exits)", "var(--faults)"],
  ["stores", "stores to tables, emulated", "var(--stores)"],
  ["zapped", "pages zapped", "var(--zaps)"],
  ["made", "pages made", "var(--made)"],
];

/** Spans of events on lanes, half a pixel off their neighbours; the shortest are a pixel wide and fill it. */
function lanes(says, width, range, rows, height, paint) {
  const [from, to] = range;
  const seen = (row) => Math.max(0, Math.min(row.last, to) - Math.max(row.first, from)) / (to - from || 1) * (width - 72);
  const pixel = (to - from) / (width - EDGE.marginLeft - EDGE.marginRight);
  const inside = rows.filter((row) => row.first < to && row.last >= from).map((row) => {
    const [x1, x2] = [Math.max(row.first, from), Math.min(row.last + 1, to)];
    return x2 - x1 > 2 * pixel ? { ...row, x1: x1 + pixel / 2, x2: x2 - pixel / 2 } : { ...row, x1: Math.min(x1, to - pixel), x2: Math.max(x2, Math.min(x1, to - pixel) + pixel) };
  });
  const labelled = inside.filter((row) => seen(row) > 12 + 7 * Math.min(row.name.length, 5));
  return plot(says, {
    ...EDGE, width, height: height * (d3.max(rows, (row) => row.lane) + 1) + 4, marginTop: 2, marginBottom: 2,
    x: { domain: range, axis: null },
    y: { domain: d3.range(d3.max(rows, (row) => row.lane) + 1), axis: null, padding: 0.12 },
    marks: [
      Plot.barX(inside, { x1: "x1", x2: "x2", y: "lane", inset: 0, rx: 2, ...paint }),
      Plot.text(labelled, {
        x: "x1", y: "lane", dx: 5, textAnchor: "start", fill: "var(--ink)",
        text: (row) => clip(row.name, seen(row) + 2),
      }),
    ],
  });
}

function panel(label, says, options) {
  return el("div", { class: "panel" }, el("p", { class: "panel-name", "aria-hidden": "true" }, ...label), plot(says, { ...EDGE, marginTop: 6, marginBottom: 4, ...options }));
}

/** The panels for one range of events. over: facts.over_time; shown: its buckets in the range; phases and spaces: lanes {name, first, last, lane}. */
function timeline(width, range, over, shown, phases, spaces, chosen) {
  const x = { domain: range, axis: null };
  const y = { ticks: 3, tickFormat: short, label: null, grid: true, nice: true, tickSize: 0 };
  const parts = [];
  if (phases.length) {
    parts.push(el("div", { class: "panel" }, el("p", { class: "panel-name", "aria-hidden": "true" }, "phases"),
      lanes("Phases of the boot", width, range, phases, 22, { fill: "var(--phase)" })));
  }
  if (spaces.length) {
    parts.push(el("div", { class: "panel" }, el("p", { class: "panel-name", "aria-hidden": "true" }, `address spaces, from their first to their last load of cr3`),
      lanes("Address spaces from their first to their last load", width, range, spaces, 20,
        { fill: (row) => (chosen === null || chosen === row.space ? "var(--space)" : "var(--phase)") })));
  }
  for (const [key, name, color] of SERIES) {
    const most = d3.max(shown, (bucket) => bucket[key]) ?? 0;
    const height = most ? `up to ${number(most)} in ${number(over.bucket_events)} events` : "none";
    parts.push(panel([name, el("span", { class: "soft" }, height)], `${name} over time, ${height}`, {
        width, height: 76, x, y: { ...y, domain: [0, most || 1] },
        marks: [Plot.rectY(shown, { ...SPAN, y: key, fill: color }), Plot.ruleY([0], { stroke: "var(--line)" })],
      }));
  }
  parts.push(levels(width, range, shown, x, y));
  parts.push(plot("Axis of events", {
    ...EDGE, width, height: 24, marginTop: 0, marginBottom: 22, y: { axis: null },
    x: { domain: range, label: null },
    marks: [Plot.ruleX([range[0]], { stroke: "none" }), Plot.axisX(axis(width))],
  }));
  return parts;
}

function levels(width, range, shown, x, y) {
  const known = [...new Set(shown.flatMap((bucket) => Object.keys(bucket.live)))].sort().reverse();
  const live = shown.flatMap((bucket) => known.map((level) => ({
    level, pages: bucket.live[level] ?? 0, first: bucket.first, end: bucket.end,
  })));
  return panel(["live shadow pages by level", legend(known.map((level) => [`level ${level}`, LEVELS[level]]))],
    "live shadow pages by level over time", {
      width, height: 130, x, y,
      marks: [
        Plot.rectY(live, Plot.stackY({ order: known }, { ...SPAN, y: "pages", z: "level", fill: (row) => LEVELS[row.level] })),
        Plot.ruleY([0], { stroke: "var(--line)" }),
      ],
    });
}

/** A plot over a range of events with an axis of its own, up to ``most``. */
function alone(says, width, range, most, mark) {
  return plot(says, {
    ...EDGE, width, height: 120, marginTop: 6, marginBottom: 24,
    x: { domain: range, label: null, ...axis(width) },
    y: { ticks: 3, tickFormat: short, label: null, grid: true, nice: true, tickSize: 0, domain: [0, most || 1] },
    marks: [mark, Plot.ruleY([0], { stroke: "var(--line)" })],
  });
}

/** Where a slice of time lies on the axis. */
const SPAN = { x1: "first", x2: "end", inset: 0, shapeRendering: "crispEdges" };

/** One number over a range of events. */
function strip(says, width, range, shown, of, color) {
  return alone(says, width, range, d3.max(shown, of), Plot.rectY(shown, { ...SPAN, y: of, fill: color }));
}

/** Frames by how many pages they have, one kind on the other, over a range of events. parts: {name, frames, first, end} */
function stacked(says, width, range, parts, names) {
  const most = d3.max(d3.rollup(parts, (rows) => d3.sum(rows, (row) => row.frames), (row) => row.first).values());
  return alone(says, width, range, most,
    Plot.rectY(parts, Plot.stackY({ order: names }, { ...SPAN, y: "frames", z: "name", fill: (row) => BY_PAGES[row.name] })));
}

/** What a bucket holds, in words. */
function moment(bucket, phases, spaces) {
  const at = (rows) => rows.filter((row) => row.first < bucket.end && row.last >= bucket.first).map((row) => row.name);
  const live = Object.entries(bucket.live).reverse().map(([level, pages]) => `${number(pages)} at level ${level}`);
  return [
    `Events ${number(bucket.first)} to ${number(bucket.end - 1)}${at(phases).length ? ` (${at(phases).join(", ")})` : ""}: `,
    SERIES.map(([key, name]) => `${number(bucket[key])} ${name}`).join("; "),
    `; ${number(bucket.hits)} of ${number(bucket.lookups)} look-ups hit. Alive after it: ${live.join(", ")}.`,
    at(spaces).length ? ` Address spaces: ${at(spaces).slice(0, 4).join(", ")}${at(spaces).length > 4 ? ` and ${at(spaces).length - 4} more` : ""}.` : "",
  ].join("");
}

/** A slider over buckets with a line through all panels: ``stage`` holds the panels, the mouse moves it as keys do. */
function cursor(stage, width, range, shown, phases, spaces) {
  const line = el("div", { class: "cursor", hidden: true });
  const words = el("output", { class: "moment", for: "moment" }, "Move over the timeline, or use the slider with the arrow keys, to read one moment.");
  const slider = el("input", { type: "range", id: "moment", min: 0, max: Math.max(0, shown.length - 1), value: 0 });
  const span = width - EDGE.marginLeft - EDGE.marginRight;
  const show = () => {
    const bucket = shown[+slider.value];
    if (!bucket) return;
    const middle = (bucket.first + bucket.end) / 2;
    line.style.left = `${EDGE.marginLeft + (span * (middle - range[0])) / (range[1] - range[0] || 1)}px`;
    line.hidden = false;
    words.replaceChildren(moment(bucket, phases, spaces));
    slider.setAttribute("aria-valuetext", `event ${number(bucket.first)}`);
  };
  slider.addEventListener("input", show);
  stage.addEventListener("pointermove", (event) => {
    const left = event.clientX - stage.getBoundingClientRect().left - EDGE.marginLeft;
    const at = range[0] + (left / span) * (range[1] - range[0]);
    slider.value = Math.max(0, shown.findLastIndex((bucket) => bucket.first <= at));
    show();
  });
  stage.append(line);
  return el("div", { class: "moments" }, el("label", { for: "moment" }, "One moment"), slider, words);
}
