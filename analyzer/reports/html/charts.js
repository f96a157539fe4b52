"use strict";

/* Charts of everything but time. Colours are CSS variables, so that dark, light and paper need no redrawing. */

const HIT = "var(--hit)";
const MISS = "var(--miss)";
const LEVELS = { 1: "var(--level-1)", 2: "var(--level-2)", 3: "var(--level-3)", 4: "var(--level-4)" };

/** A plot of this house: as wide as its place, named for those who do not see it. */
function plot(says, options) {
  const drawn = Plot.plot({ ...options, style: { background: "none", fontSize: "12px", fontFamily: "inherit", overflow: "visible" } });
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", says);
  return drawn;
}

/** Left margin that holds the longest of these labels, at most two fifths of the width. */
function room(labels, width) {
  return Math.min(0.4 * width, 16 + 6.6 * Math.max(...labels.map((label) => label.length)));
}

function clip(label, margin) {
  const fits = Math.max(4, Math.floor((margin - 14) / 6.4));
  return label.length > fits ? `${label.slice(0, fits - 1)}…` : label;
}

/** A label in up to two lines, parted at a blank where the first has no room for more; cut where the second has none either. */
function inTwoLines(label, margin) {
  const fits = Math.max(4, Math.floor((margin - 14) / 6.4));
  const end = label.lastIndexOf(" ", fits);
  return label.length <= fits || end < 1 ? clip(label, margin) : `${label.slice(0, end)}\n${clip(label.slice(end + 1), margin)}`;
}

/** Pixels that the longest bar has, however long its label and note are. */
const LEAST_BAR = 32;

/**
 * Horizontal bars, one a row, each stacked from parts.
 * rows: {label, note, parts: [[name, value]]}; colors: {name: colour}; normalize: bars of equal length.
 */
function bars(says, width, rows, colors, normalize = false) {
  const labels = rows.map((row) => row.label);
  const marginLeft = room(labels, width);
  const total = (row) => d3.sum(row.parts, ([, value]) => value);
  const flat = rows.flatMap((row, index) =>
    row.parts.map(([name, value]) => ({ index, name, value: normalize ? value / (total(row) || 1) : value })));
  const notes = rows.map((row, index) => ({ index, note: row.note, end: normalize ? 1 : total(row) }));
  const marginRight = Math.min(14 + 6.6 * Math.max(0, ...rows.map((row) => row.note.length)), width - marginLeft - LEAST_BAR);
  return plot(says, {
    width,
    height: 26 * rows.length + 8,
    marginLeft,
    marginRight,
    marginTop: 4,
    marginBottom: 4,
    x: { axis: null, domain: normalize ? [0, 1] : [0, d3.max(rows, total) || 1] },
    y: { domain: d3.range(rows.length), label: null, tickSize: 0, tickFormat: (index) => inTwoLines(labels[index], marginLeft), padding: 0.28 },
    color: { domain: Object.keys(colors), range: Object.values(colors) },
    marks: [
      Plot.barX(flat, { x: "value", y: "index", fill: "name", order: Object.keys(colors), offset: null }),
      Plot.text(notes, { x: "end", y: "index", text: (row) => inTwoLines(row.note, marginRight), textAnchor: "start", dx: 6, fill: "var(--soft)" }),
    ],
  });
}

/** Pages alive at the end as bars, the most at once as a tick. rows: {label, live, peak, level} */
function alive(says, width, rows) {
  const labels = rows.map((row) => row.label);
  const marginLeft = room(labels, width);
  return plot(says, {
    width,
    height: 26 * rows.length + 30,
    marginLeft,
    marginRight: 30,
    marginTop: 4,
    marginBottom: 26,
    x: { label: null, ticks: 6, tickFormat: short, grid: true, domain: [0, d3.max(rows, (row) => row.peak) || 1] },
    y: { domain: d3.range(rows.length), label: null, tickSize: 0, tickFormat: (index) => inTwoLines(labels[index], marginLeft), padding: 0.28 },
    marks: [
      Plot.barX(rows, { x: "live", y: (_, index) => index, fill: (row) => LEVELS[row.level] }),
      Plot.tickX(rows, { x: "peak", y: (_, index) => index, stroke: "var(--ink)", strokeWidth: 2 }),
      Plot.ruleX([0], { stroke: "var(--line)" }),
    ],
  });
}

/** Columns over an ordinal axis. points: {at, value}; values may span decades, so their square roots are drawn. */
function columns(says, width, points, color, label) {
  return plot(says, {
    width: Math.min(width, Math.max(320, 60 + 44 * points.length)),
    height: 196,
    marginLeft: 48,
    marginTop: 22,
    marginBottom: 42,
    x: { domain: points.map((point) => point.at), label, labelAnchor: "center", labelArrow: "none", tickSize: 0, padding: 0.2 },
    y: { type: "sqrt", axis: null },
    marks: [
      Plot.barY(points, { x: "at", y: "value", fill: color }),
      Plot.text(points, { x: "at", y: "value", text: (point) => number(point.value), dy: -8, fill: "var(--soft)" }),
      Plot.ruleY([0], { stroke: "var(--line)" }),
    ],
  });
}

/** Cells by row and column. cells: {row, column, part (0..1), lines, own?, marked?}; the greater its part, the more of --cell is in its colour. */
function cells(says, width, rows, names, cells, size) {
  const marginLeft = room(rows, width);
  const tall = size.tilt ? 24 + 5.6 * Math.max(...names.map((name) => Math.min(name.length, 22))) : 26;
  return plot(says, {
    width: marginLeft + size.width * names.length + 8,
    height: tall + size.height * rows.length + 4,
    marginLeft,
    marginTop: tall,
    marginBottom: 4,
    marginRight: 8,
    x: {
      domain: d3.range(names.length), axis: "top", label: null, tickSize: 0, padding: 0.06,
      tickRotate: size.tilt ? -55 : 0, tickFormat: (index) => clip(names[index], size.tilt ? 155 : 1000),
    },
    y: { domain: d3.range(rows.length), label: null, tickSize: 0, padding: 0.06, tickFormat: (index) => clip(rows[index], marginLeft) },
    opacity: { domain: [0, 1], range: [0.06, 1] },
    marks: [
      Plot.cell(cells, { x: "column", y: "row", fill: "var(--cell)", fillOpacity: "part", filter: (cell) => !cell.own, rx: 3 }),
      Plot.cell(cells, { x: "column", y: "row", fill: "none", stroke: "var(--line)", filter: (cell) => cell.own, rx: 3, inset: 0.5 }),
      Plot.cell(cells, { x: "column", y: "row", fill: "none", stroke: "var(--ink)", strokeWidth: 2, filter: (cell) => cell.marked, rx: 3 }),
      Plot.text(cells, {
        x: "column", y: "row", text: (cell) => cell.lines.join("\n"), lineHeight: 1.25,
        fill: "var(--ink)",
      }),
    ],
  });
}
