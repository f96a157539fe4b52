"use strict";

/* The story of a report, section by section in the order of the terminal's: what is said, drawn and listed. Facts come made. */

const CAUSES = {
  flood: ["flood", "var(--zaps)"],
  misaligned: ["misaligned store", "var(--stores)"],
  misaligned_and_flood: ["misaligned flood", "var(--faults)"],
  user_fault: ["user store", "var(--made)"],
  evict: ["eviction", "var(--cr3)"],
  dropped: ["root load", "var(--miss)"],
};

const WAYS = {
  level: "across levels",
  quadrant: "across quadrants",
  glevels: "across paging modes",
  metaphysical: "as itself and in a big page",
};

function modeName(glevels) {
  return report.modes[glevels] ?? `${glevels} levels`;
}

/** A role in words; the quadrant, or the span of a folded row's, where the mode has any. */
function roleName(role) {
  const [first, last] = [role.quadrants?.[0] ?? role.quadrant, role.quadrants?.at(-1) ?? role.quadrant];
  const quadrant = role.glevels !== 0 && role.glevels !== 2 ? "" : ` q${first}${last > first ? `..${last}` : ""}`;
  return `${modeName(role.glevels)} level ${role.level}${quadrant}${role.metaphysical ? " meta" : ""}`;
}

function spaceName(space) {
  const name = printable(space.name);
  return name.startsWith("gfn ") || space.glevels === 0 ? name : `${name} from ${short(space.first_event)}`;
}

/** Roles whose numbers are the same but for the quadrant, as one row: {...role, quadrants}. */
function folded(roles) {
  const same = (role) => [role.glevels, role.level, role.metaphysical, role.lookups, role.hits, role.live, role.peak, causes(role)].join();
  return d3.groups(roles, same).map(([, group]) => ({ ...group[0], quadrants: group.map((role) => role.quadrant) }));
}

/** From a mode's highest level down, quadrants up: the order of the terminal's table. */
function byRole(a, b) {
  return b.glevels - a.glevels || b.level - a.level || a.metaphysical - b.metaphysical || a.quadrant - b.quadrant;
}

const facts = () => report.facts;
const phase = () => (chosen.phase === null ? null : facts().phases[chosen.phase]);
const space = () => (chosen.space === null ? null : facts().spaces[chosen.space]);
const inMode = (row) => chosen.mode === null || row.glevels === chosen.mode;
const inRange = (buckets) => buckets.filter((bucket) => bucket.end > range()[0] && bucket.first <= range()[1]);
const ofSpace = (names) => space() === null || names.includes(space().name);
const range = () => (phase() === null ? [1, Math.max(report.run.events, 2)] : [phase().first, Math.max(phase().last, phase().first + 1)]);

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
    const shown = inRange(over.buckets);
    const most = d3.greatest(shown, (bucket) => bucket[key]);
    if (!most?.[key]) return { says: `None ${phase() ? "in this phase" : "at any time"}.` };
    const says = `After each ${number(over.bucket_events)} events: up to ${number(most[key])} ${unit}, first after event ${number(most.end - 1)}; ${count(shown.at(-1)[key])} at the end.`;
    return {
      says,
      chart: strip(says, width, range(), shown, key, color),
      numbers: table(title, [
        { label: "after event", of: (row) => row.end - 1 },
        { label: unit, of: (row) => row[key] },
      ], shown),
    };
  });
}

