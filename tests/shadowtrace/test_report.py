"""The report: what it says of a small trace, word for word, in every width and form; and what it shows of a real boot."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from analyzer.reports.text import beside, columns, number, share, spark, wrapped
from tests.conftest import Boot, Cli

#: Frames 1 and 5 are top tables over the same tables 2, 3 and 4; the leaf table is stored to three times.
EVENTS = """\
{"ev":"page","gpa":"0x1000","words":{"0":"0x2067"}}
{"ev":"page","gpa":"0x2000","words":{"0":"0x3067"}}
{"ev":"page","gpa":"0x3000","words":{"0":"0x4067","1":"0x4000e7"}}
{"ev":"page","gpa":"0x4000","words":{"0":"0x9067"}}
{"ev":"page","gpa":"0x5000","words":{"0":"0x2067"}}
{"ev":"cr3","value":"0x1000"}
{"ev":"regs","cr0":"0x80010011","cr4":"0x30","efer":"0x500"}
{"ev":"access","va":"0x0","write":0,"user":0,"fetch":0}
{"ev":"access","va":"0x200000","write":0,"user":0,"fetch":0}
{"ev":"cr3","value":"0x5000"}
{"ev":"access","va":"0x0","write":0,"user":0,"fetch":0}
{"ev":"write","gpa":"0x4008","size":8,"value":"0x0"}
{"ev":"write","gpa":"0x4010","size":8,"value":"0x0"}
{"ev":"write","gpa":"0x4018","size":8,"value":"0x0"}
{"ev":"cr3","value":"0x1000"}
"""

EXPECTED = """\
e.jsonl · events from e.jsonl · 1 vCPU
imported: 15 events, 0 lost; import: imported from e.jsonl
kvm-2.6.20 · 256 shadow pages · 256 buckets (gfn mod n) · 15 events replayed by the reference core (asked for)

3 cr3 loads  ->  16 lookups, 37.5% hit    3 faults of 3 accesses    3 stores to tables emulated    1 pages zapped, all floods

Where the cache found its pages
  mode       level  quadrant  meta  lookups   hits  hit%   made  alive  peak  died of
  long           4                        3      1  33.3      2      2     2
  long           3                        2      1  50.0      1      1     1
  long           2                        1      ·     ·      1      1     1
  long           1                        1      ·     ·      1      ·     1  flood 1
  long           1            meta        1      ·     ·      1      1     1
  no paging      2      0..3  meta    4 x 2  4 x 1  50.0  4 x 1      1     1

When
  from   events  roots  faults  of accesses  lookups  hit%  made  zapped  alive then
  start      15      5       3            3       16  37.5    10       1           9

Who
  program    spaces  roots  lookups  hit%  made  faults
  no paging       1      2        8  50.0     4       ·
  gfn 0x1         1      2        6  16.7     5       2
  gfn 0x5         1      1        2  50.0     1       1

One guest page, several shadow pages           One shadow page, several parents
  told apart                   now  peak         level  alive  several  most  chains  half empty
  across levels                  ·     ·         4          2        ·     ·       ·           ·
  across quadrants               1     1         3          1        1     2       1           1
  across paging modes            ·     ·         2          5        ·     1       ·           ·
  as itself and in a big page    ·     ·         1          1        ·     1       ·           ·
  2 pages at once                ·     1         pages with a pte chain: 1 at the peak, 1 now
  3 pages at once                ·     1         gfn 0x2, level 3: user half, 2 parents (gfn 0x1 and 1 more)
  4 pages at once                1     1
  1 of 6 shadowed frames now, 1 at the peak
  gfn 0x0: 4 pages, level 2

One shadow page, several address spaces           Who had made the page that was found
        level  alive  in one  in several  most              hits  same space  another  another vCPU  another mode
  peak      4      2       2           ·     1      roots      5       100.0        ·             ·             ·
            3      1       ·           1     2      tables     1           ·    100.0             ·             ·
            2      5       4           1     2      in % of the hits
            1      2       ·           2     2
  end       4      2       2           ·     1
            3      1       ·           1     2
            2      5       4           1     2
            1      1       ·           1     2
  peak: after event 11

