"use strict";

/* What is looked at, and the frame of every section and figure: a title, a sentence, a chart, its numbers. */

const facts = () => report.facts;
const phase = () => (chosen.phase === null ? null : facts().phases[chosen.phase]);
const space = () => (chosen.space === null ? null : facts().spaces[chosen.space]);
const inMode = (row) => chosen.mode === null || row.glevels === chosen.mode;
/** The slices that lie wholly in the chosen phase: what others hold is not all its own. */
const inRange = (buckets) => (phase() === null ? buckets : buckets.filter((bucket) => bucket.first >= phase().first && bucket.end - 1 <= phase().last));
/** Why a chart over time is not drawn, where the chosen phase has no whole slice; else null. */
const tooShort = (over) => (inRange(over.buckets).length ? null : `No slice of ${number(over.bucket_events)} events lies wholly in this phase of ${number(phase().last - phase().first + 1)}: what is counted by slice cannot be told for it alone.`);
const ofSpace = (names) => space() === null || names.includes(space().name);
/** From the first event of what is looked at to the one after its last. */
const range = () => (phase() === null ? [1, Math.max(report.run.events, 1) + 1] : [phase().first, Math.max(phase().last, phase().first) + 1]);

function section(story, id, title, ...intro) {
  const made = el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...intro);
  story.append(made);
  return made;
}

/**
 * A figure: a title, a sentence, a chart and its numbers as a table. ``make(width)`` gives {says, chart?, numbers?, open?};
 * without a chart and numbers it is the sentence alone.
 */
function figure(place, id, title, make) {
  const says = el("p", { class: "says" });
  const chart = el("div", { class: "chart" });
  const numbers = el("div", { class: "numbers" });
  const details = el("details", {}, el("summary", {}, "Numbers", el("span", { class: "hidden" }, ` of: ${title}`)), numbers);
  place.append(el("figure", { id }, el("figcaption", {}, el("h3", {}, title), says), chart, details));
  views.push(() => {
    const made = make(chart.clientWidth);
    says.replaceChildren(made.says);
    chart.replaceChildren(...[made.chart ?? []].flat());
    numbers.replaceChildren(...[made.numbers ?? []].flat());
    details.hidden = made.numbers === undefined;
  });
}

/** A table that is the point itself, not the numbers of a chart. */
function listing(place, id, title, make) {
  const says = el("p", { class: "says" });
  const body = el("div");
  place.append(el("figure", { id }, el("figcaption", {}, el("h3", {}, title), says), body));
  views.push(() => {
    const made = make();
    says.replaceChildren(made.says);
    body.replaceChildren(...(made.numbers ? [made.numbers] : []));
  });
}

/** One number of facts.over_time in the chosen range. */
function overTime(place, id, title, key, color, unit) {
  const over = facts().over_time;
  if (!over) return;
  figure(place, id, title, (width) => {
    if (tooShort(over)) return { says: tooShort(over) };
    const shown = inRange(over.buckets);
    const most = d3.greatest(shown, (bucket) => bucket[key]);
    if (!most?.[key]) return { says: `None ${phase() ? "in this phase" : "at any time"}.` };
    const says = `After each ${number(over.bucket_events)} events: up to ${number(most[key])} ${unit}, first after event ${number(most.end - 1)}; ${count(shown.at(-1)[key])} at the end.`;
    return {
      says,
      chart: strip(says, width, range(), shown, (bucket) => bucket[key], color),
      numbers: table(title, [
        { label: "after event", of: (row) => row.end - 1 },
        { label: unit, of: (row) => row[key] },
      ], shown),
    };
  });
}