function answerSection(story) {
  const place = section(story, "answer", "The answer");
  const tiles = el("div", { class: "tiles", "aria-live": "polite" });
  const where = el("p", { class: "says" });
  place.append(where, tiles);
  views.push(() => {
    const { events, access, get_page: get, writes, zaps } = facts();
    const whole = {
      cr3: events.cr3, lookups: get.lookups, hits: get.hits, faults: access.faults, accesses: access.mapped + access.faults,
      stores: writes.protected, zapped: zaps.total, made: get.misses,
    };
    const part = phase() && { ...phase(), zapped: d3.sum(Object.values(phase().zaps)) };
    const now = part ?? whole;
    const of = (key) => (part ? `of ${number(whole[key])} in all` : null);
    const tile = (value, name, note) => el("div", { class: "tile" }, el("b", {}, value), el("span", {}, name), el("small", {}, note ?? ""));
    where.replaceChildren(part
      ? `In the phase “${printable(part.name)}”, events ${number(part.first)} to ${number(part.last)}.`
      : `In all ${number(report.run.events)} events.`);
    tiles.replaceChildren(
      tile(number(now.cr3), "cr3 loads", of("cr3")),
      tile(share(now.hits, now.lookups), "of look-ups hit", `${number(now.hits)} of ${number(now.lookups)}`),
      tile(number(now.faults), "page faults (exits)", now.accesses === null ? of("faults") : `of ${number(now.accesses)} recorded accesses`),
      tile(number(now.stores), "stores to tables emulated", part ? of("stores") : `of ${number(writes.plain + writes.protected)} recorded stores to tables`),
      tile(number(now.zapped), "pages zapped", part ? of("zapped") : `${number(whole.made)} made; ${count(zaps.root_kept)} of the zaps kept a root`),
    );
  });
}

/** Rows on as few lanes as they fit on side by side, ``most`` at most; those used most come first to a lane. */
function packed(rows, most, length) {
  const lanesEnd = [];
  const kept = [...rows].sort((a, b) => a.first - b.first);
  const drawn = [];
  for (const row of kept) {
    let lane = lanesEnd.findIndex((end) => end < row.first);
    if (lane < 0 && lanesEnd.length < most) lane = lanesEnd.push(0) - 1;
    if (lane < 0) continue;
    lanesEnd[lane] = Math.max(row.last, row.first + length / 400);
    drawn.push({ ...row, lane });
  }
  return drawn;
}

function bootSection(story) {
  const place = section(story, "boot", "The boot over time");
  const over = facts().over_time;
  if (over) {
    const last = report.run.events + 1;
    over.buckets.forEach((bucket, i) => { bucket.end = over.buckets[i + 1]?.first ?? Math.max(last, bucket.first + 1); });
  }
  const phaseLanes = () => (facts().phases ?? []).filter((row) => row.last >= row.first).map((row) => ({ ...row, name: printable(row.name), lane: 0 }));
  figure(place, "timeline", "What happened when", (width) => {
    if (!over || !over.buckets.length) return { says: "This run holds no facts over time: replay it again with this version." };
    const lengths = range()[1] - range()[0];
    const spaces = packed((facts().spaces ?? []).map((row, index) => ({ space: index, name: printable(row.name), first: row.first_event, last: row.last_event }))
      .filter((row) => row.last >= range()[0] && row.first <= range()[1]), LANES, lengths);
    const shown = inRange(over.buckets);
    const stage = el("div", { class: "stage" }, ...timeline(width, range(), over, shown, phaseLanes(), spaces, chosen.space));
    const columns = [
      { label: "from event", of: (row) => row.first },
      ...SERIES.map(([key, label]) => ({ label, of: (row) => row[key] })),
      { label: "look-ups", of: (row) => row.lookups },
      { label: "hits", of: (row) => row.hits },
      ...Object.keys(over.buckets[0].live).map((level) => ({ label: `live, level ${level}`, of: (row) => row.live[level] })),
      { label: "several parents", of: (row) => row.multi_parent },
      { label: "frames, several pages", of: (row) => row.several_pages },
    ];
    return {
      says: `${phase() ? `The phase “${printable(phase().name)}”` : "The whole recording"} from left to right, counted in recorded events, not in seconds: `
        + `each column is ${number(over.bucket_events)} of them.`,
      chart: [stage, cursor(stage, width, range(), shown, phaseLanes(), spaces)],
      numbers: table("The boot over time", columns, shown),
    };
  });
  listing(place, "phases", "Phase by phase", () => {
    const rows = (facts().phases ?? []).filter((row) => phase() === null || row === phase());
    if (!rows.length) return { says: "The trace has no marks, so the boot has no phases here." };
    return {
      says: "A phase goes from one mark of the recording to the next.",
      numbers: table("Phases", [
        { label: "phase", text: true, of: (row) => printable(row.name) },
        { label: "from event", of: (row) => row.first },
        { label: "cr3 loads", of: (row) => row.cr3 },
        { label: "accesses", of: (row) => row.accesses },
        { label: "faults", of: (row) => row.faults },
        { label: "look-ups", of: (row) => row.lookups },
        { label: "hit", of: (row) => (row.lookups ? row.hits / row.lookups : 0), show: (row) => share(row.hits, row.lookups) },
        { label: "made", of: (row) => row.made },
        { label: "zapped", of: (row) => d3.sum(Object.values(row.zaps)) },
        { label: "stores emulated", of: (row) => row.stores },
        { label: "live after it", of: (row) => row.live_end },
      ], rows),
    };
  });
}

