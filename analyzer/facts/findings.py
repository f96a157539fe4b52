"""Worth a look: rules over the facts of a replay, each with a threshold, and a command that looks closer.

A rule says nothing where its threshold is not met: a replay of which nothing is remarkable has no findings.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyzer.model.parameters import Parameters

Facts = dict[str, Any]

#: What stands in a command for the trace's file and for the guest's name.
TRACE, GUEST = "TRACE", "GUEST"


@dataclass(frozen=True)
class Finding:
    """Something worth a look."""

    rule: str
    sentence: str
    numbers: dict[str, int]
    command: str
    """To be pasted, with ``TRACE`` for the trace's file."""


#: A sentence, the numbers in it, and a command; ``None`` where the threshold is not met.
Judgement = tuple[str, dict[str, int], str] | None


@dataclass(frozen=True)
class Rule:
    """A rule: when it speaks and what it means, for people, and the judge."""

    name: str
    threshold: str
    meaning: str
    judge: Callable[[Facts, Parameters], Judgement]


def findings(facts: Facts, parameters: Parameters) -> list[Finding]:
    """What the rules have to say of the facts of a replay with these parameters, in the order of ``RULES``."""
    found = []
    for rule in RULES:
        judgement = rule.judge(facts, parameters)
        if judgement is not None:
            found.append(Finding(rule.name, *judgement))
    return found


def command(template: str, trace: str, guest: str) -> str:
    """A finding's command for a shell, of this trace file and this guest."""
    return " ".join({TRACE: shlex.quote(trace), GUEST: shlex.quote(guest)}.get(word, word) for word in template.split(" "))


def _leaves(facts: Facts) -> list[Facts]:
    return [role for role in facts["roles"] if role["level"] == 1 and not role["metaphysical"]]


def _refused(facts: Facts, parameters: Parameters) -> Judgement:
    refused, loads = facts["mode"]["gp_injected"], facts["events"]["cr3"] + facts["events"]["regs"]
    if refused < 10 or 100 * refused < loads:
        return None
    return (
        f"{refused:,} of {loads:,} loads of control registers were refused with #GP, which the real guest never got: what came after was"
        " replayed with the registers of before.",
        {"refused": refused, "loads": loads},
        f"shadowtrace report {TRACE}" if parameters.strict else f"shadowtrace script {TRACE} --kind cr3 --kind regs",
    )


def _leaves_flooded(facts: Facts, parameters: Parameters) -> Judgement:
    leaves = _leaves(facts)
    lookups, hits = sum(role["lookups"] for role in leaves), sum(role["hits"] for role in leaves)
    deaths = sum(sum(role["deaths"].values()) for role in leaves)
    floods = sum(role["deaths"].get("flood", 0) for role in leaves)
    if lookups < 1000 or 4 * hits > lookups or 2 * floods < deaths or not floods:
        return None
    often = f"only 1 time in {lookups // hits:,}" if hits else "never"
    return (
        f"Leaf tables are found again {often} ({hits:,} of {lookups:,} look-ups): store {parameters.flood} in a row to a table zaps it,"
        f" and {floods:,} of {deaths:,} died of that.",
        {"lookups": lookups, "hits": hits, "deaths": deaths, "floods": floods},
        f"shadowtrace report {TRACE} --flood {max(10, 2 * parameters.flood)}",
    )


def _one_frame(facts: Facts, _: Parameters) -> Judgement:
    made = facts["get_page"]["misses"]
    top = facts["frames"]["most_made"][:1]
    if not top or top[0]["made"] < 1000 or 4 * top[0]["made"] < made:
        return None
    return (
        f"One frame, gfn {top[0]['gfn']:#x}, had its shadow page made {top[0]['made']:,} times, of {made:,} pages made in all.",
        {"gfn": top[0]["gfn"], "made": top[0]["made"], "all": made},
        f"shadowtrace report {TRACE} --by gfn,level,process --sort made --limit 10",
    )


