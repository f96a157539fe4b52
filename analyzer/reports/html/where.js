"use strict";

/* The answer, and where the cache found its pages. */

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
      part
        ? tile(number(now.cr3), "loads of roots", `of ${number(d3.sum(facts().phases, (row) => row.cr3))} in all: cr3 and changes of mode`)
        : tile(number(now.cr3), "cr3 loads"),
      tile(share(now.hits, now.lookups), "of look-ups hit", `${number(now.hits)} of ${number(now.lookups)}`),
      tile(number(now.faults), "page faults (exits)", now.accesses === null ? of("faults") : `of ${number(now.accesses)} recorded accesses`),
      tile(number(now.stores), "stores to tables emulated", part ? of("stores") : `of ${number(writes.plain + writes.protected)} recorded stores to tables`),
      tile(number(now.zapped), "pages zapped", part ? of("zapped") : `${number(whole.made)} made; ${count(zaps.root_kept)} of the zaps kept a root`),
    );
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
      numbers: table("Alive by role", columns, roles().filter((role) => role.peak)),
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