function whereSection(story) {
  const place = section(story, "where", "Where the cache found its pages");
  const roles = () => facts().roles.filter(inMode).sort(byRole);
  const columns = [
    { label: "mode", text: true, of: (row) => modeName(row.glevels) },
    { label: "level", of: (row) => row.level },
    { label: "quadrant", of: (row) => row.quadrant, show: (row) => (row.glevels === 0 || row.glevels === 2 ? String(row.quadrant) : "") },
    { label: "meta", text: true, of: (row) => (row.metaphysical ? "meta" : "") },
    { label: "look-ups", of: (row) => row.lookups },
    { label: "hits", of: (row) => row.hits },
    { label: "hit", of: (row) => (row.lookups ? row.hits / row.lookups : 0), show: (row) => share(row.hits, row.lookups) },
    { label: "made", of: (row) => row.made },
    { label: "alive", of: (row) => row.live },
    { label: "peak", of: (row) => row.peak },
    { label: "orphans", of: (row) => row.orphans },
    { label: "lifetime, median", of: (row) => row.lifetime?.median ?? null, show: (row) => (row.lifetime ? number(row.lifetime.median) : "") },
    { label: "died of", text: true, long: true, of: causes },
  ];
  figure(place, "hits", "Found and not found, by role", (width) => {
    const rows = folded(roles().filter((role) => role.lookups));
    if (!rows.length) return { says: "No page was looked up here." };
    const best = d3.greatest(rows.filter((role) => role.hits), (role) => role.hits / role.lookups);
    const busiest = d3.greatest(rows, (role) => role.lookups - role.hits);
    const says = `Each bar is all look-ups of a role. ${best ? `Best: ${roleName(best)}, ${share(best.hits, best.lookups)} of ${number(best.lookups)} hit. ` : ""}`
      + `Most missed: ${roleName(busiest)}, ${number(busiest.lookups - busiest.hits)} of ${number(busiest.lookups)}.`;
    return {
      says,
      chart: [legend([["hit", HIT], ["missed: a page was made", MISS]]), bars(says, width, rows.map((role) => ({
        label: roleName(role),
        note: `${percent(role.hits, role.lookups)} of ${role.quadrants.length > 1 ? `${role.quadrants.length} × ` : ""}${number(role.lookups)}`,
        parts: [["hit", role.hits], ["missed", role.lookups - role.hits]],
      })), { hit: HIT, missed: MISS }, true)],
      numbers: table("Look-ups by role", columns, roles()),
    };
  });
  figure(place, "levels", "Alive at the end and at the peak, by role", (width) => {
    const rows = folded(roles().filter((role) => role.peak));
    if (!rows.length) return { says: "No page was ever alive here." };
    const most = d3.greatest(rows, (role) => role.peak);
    const says = `Bars are the shadow pages alive at the end, ticks the most that a role ever had at once: ${number(most.peak)} of ${roleName(most)}, in a cache of ${number(facts().mmu_pages)}.`;
    return {
      says,
      chart: [legend([...new Set(rows.map((role) => role.level))].sort().reverse().map((level) => [`level ${level}`, LEVELS[level]])),
        alive(says, width, rows.map((role) => ({ label: roleName(role), live: role.live, peak: role.peak, level: role.level })))],
      numbers: table("Alive by role", columns, rows),
    };
  });
  figure(place, "quadrants", "Quadrants", (width) => {
    const rows = roles().filter((role) => role.glevels === 2 || role.glevels === 0);
    if (!rows.length) return { says: "No table of the guest has quadrants here: only two-level paging's tables, of 1,024 entries, need several shadow pages of 512 each." };
    const groups = d3.groups(rows, (role) => roleName({ ...role, glevels: role.glevels }).replace(/ q\d/, ""));
    const says = "A table of two-level paging has 1,024 entries, a shadow page 512 of twice the size: a directory needs four shadow pages, a table two. "
      + "Each cell is one quadrant, the darker the more of its look-ups hit.";
    return {
      says,
      chart: [scrolling("Quadrants: chart", cells(says, width, groups.map(([name]) => name), ["q0", "q1", "q2", "q3"],
        groups.flatMap(([, mine], row) => mine.map((role) => ({
          row, column: role.quadrant, part: role.lookups ? role.hits / role.lookups : 0,
          lines: [`${percent(role.hits, role.lookups)} hit`, `${count(role.made)} made`, `${count(role.live)} alive`],
        }))), { width: 104, height: 58 }))],
      numbers: table("Quadrants", columns, rows),
    };
  });
}

