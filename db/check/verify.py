"""The invariants of a trace, each a named check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from db.check.rebuild import TABLE_KINDS, Rebuilt
from db.check.tracking import Tracking
from db.columns import event_rows
from db.errors import UsageError
from db.trace import TraceReader
from x86.event import WRITE_SEEN_SHIFT, Kind, Seen, in_range, unpack_words
from x86.paging import BASE64, PAGE_SHIFT, PRESENT, WALKER_BITS

_SHOWN = 3

_STRAY_ORIGINS = f"""\
SELECT store_origin.seq FROM store_origin LEFT JOIN event USING (seq)
WHERE NOT coalesce(kind = {Kind.WRITE:d} AND flags >> {WRITE_SEEN_SHIFT} = {Seen.EXACT:d}, 0)"""

_EMPTY_FUNCTIONS = """\
SELECT name FROM symbol LEFT JOIN (SELECT DISTINCT pc FROM store_origin) ON pc - address >= 0 AND pc - address < size
WHERE pc IS NULL"""


@dataclass(frozen=True)
class Check:
    """An invariant: its name, what it says, and why it should hold."""

    name: str
    claim: str
    why: str


CHECKS = {
    check.name: check
    for check in (
        Check(
            "intact",
            "the file is whole as SQLite sees it, and every value is of its column's type",
            "In a damaged file nothing else can be told for sure.",
        ),
        Check(
            "sealed", "the recording was sealed", "A trace that was not sealed ends where its recorder was killed: up to there it is whole."
        ),
        Check("counts", "the file has as many events as it says", "Events were lost or added after the trace was sealed."),
        Check("order", "events are numbered from 1 without a hole", "The numbers are the one total order of what happened."),
        Check("shape", "every event has the columns and rows of its kind", "A row of a wrong shape was not written by shadowtrace."),
        Check("vcpus", "every event is of a vCPU that the guest has", "Replay keeps registers for each vCPU that the recording names."),
        Check(
            "cr3-in-ram",
            "every cr3 load with paging on points into RAM",
            "A root outside RAM cannot be walked; a guest that ran on did not load one.",
        ),
        Check(
            "content-before-use",
            "a page's content comes before stores to it, and just before it becomes a table, each time",
            "Without it nobody can tell what the rest of the table holds.",
        ),
        Check(
            "known-table",
            "a page that is stored to is a table at that moment, or was one until so many stores ago as the recorder lingers",
            "Other stores are none of paging's business: a page that went on being recorded as data, or a link that is missing.",
        ),
        Check(
            "linked",
            "a page's content is followed by the event that makes it a table",
            "A page becomes a table only when a walk from a root reaches it; the PDPTEs of PAE aside, no other is recorded.",
        ),
        Check(
            "origins",
            "every instruction that is named made a store, and every function holds such an instruction",
            "Instructions and functions are recorded for stores that were seen themselves, and for nothing else.",
        ),
        Check(
            "marks",
            "marks and names lie within the events, those lost at the end counted, in order",
            "They are positions in the order of events.",
        ),
        Check("losses", "losses add up to what the recording says", "What was lost is counted, each gap with its cause."),
        Check(
            "end-state",
            "the events rebuild the tables that the guest had at the end",
            "The tables were copied from the guest's memory when it stood still.",
        ),
        Check("memory-checks", "no comparison with the guest's memory found a difference", "Each was made while the guest stood still."),
    )
}


@dataclass
class Finding:
    """A check's outcome: how often it does not hold, and the first cases in words."""

    check: Check
    failures: int = 0
    cases: list[str] = field(default_factory=list)
    not_applicable: str = ""
    """Why there was nothing to look at; empty where there was."""

    def fail(self, case: str, count: int = 1) -> None:
        """Note a case where it does not hold."""
        self.failures += count
        if len(self.cases) < _SHOWN:
            self.cases.append(case)


def explain(name: str) -> Check:
    """The check called ``name``; ``UsageError`` where there is none."""
    if name not in CHECKS:
        raise UsageError(f"there is no check called {name!r}", f"checks: {', '.join(CHECKS)}")
    return CHECKS[name]


def verify(trace: TraceReader) -> list[Finding]:
    """Every check on a trace, in the order of ``CHECKS``."""
    findings = {name: Finding(check) for name, check in CHECKS.items()}
    for line in trace.damage():
        findings["intact"].fail(line)
    if findings["intact"].failures:
        for finding in findings.values():
            finding.not_applicable = "" if finding.failures else "the file is damaged"
        return list(findings.values())
    _summary(trace, findings)
    if not findings["shape"].failures:
        _events(trace, findings)
    return list(findings.values())