def _crowded_bucket(facts: Facts, parameters: Parameters) -> Judgement:
    worst = facts["hash"]["worst"][:1]
    pages = facts["hash"]["pages"]
    if not worst or worst[0]["pages"] < 16 or 8 * worst[0]["pages"] < pages or 2 * worst[0]["metaphysical"] < worst[0]["pages"]:
        return None
    bucket, crowd, big = worst[0]["bucket"], worst[0]["pages"], worst[0]["metaphysical"]
    return (
        f"{crowd:,} of {pages:,} pages share hash bucket {bucket}: {big:,} of them stand for big pages or for the time without paging,"
        " whose keys are multiples of 512.",
        {"bucket": bucket, "pages": crowd, "metaphysical": big, "all": pages},
        f"shadowtrace report {TRACE} --hash {'hash_64' if parameters.hash == 'mod' else 'mod'}",
    )


def _half_empty_chains(facts: Facts, _: Parameters) -> Judgement:
    chains = sum(level["chains"] for level in facts["parents"])
    half = sum(level["chains_half_empty"] for level in facts["parents"])
    if chains < 64 or 4 * half < 3 * chains:
        return None
    return (
        f"{half:,} of {chains:,} pte chains use two of their five slots or fewer.",
        {"chains": chains, "half_empty": half},
        f"shadowtrace report {TRACE} --all",
    )


def _evictions(facts: Facts, parameters: Parameters) -> Judgement:
    zaps, made = facts["evictions"]["zaps"], facts["get_page"]["misses"]
    if zaps < 100 or 20 * zaps < made:
        return None
    enough = facts["live"]["keys_ever"] + parameters.refill
    return (
        f"{parameters.pages:,} shadow pages are too few: eviction zapped {zaps:,} while {made:,} were made."
        f" With {enough:,} it could not start.",
        {"pages": parameters.pages, "evicted": zaps, "made": made, "enough": enough},
        f"shadowtrace report {TRACE} --pages {min(enough, 4 * parameters.pages)}",
    )


def _orphans(facts: Facts, _: Parameters) -> Judgement:
    orphans, total = facts["live"]["orphans"], facts["live"]["total"]
    if orphans < 20 or 5 * orphans < total:
        return None
    return (
        f"{orphans:,} of {total:,} live pages are neither a root in use nor under any other page: they wait to be found again.",
        {"orphans": orphans, "live": total},
        f"shadowtrace report {TRACE} --by level,process --sort alive",
    )


def _stale_directories(facts: Facts, parameters: Parameters) -> Judgement:
    stores = sum(role["stores"] for role in facts["roles"] if (role["glevels"], role["level"]) == (2, 2))
    if stores < 100 or parameters.directory_fix or not parameters.caching:
        return None
    return (
        f"{stores:,} stores to two-level directories cleared the wrong shadow entries, as in 2.6.20: what they changed stayed mapped as it was.",
        {"stores": stores},
        f"shadowtrace report {TRACE} --model kvm-2.6.21",
    )


def _absent_pdptes(facts: Facts, parameters: Parameters) -> Judgement:
    roots, lookups = facts["roots"]["of_frame_0"], facts["get_page"]["lookups"]
    if roots < 100 or 20 * roots < lookups or parameters.skip_absent_pdptes:
        return None
    return (
        f"{roots:,} of {lookups:,} look-ups were of roots of frame 0: 2.6.20 makes one for each absent entry of a PAE guest's top table.",
        {"roots": roots, "lookups": lookups},
        f"shadowtrace report {TRACE} --skip-absent-pdptes",
    )


def _isolation(facts: Facts, parameters: Parameters) -> Judgement:
    pairs, loads = facts["roots"]["to_neighbours"], facts["events"]["cr3"]
    if pairs < 1000 or 4 * pairs < loads or parameters.keep_roots:
        return None
    return (
        f"{pairs:,} of {loads:,} cr3 loads go to the frame beside the one before: page-table isolation, a load at each way into the kernel"
        " and out. Roots that stay in use need no look-up for it.",
        {"to_neighbours": pairs, "cr3": loads},
        f"shadowtrace report {TRACE} --keep-roots 3",
    )