function causes(role) {
  const parts = Object.entries(role.deaths).map(([cause, count]) => `${CAUSES[cause]?.[0] ?? printable(cause)} ${number(count)}`);
  const emptied = d3.sum(Object.values(role.emptied));
  return [...parts, ...(emptied ? [`${number(emptied)} roots emptied`] : [])].join(", ");
}

function framesSection(story) {
  const place = section(story, "frames", "One guest page, several shadow pages");
  const { told_apart_by: apart, by_pages: byPages, shadowed, top, most_made: remade } = facts().frames;
  figure(place, "apart", "What tells them apart", (width) => {
    const says = `${number(apart.several.now)} of ${number(shadowed)} shadowed frames have several shadow pages now, ${number(apart.several.peak)} had at the peak.`;
    const rows = [
      ...Object.entries(WAYS).map(([part, label]) => ({ label, ...apart[part] })),
      ...byPages.map((row) => ({ label: `${row.pages} pages at once`, now: row.now, peak: row.peak })),
    ];
    return {
      says: `${says} A frame may count in several rows.`,
      chart: [legend([["now", HIT], ["more at the peak", MISS]]), bars(says, width, rows.map((row) => ({
        label: row.label, note: `${count(row.now)} now, ${count(row.peak)} at the peak`, parts: [["now", row.now], ["peak", row.peak - row.now]],
      })), { now: HIT, peak: MISS })],
      numbers: table("Frames with several shadow pages", [
        { label: "told apart", text: true, of: (row) => row.label },
        { label: "now", of: (row) => row.now },
        { label: "peak", of: (row) => row.peak },
      ], rows),
    };
  });
  overTime(place, "frames-time", "Frames with several shadow pages, over time", "several_pages", "var(--cr3)", "frames");
  listing(place, "frames-top", "The frames with most shadow pages", () => {
    const rows = (top ?? []).filter((row) => ofSpace(row.names) && (chosen.mode === null || row.roles.some(inMode)));
    if (!rows.length) return { says: "No frame has several shadow pages here." };
    return {
      says: `${rows.length === 1 ? "One frame" : `${rows.length} frames`}, the most shadowed first.`,
      numbers: table("Frames", [
        { label: "frame", text: true, of: (row) => frame(row.gfn) },
        { label: "pages", of: (row) => row.pages },
        { label: "told apart by", text: true, long: true, of: (row) => row.told_apart_by.map((part) => (part === "glevels" ? "paging mode" : part)).join(", ") },
        { label: "roles", text: true, long: true, of: (row) => row.roles.map(roleName).join(", ") },
        { label: "belongs to", text: true, long: true, of: (row) => list(row.names) },
      ], rows),
    };
  });
  listing(place, "frames-made", "The frames whose pages were made most often", () => {
    const rows = (remade ?? []).filter((row) => ofSpace(row.names));
    if (!rows.length) return { says: "No frame's pages were made more than once here." };
    return {
      says: "What the cache lost and had to make again.",
      numbers: table("Frames made again", [
        { label: "frame", text: true, of: (row) => frame(row.gfn) },
        { label: "made", of: (row) => row.made },
        { label: "levels", text: true, of: (row) => row.levels.join(", ") },
        { label: "belongs to", text: true, long: true, of: (row) => list(row.names) },
      ], rows),
    };
  });
}