def _summary(trace: TraceReader, findings: dict[str, Finding]) -> None:
    """What can be told without walking the events."""
    recording = trace.recording
    if recording["ended"] is None:
        findings["sealed"].fail("it is still being recorded" if trace.live else "the recording did not finish")
        findings["counts"].not_applicable = findings["losses"].not_applicable = "not sealed"
    if recording["source"] != "record":
        for name in ("cr3-in-ram", "content-before-use", "known-table", "linked"):
            findings[name].not_applicable = "imported"
    elif any(row["count"] for row in trace.rows("loss")):
        # Lines of the console that were not kept are no events.
        findings["known-table"].not_applicable = findings["linked"].not_applicable = "events were lost"
    if not trace.rows("end_table"):
        findings["end-state"].not_applicable = "no tables were kept: paging was off, or the recording was cut short, or imported"
    if not trace.rows("memory_check"):
        findings["memory-checks"].not_applicable = "there was none"
    count, first, last, most = next(trace.stream("SELECT count(*), min(seq), max(seq), max(vcpu) FROM event"))
    if recording["events"] is not None and recording["events"] != count:
        findings["counts"].fail(f"{count} events are there, {recording['events']} were sealed")
    if count and (first, last) != (1, count):
        findings["order"].fail(f"{count} events are numbered {first} to {last}")
    if count and most >= recording["vcpus"]:
        findings["vcpus"].fail(f"an event is of vCPU {most}, there are {recording['vcpus']}")
    lost = trace.number("SELECT sum(count) FROM loss")
    if recording["lost"] is not None and recording["lost"] != lost:
        findings["losses"].fail(f"{lost} are in the rows, {recording['lost']} were sealed")
    at_most = count + sum(row["count"] for row in trace.rows("loss") if row["seq"] == count)
    for row in trace.rows("loss"):
        if row["first"] is not None and row["last"] - row["first"] + 1 != row["count"]:
            findings["losses"].fail(f"loss {row['id']}: {row['count']} events, numbered {row['first']} to {row['last']}")
    for table in ("mark", "address_space"):
        seqs = [row["seq"] for row in trace.rows(table)]
        # The events that a mark comes after may have gone with a recorder that was killed, or be counted as lost at the end.
        most = at_most if recording["ended"] is not None else max(seqs, default=0)
        if seqs != sorted(seqs) or (seqs and not 0 <= seqs[0] <= seqs[-1] <= most):
            findings["marks"].fail(f"{table}: positions {seqs[:_SHOWN]} ... of {count} events")
    for row in trace.rows("memory_check"):
        wrong = row["missing"] + row["different"] + (row["leaves_different"] or 0)
        if wrong:
            findings["memory-checks"].fail(f"after event {row['seq']}: {row['detail'] or wrong}", wrong)
    _origins(trace, findings["origins"])
    for case in islice(_misshapen(trace), _SHOWN):
        findings["shape"].fail(case)


def _origins(trace: TraceReader, finding: Finding) -> None:
    for (seq,) in trace.stream(_STRAY_ORIGINS):
        finding.fail(f"event {seq} is no store that was seen itself")
    for (name,) in trace.stream(_EMPTY_FUNCTIONS):
        finding.fail(f"nothing in {name!r} stored to a table")


def _misshapen(trace: TraceReader) -> Iterator[str]:
    """Events without the row of their kind, or with columns out of range."""
    for name, kind in (("mode_registers", Kind.REGS), ("content", Kind.PAGE)):
        missing = f"SELECT event.seq FROM event LEFT JOIN {name} AS side USING (seq) WHERE kind = {kind:d} AND side.seq IS NULL"
        for (seq,) in trace.stream(missing):
            yield f"event {seq} has no row in {name}"
    for rows in event_rows(trace):
        for seq in rows[0][~in_range(*rows[1:5])].tolist():
            yield f"event {seq} has a column out of range"


def _events(trace: TraceReader, findings: dict[str, Finding]) -> None:
    """What takes a walk over the events: contents, links, the tables they rebuild."""
    recorded = trace.recording["source"] == "record"
    rebuilt = Rebuilt()
    followed = not findings["known-table"].not_applicable
    tracking = Tracking(trace.recording["ram_bytes"], trace.recording["linger"] or 0) if followed else None
    for event in trace.events(TABLE_KINDS):
        if recorded and event.kind == Kind.WRITE and event.addr >> PAGE_SHIFT not in rebuilt.pages:
            findings["content-before-use"].fail(f"a store to {event.addr:#x} comes before its page's content")
        try:
            rebuilt.apply(event)
        except ValueError as error:
            findings["shape"].fail(str(error))
            continue
        if tracking is not None:
            for name, case in tracking.take(event, rebuilt):
                findings[name].fail(case)
        if event.kind == Kind.CR3 and recorded and rebuilt.cpus[event.vcpu].mode and event.addr & BASE64 >= trace.recording["ram_bytes"]:
            findings["cr3-in-ram"].fail(f"cr3 {event.addr:#x}")
    _end_state(trace, rebuilt, findings["end-state"])


def _end_state(trace: TraceReader, rebuilt: Rebuilt, finding: Finding) -> None:
    for row in trace.rows("end_table"):
        ours = rebuilt.memory(row["gfn"])
        if ours is None:
            finding.fail(f"table {row['gfn']:#x} is in no event")
            continue
        real = dict(unpack_words(row["words"]))
        mask = ~WALKER_BITS & (1 << 64) - 1 if row["entry_bytes"] == 8 else ~(WALKER_BITS | WALKER_BITS << 32) & (1 << 64) - 1
        for index in range(512):
            word = int.from_bytes(ours[8 * index : 8 * index + 8], "little")
            if (word ^ real.get(index, 0)) & mask:
                present = " (present)" if real.get(index, 0) & PRESENT else ""
                finding.fail(f"table {row['gfn']:#x}, word {index}: {real.get(index, 0):#x} in memory{present}, {word:#x} rebuilt")
