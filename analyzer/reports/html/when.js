"use strict";

/* When and who: the boot over time, phases, programs, address spaces. */

/** Rows on as few lanes as they fit on side by side, ``most`` at most; a row that finds none is left out. */
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

function whenSection(story) {
  const place = section(story, "when", "When");
  const over = facts().over_time;
  const phaseLanes = () => (facts().phases ?? []).filter((row) => row.last >= row.first).map((row) => ({ ...row, name: printable(row.name), lane: 0 }));
  figure(place, "timeline", "What happened when", (width) => {
    if (!over || !over.buckets.length) return { says: "This run holds no facts over time: replay it again with this version." };
    if (tooShort(over)) return { says: `${tooShort(over)} Its counts are above and in the table of phases.` };
    const lengths = range()[1] - range()[0];
    const alive = (facts().spaces ?? []).map((row, index) => ({ space: index, name: printable(row.name), first: row.first_event, last: row.last_event }))
      .filter((row) => row.last >= range()[0] && row.first < range()[1]);
    const spaces = packed(alive, LANES, lengths);
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
      ...Object.entries(WAYS).map(([part, label]) => ({ label, of: (row) => row.told_apart_by[part] })),
      ...Object.keys(over.buckets[0].by_pages).map((n) => ({ label: `${n} pages`, of: (row) => row.by_pages[n] })),
    ];
    return {
      says: `${phase() ? `The phase “${printable(phase().name)}”` : "The whole recording"} from left to right, counted in recorded events, not in seconds: `
        + `each column is ${number(over.bucket_events)} of them.`
        + `${phase() ? " Columns that reach into another phase are left out." : ""}`
        + `${spaces.length < alive.length ? ` ${spaces.length} of ${alive.length} address spaces found room.` : ""}`,
      chart: [stage, cursor(stage, width, range(), shown, phaseLanes(), spaces)],
      numbers: table("What happened when", columns, shown),
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
        { label: "loads of roots", of: (row) => row.cr3 },
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

function whoSection(story) {
  const place = section(story, "who", "Who");
  figure(place, "programs", "Programs", (width) => {
    const rows = (facts().processes ?? []).filter((row) => ofSpace([row.name])).map((row) => ({ ...row, label: printable(row.name) }));
    if (!rows.length) return { says: "The trace names no programs." };
    const total = d3.sum(rows, (row) => row.lookups);
    const says = `Address spaces of one name together; ${rows[0].label} made ${share(rows[0].lookups, total)} of ${number(total)} look-ups. Those without a name go by the frame of their top table.`;
    return {
      says,
      chart: [legend([["hit", HIT], ["missed: a page was made", MISS]]), bars(says, width, rows.slice(0, FOLD).map((row) => ({
        label: row.label,
        note: `${percent(row.hits, row.lookups)} of ${number(row.lookups)}`,
        parts: [["hit", row.hits], ["missed", row.lookups - row.hits]],
      })), { hit: HIT, missed: MISS })],
      numbers: table("Programs", [
        { label: "program", text: true, of: (row) => row.label },
        { label: "address spaces", of: (row) => row.spaces },
        { label: "loads of roots", of: (row) => row.loads },
        { label: "look-ups", of: (row) => row.lookups },
        { label: "hit", of: (row) => (row.lookups ? row.hits / row.lookups : 0), show: (row) => share(row.hits, row.lookups) },
        { label: "made", of: (row) => row.made },
        { label: "faults", of: (row) => row.faults },
      ], rows),
    };
  });
  listing(place, "spaces-all", "Address spaces", () => {
    const rows = (facts().spaces ?? []).filter((row, index) => inMode(row) && (chosen.space === null || chosen.space === index)
      && row.last_event >= range()[0] && row.first_event < range()[1]);
    if (!rows.length) return { says: "No address space is in use here." };
    return {
      says: `${number(rows.length)} of ${number(facts().spaces.length)}, in the order of their first use; the numbers are of their whole life.`,
      numbers: table("Address spaces", [
        { label: "name", text: true, of: (row) => printable(row.name) },
        { label: "mode", text: true, of: (row) => modeName(row.glevels) },
        { label: "cr3", text: true, of: (row) => `0x${row.root.toString(16)}` },
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
