"use strict";

/* The story of a report in the order of the terminal's, and its end: deaths, the hash, the key, what it was worth, what to do. */

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

function cornersSection(story) {
  const met = Object.entries(facts().corner).filter(([, count]) => count);
  if (!met.length) return;
  const place = section(story, "corners", "Where 2.6.20 itself would have broken");
  place.append(table("Corners", [
    { label: "what", text: true, of: ([name]) => name.replaceAll("_", " ") },
    { label: "times", of: ([, count]) => count },
  ], met));
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

function findingsSection(story) {
  const found = facts().findings;
  if (!found) return;
  const place = section(story, "findings", found.length ? `Worth a look (${found.length})` : "Worth a look");
  if (!found.length) {
    place.append(el("p", { class: "says" }, "Nothing stands out: no rule of docs/findings.md fires on this run."));
    return;
  }
  place.append(el("ul", { class: "findings" }, ...found.map((finding) => el("li", {},
    el("p", {}, printable(finding.sentence)),
    finding.command ? el("code", { tabindex: "0" }, printable(finding.command)) : null,
    el("small", {}, printable(finding.rule))))));
}

/** In the order of the terminal's report, under the same headings. */
const SECTIONS = [
  answerSection, whereSection, whenSection, whoSection, framesSection, parentsSection, spacesSection, originSection, deathsSection,
  hashSection, keySection, cornersSection, savedSection, findingsSection,
];

function story(place) {
  for (const part of SECTIONS) part(place);
}