function parentsSection(story) {
  const place = section(story, "parents", "One shadow page, several parents");
  const levels = [...facts().parents].sort((a, b) => b.level - a.level);
  figure(place, "parents-levels", "Parents by level", (width) => {
    if (!levels.length) return { says: "No shadow page is alive." };
    const most = d3.greatest(levels, (row) => row.most_parents);
    const says = `${number(d3.sum(levels, (row) => row.several_parents))} of ${number(d3.sum(levels, (row) => row.pages))} live pages have several parents`
      + `${most.most_shared_gfn === null ? "." : `; the most, ${number(most.most_parents)}, has ${frame(most.most_shared_gfn)} at level ${most.level}.`}`
      + ` Pages with a pte chain: ${number(facts().multimapped.end)} now, ${number(facts().multimapped.peak)} at the peak.`;
    const counts = levels.every((row) => row.histogram) ? [...new Set(levels.flatMap((row) => Object.keys(row.histogram).map(Number)))].sort(d3.ascending) : [];
    const chart = counts.length
      ? scrolling("Parents by level: chart", cells(says, width, levels.map((row) => `level ${row.level}`), counts.map((n) => (n === 1 ? "1 parent" : `${n || "no"} parents`)),
        levels.flatMap((row, index) => counts.map((n, column) => ({
          row: index, column, part: (row.histogram[n] ?? 0) / (row.pages || 1), lines: [number(row.histogram[n] ?? 0)],
        }))), { width: Math.max(74, Math.min(120, (width - 90) / counts.length)), height: 30 }))
      : bars(says, width, levels.map((row) => ({
        label: `level ${row.level}`, note: `${number(row.several_parents)} of ${number(row.pages)} shared`,
        parts: [["several", row.several_parents], ["one", row.pages - row.several_parents]],
      })), { several: HIT, one: MISS });
    return {
      says, chart,
      numbers: table("Parents by level", [
        { label: "level", of: (row) => row.level },
        { label: "alive", of: (row) => row.pages },
        { label: "several parents", of: (row) => row.several_parents },
        { label: "most", of: (row) => row.most_parents },
        { label: "whose", text: true, of: (row) => frame(row.most_shared_gfn) },
        { label: "pte chains", of: (row) => row.chains },
        { label: "not full", of: (row) => row.chains_not_full },
        { label: "half empty", of: (row) => row.chains_half_empty },
      ], levels),
    };
  });
  overTime(place, "parents-time", "Pages with several parents, over time", "multi_parent", "var(--hit)", "pages");
  listing(place, "parents-top", "The pages with most parents", () => {
    const rows = (facts().parents_top ?? []).filter((row) => inMode(row) && ofSpace(row.spaces));
    if (!rows.length) return { says: "No live page has several parents here." };
    return {
      says: `${rows.length === 1 ? "One page" : `${rows.length} pages`}, the most parents first.`,
      numbers: table("Pages with several parents", [
        { label: "frame", text: true, of: (row) => frame(row.gfn) },
        { label: "role", text: true, of: roleName },
        { label: "parents", of: (row) => row.parents },
        { label: "half", text: true, of: (row) => ({ true: "kernel", false: "user", null: "" })[row.kernel_half] },
        { label: "belongs to", text: true, long: true, of: (row) => list(row.spaces) },
      ], rows),
    };
  });
}
