"use strict";

/* What roles, address spaces and causes are called. */

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

/** Names with a suffix behind those that are not alone: where one is, it says enough. */
function toldApart(names, suffix) {
  const often = d3.rollup(names, (same) => same.length, (name) => name);
  return names.map((name, index) => (often.get(name) > 1 ? name + suffix(index) : name));
}

/**
 * The names of address spaces, in their order. Those that are the same are told apart by the event they begin at; a frame that no
 * program names is the root of one address space after another, which its name says, and of each paging mode.
 */
function spaceNames(spaces) {
  const since = toldApart(spaces.map((space) => printable(space.name)),
    (index) => (spaces[index].name.startsWith("gfn ") ? "" : ` from ${number(spaces[index].first_event)}`));
  return toldApart(since, (index) => ` (${modeName(spaces[index].glevels)})`);
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

function causes(role) {
  const parts = Object.entries(role.deaths).map(([cause, count]) => `${CAUSES[cause]?.[0] ?? printable(cause)} ${number(count)}`);
  const emptied = d3.sum(Object.values(role.emptied));
  return [...parts, ...(emptied ? [`${number(emptied)} roots emptied`] : [])].join(", ");
}