How shadow pages died                               The hash table
  flood: 1 of 1 zaps (100.0%)                         9 pages in 5 of 256 buckets, 5 in the fullest
  9 alive at the end, 5 of them without a parent      bucket 0: 5 pages of 2 frames
                                                        keys that are multiples of 512: big pages, or paging off

What each part of the key kept apart
  level: · of 10 misses had a live page of the same frame that differed in nothing else
  quadrant: 3 of 10 misses had a live page of the same frame that differed in nothing else
  glevels: · of 10 misses had a live page of the same frame that differed in nothing else
  metaphysical: · of 10 misses had a live page of the same frame that differed in nothing else
"""


@pytest.fixture
def trace(tmp_path: Path, cli: Cli) -> Path:
    (tmp_path / "e.jsonl").write_text(EVENTS)
    assert cli("import", tmp_path / "e.jsonl", "-o", tmp_path / "t.db").returncode == 0
    return tmp_path / "t.db"


def on_a_terminal(width: int, *arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What the command prints where its output is a terminal of this width."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    program = Path(sys.executable).with_name("shadowtrace")
    process = subprocess.Popen(
        [program, *map(str, arguments)], stdout=theirs, stderr=subprocess.PIPE, cwd=cwd, env={**inherited, "TERM": "xterm", **environment}
    )
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 65536):
            shown += more
    except OSError:
        pass  # Linux answers so when the other end is closed.
    os.close(ours)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return shown.decode().replace("\r\n", "\n")


def test_the_report_of_a_small_trace_word_for_word(cli: Cli, trace: Path) -> None:
    """Look-ups: without paging 4 roots are made, and found when CR4 is set. In long mode root 1, tables 2, 3 and 4 and the big page are
    made; root 5 is made and finds 2; root 1 is found again at the end. The leaf table, 4, dies of its third store.

    At the peak, when 2 is linked under root 5 (event 11), 2, 3, 4 and the big page are in both spaces; at the end 4 is gone.
    """
    done = cli("report", "t.db", "--core", "reference", "--no-saved", cwd=trace.parent, COLUMNS="")
    assert done.stdout == EXPECTED


def test_the_same_trace_gives_the_same_bytes(cli: Cli, trace: Path) -> None:
    for options in (("--all",), ("--format", "json"), ("--by", "mode,process,cause")):
        shown = {cli("report", "t.db", *options, cwd=trace.parent, PYTHONHASHSEED=seed).stdout for seed in ("1", "2")}
        assert len(shown) == 1


@pytest.mark.parametrize("width", [48, 80, 160])
def test_rows_never_wrap_and_no_number_is_cut(cli: Cli, trace: Path, width: int) -> None:
    shown = on_a_terminal(width, "report", "t.db", "--all", cwd=trace.parent)
    plain = re.sub(r"\x1b\[[01]m", "", shown)
    lines = plain.split("\n")
    table = lines[lines.index("Where the cache found its pages") + 1 :]
    table = table[: table.index("")]
    assert all(len(line) <= width for line in table)
    wide = on_a_terminal(200, "report", "t.db", "--all", cwd=trace.parent)
    whole = wide[wide.index("  mode") :].split("\n")
    for narrow, full in zip(table[:-1], whole, strict=False):
        assert full.startswith(narrow.rstrip("…").rstrip())


def test_bars_and_bold_are_for_terminals_and_no_color_is_respected(cli: Cli, trace: Path) -> None:
    piped = cli("report", "t.db", cwd=trace.parent).stdout
    assert not set("▁▂▃▄▅▆▇█\x1b") & set(piped)
    shown = on_a_terminal(120, "report", "t.db", cwd=trace.parent)
    assert "\x1b[1mWhen\x1b[0m" in shown
    assert "  alive   " in shown
    assert "█" in shown
    plain = on_a_terminal(120, "report", "t.db", cwd=trace.parent, NO_COLOR="1")
    assert "\x1b" not in plain
    assert "█" in plain


def test_groups_in_every_form(cli: Cli, trace: Path) -> None:
    """In long mode: level 1 has the leaf table and a big page; levels 3 and 2 one table each, level 4 two roots, one found again."""
    options = ("--by", "level,meta", "--only", "mode=long")
    text = cli("report", trace, *options).stdout.splitlines()
    assert text[0].split() == ["level", "meta", "lookups", "hits", "hit%", "made", "died", "alive", "stores"]
    assert text[1].split() == ["1", "1", "·", "·", "1", "1", "·", "3"]
    lines = [json.loads(line) for line in cli("report", trace, *options, "--format", "jsonl").stdout.splitlines()]
    found = [(line["level"], line["meta"], line["lookups"], line["hits"], line["died"]) for line in lines]
    assert found == [(1, "", 1, 0, 1), (1, "meta", 1, 0, 0), (2, "", 1, 0, 0), (3, "", 2, 1, 0), (4, "", 3, 1, 0)]
    rows = list(csv.DictReader(io.StringIO(cli("report", trace, *options, "--format", "csv").stdout)))
    assert [int(row["lookups"]) for row in rows] == [line["lookups"] for line in lines]
    assert rows[3]["hit_percent"] == "50.0"
    marked = cli("report", trace, *options, "--format", "markdown").stdout.splitlines()
    assert marked[:2] == ["| level | meta | lookups | hits | hit% | made | died | alive | stores |", "| --- | --- |" + " ---: |" * 7]
    assert marked[3] == "| 1 | meta | 1 | · | · | 1 | · | 1 | · |"
    whole = json.loads(cli("report", trace, *options, "--format", "json").stdout)
    assert whole["rows"] == lines
    assert whole["trace"]["guest"] == "e.jsonl"


def test_formats_of_rows_group_by_role_by_themselves(cli: Cli, trace: Path) -> None:
    lines = [json.loads(line) for line in cli("report", trace, "--format", "jsonl").stdout.splitlines()]
    roles = json.loads(cli("report", trace, "--format", "json").stdout)["facts"]["roles"]
    assert len(lines) == len(roles)
    assert sum(line["lookups"] for line in lines) == sum(role["lookups"] for role in roles)


def test_sort_and_limit(cli: Cli, trace: Path) -> None:
    shown = cli("report", trace, "--by", "gfn", "--sort", "stores", "--limit", "2", "--format", "csv").stdout.splitlines()
    assert [line.split(",")[0] for line in shown] == ["gfn", "0x4", "0x0"]
    assert cli("report", trace, "--by", "gfn", "--sort", "hit%", "--limit", "1").returncode == 0


def test_a_program_s_name_is_shown_harmless(cli: Cli, trace: Path) -> None:
    import sqlite3

    with sqlite3.connect(trace) as file:
        file.execute("INSERT INTO address_space (id, seq, root_gfn, pid, comm) VALUES (1, 10, 5, 7, ?)", ("a|\x1b[31m*b",))
    for options in (("--by", "process"), ("--by", "process", "--format", "csv"), ()):
        shown = cli("report", trace, *options).stdout
        assert "\x1b" not in shown
        assert "a|\\x1b[31m*b" in shown
    marked = cli("report", trace, "--by", "process", "--format", "markdown").stdout
    assert "a\\|\\\\x1b\\[31m\\*b" in marked
    assert cli("report", trace, "--by", "level", "--only", "process=a|\x1b[31m*b", "--format", "csv").stdout.count("\n") > 1


WRONG = {
    "no such key": (["--by", "colour"], "no key 'colour'", "mode, level"),
    "a key twice": (["--by", "level,level"], "names a key twice", "once"),
    "no condition": (["--by", "level", "--only", "level"], "no KEY=VALUE", "level=1"),
    "no such column": (["--by", "level", "--sort", "beauty"], "no column 'beauty'", "lookups"),
    "all of all columns": (["--format", "csv", "--all"], "every column is there already", "leave out --all"),
    "costs of rows": (["--by", "level", "--cycles-fill", "3"], "rows know no --cycles-fill", "--by"),
    "rows without keys": (["--sort", "lookups"], "are for rows", "--by"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(cli: Cli, trace: Path, case: str) -> None:
    options, sentence, hint = WRONG[case]
    done = cli("report", trace, *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert hint in done.stderr


def test_rows_say_more_when_asked_and_what_does_not_fit(cli: Cli, trace: Path) -> None:
    wide = cli("report", trace, "--by", "mode", "--all", "--saved", COLUMNS="200").stdout.splitlines()
    assert {"faults uncached", "made uncached", "peak", "chain"} < set(re.split("  +", wide[0]))
    assert "chain" not in cli("report", trace, "--by", "mode", COLUMNS="200").stdout
    assert cli("report", trace, "--by", "mode", "--sort", "chain", COLUMNS="200").stdout.splitlines()[0].endswith("chain")
    narrow = cli("report", trace, "--by", "mode", "--all", "--saved", COLUMNS="50").stdout.splitlines()
    assert max(map(len, narrow)) <= 60
    assert re.fullmatch(r"\.\.\. \d+ more columns in csv", narrow[-1])
    rows = cli("report", trace, "--by", "mode", "--saved", "--format", "csv").stdout.splitlines()
    assert rows[0].startswith("mode,lookups,hits,hit_percent,made,died,emptied,alive,faults,stores,faults_uncached,made_uncached,peak,life")


def test_what_only_asks_for_in_vain_is_told_with_what_there_is(cli: Cli, trace: Path) -> None:
    done = cli("report", trace, "--by", "level", "--only", "mode=PAE")
    assert done.returncode == 0
    assert done.stderr == "no mode is called 'PAE'; there are: 'no paging', 'long'\n"
    none = cli("report", trace, "--by", "level", "--only", "mode=no paging", "--only", "level=4")
    assert (none.returncode, none.stderr) == (0, "nothing that was replayed is in any of these groups\n")


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "csv"],
        ["--format", "html"],
        ["--by", "level"],
        ["--by", "level", "--only", "mode=long"],
        ["--model", "uncached"],
        ["--all"],
    ],
)
def test_a_live_kvm_s_report_refuses_what_takes_events(options: list[str], cli: Cli, tmp_path: Path, shared: Path) -> None:
    assert cli("import", shared / "kvmmmu" / "walk32.trace.gz", "-o", tmp_path / "kvm.db").returncode == 0
    done = cli("report", tmp_path / "kvm.db", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a live KVM's log holds no events" in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.parametrize("width", [60, 80, 120])
def test_everything_shows_what_json_knows_of_sharing_hash_and_hits(cli: Cli, trace: Path, width: int) -> None:
    """At the peak spaces 1 and 5 have 2, 3, 4 and the big page in common, besides the root of each, and the machine without
    paging its 4 roots; of the frames only 0, of four quadrants, has pages made more than once."""
    shown = cli("report", trace, "--all", COLUMNS=str(width)).stdout
    lines = shown.splitlines()
    assert all(len(line) <= width for line in lines if "shadowtrace" not in line)
    at = lines.index("Shadow pages that spaces have in common at the peak")
    assert [line.split()[-3:] for line in lines[at + 1 : at + 5]] == [["1", "2", "3"], ["4", "·", "·"], ["·", "5", "4"], ["·", "4", "5"]]
    told = json.loads(cli("report", trace, "--format", "json").stdout)["facts"]
    words = " ".join(shown.split())
    for row in told["space_sharing"]["peak"]["by_level"]:
        assert f"peak, level {row['level']}: " + ", ".join(f"{row['histogram'][n]} in {n}" for n in row["histogram"]) in words
    assert "buckets by pages: " + ", ".join(f"{chain['buckets']} of {chain['length']}" for chain in told["hash"]["chains"]) in words
    assert f"gfn 0x0: {told['frames']['most_made'][0]['made']} times, level 2" in words
    by_age = sum(age["hits"] for origin in told["origin"].values() for age in origin["age"])
    start = next(i for i, line in enumerate(lines) if "made up to .. events before" in line)
    assert by_age == told["get_page"]["hits"]
    assert [line.split()[-3:] for line in lines[start + 1 : start + 3]] == [["4", "·", "1"], ["8", "5", "·"]]
    plain = cli("report", trace, COLUMNS=str(width)).stdout
    assert "in common" not in plain
    assert "made most often" not in plain


def test_what_it_saved_is_replayed_once_and_kept(cli: Cli, trace: Path) -> None:
    """Without a cache each of the three loads starts anew: 3 faults either way, but 3 tables for the third instead of none."""
    assert "What it saved" not in cli("report", trace, "--no-saved").stdout
    told = json.loads(cli("report", trace, "--saved", "--format", "json", "--cycles-exit", "10").stdout)["facts"]["saved"]
    assert (told["faults"]["cached"], told["faults"]["uncached"]) == (3, 3)
    # With: 4 roots, 1, 2, 3, 4, the big page and 5. Without: as many and 2, 3 and 4 again, and 1 again; and the roots at CR4 anew.
    assert (told["pages_made"]["cached"], told["pages_made"]["uncached"]) == (10, 10 + 3 + 1 + 4)
    assert told["cycles"]["exit"] == 10
    again = cli("report", trace).stdout
    assert "What it saved" in again
    assert "instead of" in again
    assert "What it saved" not in cli("report", trace, "--no-saved").stdout
    assert "What it saved" not in cli("report", trace, "--model", "uncached", "--saved").stdout


def test_an_older_form_of_facts_is_not_taken_for_a_kept_run(cli: Cli, trace: Path) -> None:
    import sqlite3

    first = cli("report", trace).stdout
    with sqlite3.connect(trace) as file:
        file.execute("""UPDATE run SET facts = '{"mmu_pages": 256}'""")
    assert cli("report", trace).stdout == first


@pytest.mark.parametrize("form", ["table", "json", "html"])
def test_a_report_does_not_tell_what_was_replayed_before(cli: Cli, trace: Path, form: str) -> None:
    """A run with an audit, and one that another core was asked for, are kept too: a report would name their core, and why."""
    first = cli("report", trace, "--format", form).stdout
    assert cli("replay", trace, "--audit", "1").returncode == 0
    assert cli("replay", trace, "--core", "reference").returncode == 0
    assert cli("report", trace, "--format", form).stdout == first
    asked = cli("report", trace, "--core", "reference", "--saved", "--format", "json").stdout
    assert (json.loads(asked)["run"]["core"], json.loads(asked)["run"]["why"]) == ("reference", "asked for")


def test_words_and_numbers() -> None:
    assert [number(0), number(1234567), share(0, 5), share(1, 5000), share(4999, 5000), share(5, 5)] == [
        "·",
        "1,234,567",
        "·",
        "<0.1",
        ">99.9",
        "100.0",
    ]
    assert spark([0, 1, 2, 8], 4) == "▁▁▂█"
    assert spark([1, 8, 2, 4], 2) == "█▄"
    assert spark([0, 0], 2) == ""
    assert wrapped("one two three", 9, "· ", "  ") == ["· one two", "  three"]
    assert beside("a\nbb", "c", 20) == "a     c\nbb"
    assert beside("a", "b" * 20, 20) == "a\n\n" + "b" * 20


def test_columns_lose_the_rightmost_first() -> None:
    rows = [("name", "first", "second", "words"), ("x", "1,000", "2,000", "some words that go on")]
    assert columns(rows, fit=60).split("\n")[1] == "x     1,000   2,000  some words that go on"
    assert columns(rows, fit=35).split("\n")[1] == "x     1,000   2,000  some words th…"
    assert columns(rows, fit=30).split("\n")[1] == "x     1,000   2,000"
    assert columns(rows, fit=15).split("\n")[1] == "x     1,000"


@pytest.mark.boot
def test_the_report_of_a_real_boot_tells_its_story(cli: Cli, boot: Boot) -> None:
    """Linux's boot: the kernel's half is shared by all, roots are found again, leaf tables are not."""
    shown = cli("report", boot.trace, "--all").stdout
    headings = [line for line in shown.splitlines() if line and not line.startswith(" ")]
    for heading in ("Where the cache found its pages", "When", "Who", "Worth a look"):
        assert any(line.startswith(heading) for line in headings)
    told = json.loads(cli("report", boot.trace, "--format", "json").stdout)["facts"]
    names = [phase["name"] for phase in told["phases"]]
    assert names[:3] == ["reset", "kernel entry", "start_kernel"]
    assert "first user process" in names
    assert sum(phase["accesses"] for phase in told["phases"]) == told["events"]["access"]
    assert 100 <= len(told["over_time"]["buckets"]) <= 200
    assert any(page["kernel_half"] and page["level"] == 3 and page["parents"] > 2 for page in told["parents_top"])
    assert {"init", "busybox"} <= {space["name"] for space in told["spaces"]}
    assert "leaves-flooded" in {finding["rule"] for finding in told["findings"]}
    by_phase = [json.loads(line) for line in cli("report", boot.trace, "--by", "phase", "--format", "jsonl").stdout.splitlines()]
    assert [row["faults"] for row in by_phase] == [phase["faults"] for phase in told["phases"]]
