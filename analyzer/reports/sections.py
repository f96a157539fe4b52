"""The part of the report for a terminal that says why: who shares what, how pages died, what the key kept apart."""

from __future__ import annotations

from collections.abc import Iterable

from analyzer.facts.collect import Facts
from analyzer.reports.text import TerminalStyle, beside, columns, number, printable, share, shortened, spark

CAUSES = {
    "flood": "flood",
    "misaligned": "misaligned store",
    "misaligned_and_flood": "misaligned flood",
    "user_fault": "user store",
    "evict": "eviction",
    "dropped": "root load",
}

#: All of them died so.
ALL_OF = {
    "flood": "floods",
    "misaligned": "misaligned stores",
    "misaligned_and_flood": "misaligned floods",
    "user_fault": "user stores",
    "evict": "evictions",
    "dropped": "root loads",
}

_WAYS = {
    "level": "across levels",
    "quadrant": "across quadrants",
    "glevels": "across paging modes",
    "metaphysical": "as itself and in a big page",
}


def sections(facts: Facts, look: TerminalStyle, everything: bool) -> Iterable[str]:
    """Each part with its heading."""

    def block(heading: str, lines: Iterable[str]) -> str:
        return look.heading(heading) + "\n" + "\n".join(lines)

    yield beside(
        block("One guest page, several shadow pages", _frames(facts, look, everything)),
        block("One shadow page, several parents", _parents(facts, look, everything)),
        look.width,
    )
    yield beside(
        block("One shadow page, several address spaces", _spaces(facts, look, everything)),
        block("Who had made the page that was found", _origins(facts, look, everything)),
        look.width,
    )
    if everything and facts["space_sharing"]["peak"]["matrix"]["spaces"]:
        yield block("Shadow pages that spaces have in common at the peak", _matrix(facts, look))
    yield beside(
        block("How shadow pages died", _deaths(facts)),
        block("The hash table", _hash(facts, everything)),
        look.width,
    )
    yield block("What each part of the key kept apart", _key(facts))
    corners = list(_corners(facts))
    if corners:
        yield block("Where 2.6.20 itself would have broken", corners)


def _frames(facts: Facts, look: TerminalStyle, everything: bool) -> Iterable[str]:
    frames = facts["frames"]
    apart = frames["told_apart_by"]
    rows = [("told apart", "now", "peak", "")]
    rows += [(text, number(apart[part]["now"]), number(apart[part]["peak"]), "") for part, text in _WAYS.items()]
    rows += [(f"{row['pages']} pages at once", number(row["now"]), number(row["peak"]), "") for row in frames["by_pages"]]
    yield columns(rows, "  ", fit=look.width)
    yield f"  {number(apart['several']['now'])} of {number(frames['shadowed'])} shadowed frames now, {number(apart['several']['peak'])} at the peak"
    yield from _bars([bucket["several_pages"] for bucket in facts["over_time"]["buckets"]], look)
    for frame in frames["top"] if everything else frames["top"][:1]:
        levels = ", ".join(map(str, sorted({role["level"] for role in frame["roles"]}, reverse=True)))
        yield f"  gfn {frame['gfn']:#x}: {frame['pages']} pages, level {levels}" + (_whose(frame["names"]) if everything else "")
    if everything and frames["most_made"]:
        yield "  made most often"
        for frame in frames["most_made"]:
            levels = ", ".join(map(str, reversed(frame["levels"])))
            yield f"    gfn {frame['gfn']:#x}: {frame['made']:,} times, level {levels}{_whose(frame['names'])}"


def _bars(values: list[int], look: TerminalStyle) -> Iterable[str]:
    if look.terminal and any(values):
        yield f"  {spark(values, min(40, look.width - 2))}"


