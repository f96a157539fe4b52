"use strict";

/* Who shares: frames with several shadow pages, pages with several parents or address spaces, where hits come from. */

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
  framesOverTime(place);
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
        namesColumn("belongs to", (row) => row.names),
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
        namesColumn("belongs to", (row) => row.names),
      ], rows),
    };
  });
}

/** Colours of frames by how many shadow pages they have; the last is for that and more. */
const BY_PAGES = { 2: "var(--level-1)", 3: "var(--level-2)", 4: "var(--level-3)", "5 and more": "var(--level-4)" };

function framesOverTime(place) {
  const over = facts().over_time;
  if (!over) return;
  const saying = (shown, of, what) => {
    const most = d3.greatest(shown, of);
    return `${what}: up to ${number(of(most))}, first after event ${number(most.end - 1)}; ${count(of(shown.at(-1)))} at the end.`;
  };
  const none = () => tooShort(over) ?? (inRange(over.buckets).some((bucket) => bucket.several_pages) ? null : `None ${phase() ? "in this phase" : "at any time"}.`);
  figure(place, "frames-time", "Frames with several shadow pages, over time", (width) => {
    if (none()) return { says: none() };
    const shown = inRange(over.buckets);
    const names = Object.keys(BY_PAGES);
    const parts = shown.flatMap((bucket) => d3.rollups(Object.entries(bucket.by_pages), (rows) => d3.sum(rows, ([, frames]) => frames), ([n]) => names[Math.min(n, 5) - 2])
      .map(([name, frames]) => ({ name, frames, first: bucket.first, end: bucket.end })));
    const used = names.filter((name) => parts.some((part) => part.name === name && part.frames));
    const says = saying(shown, (bucket) => bucket.several_pages, `After each ${number(over.bucket_events)} events, frames with several pages, by how many`);
    return {
      says,
      chart: [legend(used.map((name) => [`${name} pages`, BY_PAGES[name]])), stacked(says, width, range(), parts, used)],
      numbers: table("Frames with several shadow pages, over time", [
        { label: "after event", of: (row) => row.end - 1 },
        { label: "frames", of: (row) => row.several_pages },
        ...Object.keys(shown[0].by_pages).map((n) => ({ label: `${n} pages`, of: (row) => row.by_pages[n] })),
      ], shown),
    };
  });
  figure(place, "apart-time", "What tells them apart, over time", (width) => {
    if (none()) return { says: none() };
    const shown = inRange(over.buckets);
    const ways = Object.entries(WAYS).filter(([part]) => shown.some((bucket) => bucket.told_apart_by[part]));
    return {
      says: `After each ${number(over.bucket_events)} events, frames whose pages one part of the key tells apart. A frame may count in several.`,
      chart: ways.map(([part, label]) => {
        const says = saying(shown, (bucket) => bucket.told_apart_by[part], label);
        return el("div", { class: "panel" }, el("p", { class: "panel-name" }, says), strip(says, width, range(), shown, (bucket) => bucket.told_apart_by[part], "var(--cr3)"));
      }),
      numbers: table("What tells frames apart, over time", [
        { label: "after event", of: (row) => row.end - 1 },
        ...Object.entries(WAYS).map(([part, label]) => ({ label, of: (row) => row.told_apart_by[part] })),
      ], shown),
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
        namesColumn("belongs to", (row) => row.spaces),
      ], rows),
    };
  });
}