def _late_contents(facts: Facts, _: Parameters) -> Judgement:
    changed, arrived = facts["contents"]["changed"], facts["events"]["page"]
    if changed < 10 or 100 * changed < arrived:
        return None
    return (
        f"{changed:,} of {arrived:,} page contents arrived changed while the frame was still shadowed: stores to them were not recorded,"
        " and hits are too good by that.",
        {"changed": changed, "arrived": arrived},
        f"shadowtrace record {GUEST} -o again.db --retire-after-stores 4096",
    )


RULES = (
    Rule(
        "loads-refused",
        "10 loads of control registers or more refused with #GP, a hundredth of all at the least",
        "2.6.20 refuses control registers and PAE pointers with bits that it takes for reserved; `--strict` makes it refuse bits that later"
        " processors gave a meaning. A guest that ran on was not refused by its processor, so from there on the replay is of another guest.",
        _refused,
    ),
    Rule(
        "leaves-flooded",
        "1,000 look-ups of leaf tables or more, a quarter of them hits at the most, and half of the leaf tables' deaths floods",
        "Flood detection takes a table that is written several times in a row for one that is being filled or reused as data, and zaps it."
        " fork, exec and exit write hundreds of entries of live tables, so their leaf tables seldom last until they are needed again.",
        _leaves_flooded,
    ),
    Rule(
        "one-frame",
        "a frame whose pages were made 1,000 times or more, a quarter of all pages made at the least",
        "A guest that uses one table for something short, over and over, has its page made and zapped each time: Linux's text poking"
        " maps a page, writes to it and unmaps it again, for every jump label.",
        _one_frame,
    ),
    Rule(
        "bucket-crowded",
        "16 pages or more in one bucket, an eighth of all at the least, half of them metaphysical",
        "The key of a big page is its first frame, a multiple of 512 (of 1,024 in two-level paging): modulo a power of two these all come"
        " out alike. Every look-up of one passes the others.",
        _crowded_bucket,
    ),
    Rule(
        "chains-half-empty",
        "64 pte chains or more, three quarters of them with two used slots of five at the most",
        "A second parent costs a page a chain of five slots. Where most pages have two parents, most of that memory is not used.",
        _half_empty_chains,
    ),
    Rule(
        "pages-too-few",
        "100 pages evicted or more, a twentieth of the pages made at the least",
        "Eviction zaps the page that was made first, whether it is in use or not. With as many pages as the guest ever had keys at once it"
        " would not run at all; the number given is of all keys ever, so fewer may do.",
        _evictions,
    ),
    Rule(
        "orphans",
        "20 orphans or more, a fifth of all live pages at the least",
        "A zapped page leaves its children in the cache without a parent. They are found again if the guest builds the same tables again,"
        " and are in the way if it does not.",
        _orphans,
    ),
    Rule(
        "directories-stale",
        "100 stores or more to two-level directories, in a model without the fix (ac1b714e78, 6b8d0f9b18)",
        "2.6.20 cleared one shadow entry in each quadrant, at the wrong index, where two entries in one quadrant stand for the guest's."
        " The old tables stay mapped; hits and mapped accesses are too many.",
        _stale_directories,
    ),
    Rule(
        "pdptes-absent",
        "100 look-ups or more of PAE roots of frame 0, a twentieth of all at the least, in a model that makes them",
        "A PAE guest that uses fewer than four page directories leaves entries absent. 2.6.20 does not look and shadows frame 0 as a"
        " directory, with write protection for that frame.",
        _absent_pdptes,
    ),
    Rule(
        "isolation",
        "1,000 cr3 loads or more to the neighbouring frame, a quarter of all at the least, in a model that keeps no roots",
        "Page-table isolation has two top tables for each process, in neighbouring frames, and loads cr3 at every way into the kernel and"
        " out of it. Later KVMs keep the last roots in use (keep_roots).",
        _isolation,
    ),
    Rule(
        "contents-late",
        "10 contents or more that arrived changed for a frame still shadowed, a hundredth of all contents at the least",
        "The recorder stops watching a page some stores after it was last linked as a table. Where the model still shadowed it, it missed"
        " stores that would have zapped it.",
        _late_contents,
    ),
)