def _whose(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" ({shortened(printable(names[0]), 16)}{more})"


def _parents(facts: Facts, look: TerminalStyle, everything: bool) -> Iterable[str]:
    rows: list[tuple[str, ...]] = [("level", "alive", "several", "most", "chains", "half empty", "")]
    for row in reversed(facts["parents"]):
        counts = ("pages", "several_parents", "most_parents", "chains", "chains_half_empty")
        rows.append((str(row["level"]), *(number(row[name]) for name in counts), ""))
    yield columns(rows, "  ", fit=look.width)
    peak = facts["multimapped"]["peak"]
    yield f"  pages with a pte chain: {number(peak)} at the peak, {number(facts['multimapped']['end'])} now"
    yield from _bars([bucket["multi_parent"] for bucket in facts["over_time"]["buckets"]], look)
    for page in facts["parents_top"] if everything else facts["parents_top"][:1]:
        half = {True: "kernel half, ", False: "user half, ", None: ""}[page["kernel_half"]]
        yield f"  gfn {page['gfn']:#x}, level {page['level']}: {half}{page['parents']:,} parents{_whose(page['spaces'])}"
    if everything:
        for row in reversed(facts["parents"]):
            yield f"  level {row['level']}: " + ", ".join(f"{pages:,} with {parents}" for parents, pages in row["histogram"].items())


def _spaces(facts: Facts, look: TerminalStyle, everything: bool) -> Iterable[str]:
    shared = facts["space_sharing"]
    rows: list[tuple[str, ...]] = [("", "level", "alive", "in one", "in several", "most", "")]
    for when in ("peak", "end"):
        for i, row in enumerate(shared[when]["by_level"]):
            counts = ("pages", "in_one_root", "in_several", "most_roots")
            rows.append(("" if i else when, str(row["level"]), *(number(row[name]) for name in counts), ""))
    yield columns(rows, "  ", fit=look.width)
    yield f"  peak: after event {shared['peak']['event']:,}"
    if everything:
        for row in shared["peak"]["by_level"]:
            yield f"  peak, level {row['level']}: " + ", ".join(f"{pages:,} in {spaces}" for spaces, pages in row["histogram"].items())


def _matrix(facts: Facts, look: TerminalStyle) -> Iterable[str]:
    """As many address spaces as there is room for; on the diagonal all pages of one."""
    matrix = facts["space_sharing"]["peak"]["matrix"]
    names = [shortened(printable(facts["spaces"][place]["name"]), 16) for place in matrix["spaces"]]
    fitting = len(names)
    while fitting > 1 and _widest(_crossed(names, matrix["shared"], fitting)) > look.width:
        fitting -= 1
    yield columns(_crossed(names, matrix["shared"], fitting), "  ", left=2, fit=look.width)
    if fitting < len(names):
        yield f"  and {len(names) - fitting} more that a wider terminal has room for"


def _crossed(names: list[str], shared: list[list[int]], most: int) -> list[tuple[str, ...]]:
    head = ("", "", *(str(i + 1) for i in range(most)), "")
    return [head, *((str(i + 1), names[i], *(number(n) for n in shared[i][:most]), "") for i in range(most))]


def _widest(rows: list[tuple[str, ...]]) -> int:
    """Columns that a table takes, its indent of two and the room that its last column wants included."""
    return 2 + sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True))


def _origins(facts: Facts, look: TerminalStyle, everything: bool) -> Iterable[str]:
    names = {"same_root": "same space", "other_root": "another", "other_vcpu": "another vCPU", "other_mode": "another mode"}
    rows = [("", "hits", *names.values(), "")]
    for which, origin in facts["origin"].items():
        total = sum(origin[name] for name in names)
        rows.append((which, number(total), *(share(origin[name], total) for name in names), ""))
    yield columns(rows, "  ", fit=look.width)
    yield "  in % of the hits"
    if everything:
        by_age = {which: {age["up_to"]: age["hits"] for age in origin["age"]} for which, origin in facts["origin"].items()}
        ages = sorted({age for hits in by_age.values() for age in hits})
        if ages:
            rows = [("made up to .. events before", *by_age, "")]
            rows += [(f"{age:,}", *(number(hits.get(age, 0)) for hits in by_age.values()), "") for age in ages]
            yield columns(rows, "  ", fit=look.width)


def _deaths(facts: Facts) -> Iterable[str]:
    zaps = facts["zaps"]
    for cause, text in CAUSES.items():
        if zaps[cause]:
            yield f"  {text}: {zaps[cause]:,} of {zaps['total']:,} zaps ({share(zaps[cause], zaps['total'])}%)"
    if zaps["root_kept"]:
        yield f"  {zaps['root_kept']:,} of them were roots in use: emptied, but kept"
    yield f"  {facts['live']['total']:,} alive at the end, {number(facts['live']['orphans'])} of them without a parent"


def _hash(facts: Facts, everything: bool) -> Iterable[str]:
    table = facts["hash"]
    yield f"  {number(table['pages'])} pages in {number(table['nonempty'])} of {facts['hash_buckets']:,} buckets, {number(table['longest'])} in the fullest"
    if everything:
        yield "  buckets by pages: " + ", ".join(f"{chain['buckets']:,} of {chain['length']:,}" for chain in table["chains"])
    for bucket in table["worst"] if everything else table["worst"][:1]:
        frames = f"{bucket['frames']:,} frames" if bucket["frames"] > 1 else "one frame"
        yield f"  bucket {bucket['bucket']}: {bucket['pages']:,} pages of {frames}"
        yield f"    {bucket['why']}"


def _key(facts: Facts) -> Iterable[str]:
    misses = facts["get_page"]["misses"]
    for part, count in facts["key"].items():
        yield f"  {part}: {number(count)} of {misses:,} misses had a live page of the same frame that differed in nothing else"


def _corners(facts: Facts) -> Iterable[str]:
    for corner, count in facts["corner"].items():
        if count:
            yield f"  {corner.replace('_', ' ')}: {count:,}"