function spacesSection(story) {
  const place = section(story, "spaces", "One shadow page, several address spaces");
  const sharing = facts().space_sharing;
  const moments = { peak: "when most pages had several parents", end: "at the end" };
  for (const [key, when] of Object.entries(moments)) {
    figure(place, `matrix-${key}`, `Who shares with whom, ${when}`, (width) => {
      const at = sharing?.[key];
      if (!at || !at.matrix.spaces.length) return { says: `No address space leads to a live page ${when}.` };
      const { spaces, shared } = at.matrix;
      const known = spaceNames(facts().spaces);
      const names = spaces.map((index) => known[index]);
      const most = d3.max(shared.flatMap((row, i) => row.filter((_, j) => i !== j))) ?? 0;
      const several = d3.sum(at.by_level, (row) => row.in_several);
      const says = `After event ${number(at.event)}, ${number(several)} of ${number(d3.sum(at.by_level, (row) => row.pages))} live pages are part of several address spaces. `
        + `A cell is how many pages two share, up to ${number(most)}; the diagonal, how many one has.`;
      const large = width / spaces.length > 60;
      return {
        says,
        chart: [scrolling("Sharing matrix: chart", cells(says, width, names, names, shared.flatMap((row, i) => row.map((count, column) => ({
          row: i, column, own: i === column, marked: [spaces[i], spaces[column]].includes(chosen.space),
          part: most ? Math.sqrt(count / most) : 0,
          lines: [number(count)],
        }))), { width: large ? 58 : 38, height: large ? 34 : 28, tilt: true }))],
        numbers: [table(`Live pages by level, ${when}`, [
          { label: "level", of: (row) => row.level },
          { label: "alive", of: (row) => row.pages },
          { label: "in no address space", of: (row) => row.in_none },
          { label: "in one", of: (row) => row.in_one_root },
          { label: "in several", of: (row) => row.in_several },
          { label: "most", of: (row) => row.most_roots },
          { label: "pages by address spaces", text: true,
            of: (row) => Object.entries(row.histogram).map(([spaces, pages]) => `${number(pages)} in ${spaces}`).join(", ") },
        ], at.by_level), table(`Shared pages, ${when}`, [
          { label: "", text: true, of: (row) => names[row] },
          ...names.map((name, column) => ({ label: name, of: (row) => shared[row][column] })),
        ], d3.range(names.length))],
      };
    });
  }
}

const ORIGINS = {
  same_root: ["same address space", "var(--hit)"],
  other_root: ["another address space", "var(--cr3)"],
  other_vcpu: ["another vCPU", "var(--stores)"],
  other_mode: ["another paging mode", "var(--faults)"],
};

function originSection(story) {
  const { origin: from } = facts();
  if (!from) return;
  const place = section(story, "origin", "Who had made the page that was found");
  const kinds = [["roots", "roots"], ["tables", "tables under them"]];
  figure(place, "origin-who", "By address space", (width) => {
    const total = (which) => d3.sum(Object.keys(ORIGINS), (key) => from[which][key]);
    const foreign = total("tables") - from.tables.same_root;
    const says = `${number(total("roots"))} hits found a root, ${number(total("tables"))} a table; ${share(foreign, total("tables"))} of the tables had been made in another address space, mode or vCPU.`;
    const rows = kinds.map(([which, label]) => ({ label, which, note: number(total(which)), parts: Object.keys(ORIGINS).map((key) => [key, from[which][key]]) }));
    return {
      says,
      chart: [legend(Object.values(ORIGINS)), bars(says, width, rows, Object.fromEntries(Object.entries(ORIGINS).map(([key, [, color]]) => [key, color])), true)],
      numbers: table("Origin of hits", [
        { label: "found", text: true, of: (row) => row.label },
        ...Object.entries(ORIGINS).map(([key, [label]]) => ({ label, of: (row) => from[row.which][key] })),
      ], rows),
    };
  });
  for (const [which, label] of kinds) {
    figure(place, `age-${which}`, `How old the page was: ${label}`, (width) => {
      const points = from[which].age.map((row) => ({ at: binary(row.up_to), value: row.hits, up_to: row.up_to }));
      if (!points.length) return { says: "Nothing was found." };
      const most = d3.greatest(points, (point) => point.value);
      const says = `Hits by the events since the page was made, up to each number and more than half of it. Most, ${number(most.value)} of ${number(d3.sum(points, (point) => point.value))}, were up to ${most.at} events old.`;
      return {
        says,
        chart: [scrolling("Ages: chart", columns(says, Math.max(width, 44 * points.length), points, ORIGINS.same_root[1], "events since it was made, up to"))],
        numbers: table("Age of found pages", [
          { label: "up to events", of: (row) => row.up_to },
          { label: "hits", of: (row) => row.value },
        ], points),
      };
    });
  }
}
