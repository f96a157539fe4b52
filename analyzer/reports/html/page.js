"use strict";

/* Elements, numbers and tables. What comes from the trace becomes text nodes and attributes, never markup. */

/** An element with attributes (functions listen to the event of their name) and children (strings become text). */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const ESCAPES = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

/** Text from a guest or a trace made harmless, as in the terminal: control, format and unusual space characters are shown escaped. */
function printable(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, (character) => {
    const point = character.codePointAt(0);
    const [letter, digits] = point < 0x100 ? ["x", 2] : point < 0x10000 ? ["u", 4] : ["U", 8];
    return ESCAPES[character] ?? `\\${letter}${point.toString(16).padStart(digits, "0")}`;
  });
}

/** A count with thousands separated; zero is a dot, what is not known is empty. */
function number(value) {
  if (value === null || value === undefined) return "";
  return value ? value.toLocaleString("en-US") : "·";
}

/** A count within a sentence, where a dot would not be read. */
function count(value) {
  return value ? number(value) : "none";
}

/** A power of two in the space of an axis label: 64Ki. */
function binary(value) {
  return value >= 1 << 20 ? `${value >> 20}Mi` : value >= 1 << 10 ? `${value >> 10}Ki` : String(value);
}

/** A count in the space of an axis label: 1.5M; nothing between whole numbers. */
function short(value) {
  if (!Number.isInteger(value)) return "";
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= unit) return `${+(value / unit).toFixed(2)}${letter}`;
  }
  return String(value);
}

/** A percentage with one digit; below a tenth it is <0.1, none is a dot. */
function share(part, whole) {
  if (!whole || !part) return "·";
  const percent = (100 * part) / whole;
  if (part < whole && percent > 99.9) return ">99.9%";
  return percent < 0.1 ? "<0.1%" : `${percent.toFixed(1)}%`;
}

/** A percentage within a sentence. */
function percent(part, whole) {
  return part ? share(part, whole) : "none";
}

function frame(gfn) {
  return gfn === null || gfn === undefined ? "" : `gfn 0x${gfn.toString(16)}`;
}

/** Names that a cell shows before it is asked for all. */
const NAMES = 8;

/** A table's column of names from the trace: a page of the kernel may belong to hundreds. */
function namesColumn(label, of) {
  const list = (row) => (of(row) ?? []).map(printable);
  return {
    label, text: true, long: true,
    of: (row) => list(row).join(", "),
    show: (row) => {
      const names = list(row);
      if (names.length <= NAMES + 2) return names.join(", ");
      const rest = el("button", { type: "button", class: "rest-of-names", click: () => cell.replaceChildren(names.join(", ")) },
        `and ${number(names.length - NAMES)} more`);
      const cell = el("span", {}, `${names.slice(0, NAMES).join(", ")} `, rest);
      return cell;
    },
  };
}

/** Rows that a table shows before it is asked for all. */
const FOLD = 12;

/**
 * A table that scrolls by itself and sorts by any column.
 * columns: {label, of(row), show(row)?, text?, long?}; text columns stand left, numbers right; long ones may wrap.
 */
function table(name, columns, rows) {
  let all = rows.length <= FOLD + 3;
  let sorted = rows;
  const body = el("tbody");
  const rest = el("p", { class: "rest" }, `The first ${FOLD} of ${rows.length} rows.`);
  const more = el("button", { type: "button", class: "more", click: () => { all = true; fill(); } }, `Show all ${rows.length}`);
  const fill = () => {
    body.replaceChildren(...(all ? sorted : sorted.slice(0, FOLD)).map((row) =>
      el("tr", {}, ...columns.map((column) => {
        const shown = column.show ? column.show(row) : column.text ? column.of(row) : number(column.of(row));
        return el("td", { class: column.long ? "text long" : column.text ? "text" : null }, shown ?? "");
      }))));
    more.hidden = rest.hidden = all;
  };
  const heads = columns.map((column) => {
    const head = el("th", { scope: "col", class: column.text ? "text" : null });
    head.append(el("button", { type: "button", click: () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sorted = [...rows].sort((a, b) => (down ? -1 : 1) * d3.ascending(column.of(a) ?? -Infinity, column.of(b) ?? -Infinity));
      fill();
    } }, column.label));
    return head;
  });
  fill();
  return el("div", {}, scrolling(`${name}: table`, el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body)), more, rest);
}

/** A place that scrolls sideways where its content is wider; ``reachable`` makes those that do stops of the tab key. */
function scrolling(name, content) {
  return el("div", { class: "scroll", role: "region", "aria-label": name }, content);
}

function reachable() {
  for (const place of document.querySelectorAll(".scroll")) {
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
    else place.removeAttribute("tabindex");
  }
}

/** A legend: the colours of a chart and what they mean. */
function legend(entries) {
  return el("ul", { class: "legend" }, ...entries.map(([text, color]) =>
    el("li", {}, el("span", { class: "swatch", style: `background: ${color}` }), text)));
}
