"use strict";

/* The story's second half: address spaces, where hits come from, deaths, the key, the hash, what it was worth, what to do. */

function spacesSection(story) {
  const place = section(story, "spaces", "One shadow page, several address spaces");
  const sharing = facts().space_sharing;
  const moments = { peak: "when most pages had several parents", end: "at the end" };
  for (const [key, when] of Object.entries(moments)) {
    figure(place, `matrix-${key}`, `Who shares with whom, ${when}`, (width) => {
      const at = sharing?.[key];
      if (!at || !at.matrix.spaces.length) return { says: `No address space leads to a live page ${when}.` };
      const { spaces, shared } = at.matrix;
      const names = spaces.map((index) => spaceName(facts().spaces[index]));
      const most = d3.max(shared.flatMap((row, i) => row.filter((_, j) => i !== j))) ?? 0;
      const several = d3.sum(at.by_level, (row) => row.in_several);
      const says = `After event ${number(at.event)}, ${number(several)} of ${number(d3.sum(at.by_level, (row) => row.pages))} live pages are part of several address spaces. `
        + `A cell is how many pages two share, up to ${number(most)}; the diagonal, how many one has.`;
      const large = width / spaces.length > 60;
      return {
        says,
        chart: [scrolling("Sharing matrix: chart", cells(says, width, names, names, shared.flatMap((row, i) => row.map((count, column) => ({
          row: i, column, own: i === column,
          part: most ? Math.sqrt(count / most) * (chosen.space === null || [spaces[i], spaces[column]].includes(chosen.space) ? 1 : 0.15) : 0,
          lines: [number(count)],
        }))), { width: large ? 58 : 38, height: large ? 34 : 28, tilt: true }))],
        numbers: [table(`Live pages by level, ${when}`, [
          { label: "level", of: (row) => row.level },
          { label: "alive", of: (row) => row.pages },
          { label: "in no address space", of: (row) => row.in_none },
          { label: "in one", of: (row) => row.in_one_root },
          { label: "in several", of: (row) => row.in_several },
          { label: "most", of: (row) => row.most_roots },
        ], at.by_level), table(`Shared pages, ${when}`, [
          { label: "", text: true, of: (row) => names[row] },
          ...names.map((name, column) => ({ label: name, of: (row) => shared[row][column] })),
        ], d3.range(names.length))],
      };
    });
  }
  listing(place, "spaces-all", "Address spaces", () => {
    const rows = (facts().spaces ?? []).filter((row, index) => inMode(row) && (chosen.space === null || chosen.space === index)
      && row.last_event >= range()[0] && row.first_event <= range()[1]);
    if (!rows.length) return { says: "No address space is in use here." };
    return {
      says: `${number(rows.length)} of ${number(facts().spaces.length)}, in the order of their first use; the numbers are of their whole life.`,
      numbers: table("Address spaces", [
        { label: "name", text: true, of: (row) => printable(row.name) },
        { label: "mode", text: true, of: (row) => modeName(row.glevels) },
        { label: "cr3", text: true, of: (row) => frame(row.gfn) },
        { label: "from event", of: (row) => row.first_event },
        { label: "to event", of: (row) => row.last_event },
        { label: "loads", of: (row) => row.loads },
        { label: "look-ups", of: (row) => row.lookups },
        { label: "hit", of: (row) => (row.lookups ? row.hits / row.lookups : 0), show: (row) => share(row.hits, row.lookups) },
        { label: "made", of: (row) => row.made },
        { label: "faults", of: (row) => row.faults },
        { label: "pages now", of: (row) => row.pages_now },
      ], rows),
    };
  });
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
  const place = section(story, "origin", "Where hits come from");
  const kinds = [["roots", "roots"], ["tables", "tables under them"]];
  figure(place, "origin-who", "Who had made the page that was found", (width) => {
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

function deathsSection(story) {
  const place = section(story, "deaths", "How shadow pages died");
  const { zaps, live } = facts();
  figure(place, "deaths-roles", "Zaps by role and cause", (width) => {
    const rows = facts().roles.filter(inMode).sort(byRole).map((role) => ({
      role, label: roleName(role),
      parts: Object.keys(CAUSES).map((cause) => [cause, (role.deaths[cause] ?? 0) + (role.emptied[cause] ?? 0)]),
    })).map((row) => ({ ...row, note: number(d3.sum(row.parts, ([, count]) => count)) })).filter((row) => row.note !== "·");
    if (!rows.length) return { says: `Nothing was zapped here; ${number(live.total)} pages are alive at the end.` };
    const says = `${Object.entries(CAUSES).filter(([cause]) => zaps[cause]).map(([cause, [name]]) => `${name}: ${number(zaps[cause])} of ${number(zaps.total)} zaps (${share(zaps[cause], zaps.total)})`).join("; ")}. `
      + `${zaps.root_kept ? `${number(zaps.root_kept)} were roots in use: emptied, but kept. ` : ""}${number(live.total)} pages are alive at the end, ${number(live.orphans)} of them without a parent.`;
    const used = Object.entries(CAUSES).filter(([cause]) => zaps[cause]);
    return {
      says,
      chart: [legend(used.map(([, entry]) => entry)), bars(says, width, rows, Object.fromEntries(Object.entries(CAUSES).map(([cause, [, color]]) => [cause, color])))],
      numbers: table("Zaps by role", [
        { label: "role", text: true, of: (row) => row.label },
        ...used.map(([cause, [label]]) => ({ label, of: (row) => (row.role.deaths[cause] ?? 0) + (row.role.emptied[cause] ?? 0) })),
        { label: "roots emptied", of: (row) => d3.sum(Object.values(row.role.emptied)) },
        { label: "lifetime, median", of: (row) => row.role.lifetime?.median ?? null },
        { label: "mean", of: (row) => row.role.lifetime?.mean ?? null },
        { label: "longest", of: (row) => row.role.lifetime?.max ?? null },
      ], rows),
    };
  });
}

function keySection(story) {
  const place = section(story, "key", "What each part of the key kept apart");
  const { key: parts, get_page: get } = facts();
  figure(place, "key-parts", "Misses that only one part of the key explains", (width) => {
    const says = `Of ${number(get.misses)} misses, those where a live page of the same frame differed in nothing but this part.`;
    const rows = Object.entries(parts).map(([part, misses]) => ({ label: part === "glevels" ? "paging mode" : part, misses, note: misses ? `${number(misses)} (${share(misses, get.misses)})` : "none", parts: [["n", misses]] }));
    return {
      says,
      chart: bars(says, width, rows, { n: HIT }),
      numbers: table("Parts of the key", [
        { label: "part", text: true, of: (row) => row.label },
        { label: "misses", of: (row) => row.misses },
      ], rows),
    };
  });
}

const SAVED = {
  faults: "page faults",
  exits: "exits",
  pages_made: "shadow pages made",
  entries_filled: "shadow entries filled",
};

function savedSection(story) {
  const { saved } = facts();
  const place = section(story, "saved", "What it saved");
  figure(place, "saved-counts", "With the cache and without", (width) => {
    if (!saved) return { says: "This report was made without a run of the uncached model to compare with." };
    const { cycles } = saved;
    const rows = [
      ...Object.entries(SAVED).filter(([name]) => saved[name]).map(([name, label]) => ({ label, ...saved[name] })),
      { label: "cycles, by the cost model", cached: cycles.cached, uncached: cycles.uncached },
    ];
    const says = "Uncached, every load of cr3 starts from nothing: its bars are whole. "
      + `The cost model counts ${number(cycles.exit)} cycles for an exit, ${number(cycles.fault)} more for a fault and ${number(cycles.fill)} for an entry filled.`;
    return {
      says,
      chart: [legend([["with the cache", HIT], ["saved by it", MISS]]), bars(says, width, rows.map((row) => ({
        label: row.label,
        note: `${short(row.cached)} instead of ${short(row.uncached)}`,
        parts: [["cached", row.cached], ["saved", Math.max(0, row.uncached - row.cached)]],
      })), { cached: HIT, saved: MISS }, true)],
      numbers: table("Saved", [
        { label: "", text: true, of: (row) => row.label },
        { label: "with the cache", of: (row) => row.cached },
        { label: "uncached", of: (row) => row.uncached },
        { label: "with the cache, a cr3 load", of: (row) => row.per_cr3_cached },
        { label: "uncached, a cr3 load", of: (row) => row.per_cr3_uncached },
      ], rows),
    };
  });
}

function hashSection(story) {
  const place = section(story, "hash", "The hash table");
  const { hash: table_, hash_buckets: buckets } = facts();
  figure(place, "chains", "How long its chains are", (width) => {
    const says = `${number(table_.pages)} pages lie in ${number(table_.nonempty)} of ${number(buckets)} buckets; the longest chain has ${number(table_.longest)}.`;
    if (!table_.chains) return { says };
    const points = table_.chains.map((row) => ({ at: row.length, value: row.buckets }));
    return {
      says,
      chart: [scrolling("Chains: chart", columns(says, width, points, "var(--made)", "pages in a bucket"))],
      numbers: table("Chains", [{ label: "pages in a bucket", of: (row) => row.at, show: (row) => String(row.at) }, { label: "buckets", of: (row) => row.value }], points),
    };
  });
  listing(place, "worst", "The fullest buckets", () => {
    if (!table_.worst?.length) return { says: "No bucket holds several pages." };
    return {
      says: "And what filled them.",
      numbers: table("Buckets", [
        { label: "bucket", of: (row) => row.bucket, show: (row) => String(row.bucket) },
        { label: "pages", of: (row) => row.pages },
        { label: "frames", of: (row) => row.frames },
        { label: "why", text: true, long: true, of: (row) => printable(row.why) },
        { label: "roles", text: true, long: true, of: (row) => row.roles.map((role) => `${number(role.pages)} × ${roleName(role)}`).join(", ") },
      ], table_.worst),
    };
  });
}

function cornersSection(story) {
  const met = Object.entries(facts().corner).filter(([, count]) => count);
  if (!met.length) return;
  const place = section(story, "corners", "Where 2.6.20 itself would have broken");
  place.append(table("Corners", [
    { label: "what", text: true, of: ([name]) => name.replaceAll("_", " ") },
    { label: "times", of: ([, count]) => count },
  ], met));
}

function findingsSection(story) {
  const found = facts().findings;
  if (!found) return;
  const place = section(story, "findings", found.length ? `Worth a look (${found.length})` : "Worth a look");
  if (!found.length) {
    place.append(el("p", { class: "says" }, "Nothing stands out: no rule of docs/counters.md fires on this run."));
    return;
  }
  place.append(el("ul", { class: "findings" }, ...found.map((finding) => el("li", {},
    el("p", {}, printable(finding.sentence)),
    finding.command ? el("code", { tabindex: "0" }, printable(finding.command)) : null,
    el("small", {}, printable(finding.rule))))));
}

/** In the order of the terminal's report, with time after the answer. */
const SECTIONS = [
  answerSection, bootSection, whereSection, framesSection, parentsSection, spacesSection, originSection, deathsSection, keySection,
  savedSection, hashSection, cornersSection, findingsSection,
];

function story(place) {
  for (const part of SECTIONS) part(place);
}
