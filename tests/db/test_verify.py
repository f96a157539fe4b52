"""Every invariant holds on a real boot, and each notices when it does not."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from db.check.verify import CHECKS, explain, verify
from db.trace import TraceReader
from tests.conftest import Boot, Cli

pytestmark = pytest.mark.boot

#: For each check, SQL that breaks what it claims.
DAMAGE = {
    "sealed": "UPDATE recording SET ended = NULL",
    "counts": "DELETE FROM event WHERE seq = (SELECT max(seq) FROM event)",
    "order": "DELETE FROM event WHERE seq = 1000",
    "shape": "UPDATE event SET flags = 0 WHERE seq = (SELECT min(seq) FROM event WHERE kind = 3)",
    "vcpus": "UPDATE event SET vcpu = 1 WHERE seq = 5",
    "cr3-in-ram": "UPDATE event SET addr = 0x7fffffff000 WHERE seq = (SELECT max(seq) FROM event WHERE kind = 2)",
    "content-before-use": "UPDATE event SET addr = 0x1000 WHERE seq = (SELECT min(seq) FROM event WHERE kind = 3)",
    # To a table of the boot loader's that was overwritten by 65 stores: by the 64th after the one that unlinked it, it was none.
    "known-table": "UPDATE event SET addr = addr & 0xfff | (SELECT addr >> 12 << 12 FROM event WHERE kind = 3 AND addr >> 12 NOT IN"
    " (SELECT gfn FROM end_table) GROUP BY addr >> 12 HAVING count(*) = 65 ORDER BY max(seq) LIMIT 1)"
    " WHERE seq = (SELECT max(seq) FROM event WHERE kind = 3)",
    "linked": "UPDATE event SET addr = 0x7fe0000 WHERE seq = (SELECT min(seq) FROM event WHERE kind = 4)",
    "origins": "UPDATE store_origin SET seq = 1 WHERE seq = (SELECT min(seq) FROM store_origin)",
    "marks": "UPDATE mark SET seq = 1 << 40 WHERE id = 2",
    "losses": "INSERT INTO loss VALUES (1, 0, 10, NULL, NULL, 3, 'a test')",
    "memory-checks": "UPDATE memory_check SET missing = 1",
}


@pytest.fixture
def copy(boot: Boot, tmp_path: Path) -> Path:
    return Path(shutil.copy(boot.trace, tmp_path / "copy.db"))


def failing(trace: Path) -> set[str]:
    with TraceReader(trace) as opened:
        return {finding.check.name for finding in verify(opened) if finding.failures}


def change(trace: Path, statement: str) -> None:
    connection = sqlite3.connect(trace)
    assert connection.execute(statement).rowcount > 0
    connection.commit()
    connection.close()


def test_a_real_boot_passes(boot: Boot) -> None:
    assert failing(boot.trace) == set()


@pytest.mark.parametrize("check", DAMAGE)
def test_each_check_notices(check: str, copy: Path) -> None:
    change(copy, DAMAGE[check])
    assert check in failing(copy)


def test_a_trace_that_does_not_say_how_long_pages_are_watched_is_checked(copy: Path) -> None:
    change(copy, "UPDATE recording SET linger = NULL")
    assert failing(copy) == set()


def test_a_second_content_of_a_page_is_missed(copy: Path) -> None:
    """The last content of a frame that had become a table before: what it holds is known from then, and is not what it held."""
    change(
        copy,
        "UPDATE event SET addr = addr + (1 << 26) WHERE seq = (SELECT max(e.seq) FROM event e WHERE e.kind = 4 AND EXISTS"
        " (SELECT 1 FROM event first WHERE first.kind = 4 AND first.addr = e.addr AND first.seq < e.seq))",
    )
    assert "content-before-use" in failing(copy)


def test_one_changed_store_is_noticed_by_the_end_state(copy: Path) -> None:
    """The last present entry that was stored into one of the guest's tables at the end."""
    change(
        copy,
        "UPDATE event SET value = value - 1 WHERE seq = (SELECT max(e.seq) FROM event e JOIN end_table t ON t.gfn = e.addr >> 12"
        " WHERE e.kind = 3 AND e.value & 1 AND NOT EXISTS"
        " (SELECT 1 FROM event later WHERE later.kind = 3 AND later.addr = e.addr AND later.seq > e.seq))",
    )
    assert failing(copy) == {"end-state"}


def test_a_function_that_stored_nothing_is_noticed(copy: Path) -> None:
    change(copy, "INSERT INTO symbol SELECT max(address) + max(size), 16, 'idle' FROM symbol")
    assert failing(copy) == {"origins"}


def test_a_damaged_page_is_noticed_and_nothing_else_is_told(copy: Path, cli: Cli) -> None:
    with copy.open("r+b") as file:
        file.seek(4096 * 1000)
        file.write(b"\xff" * 64)
    done = cli("verify", copy)
    assert done.returncode == 1
    assert "intact" in done.stdout


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_one_dropped_event_of_any_kind_is_noticed(kind: int, copy: Path) -> None:
    change(copy, f"DELETE FROM event WHERE seq = (SELECT seq FROM event WHERE kind = {kind} LIMIT 1 OFFSET 20)")
    assert {"counts", "order"} <= failing(copy)


def test_every_check_can_be_explained_and_is_tested(cli: Cli) -> None:
    assert set(DAMAGE) | {"end-state", "intact"} == set(CHECKS)
    for name, check in CHECKS.items():
        assert explain(name) is check
        assert check.claim in cli("verify", "--explain", name).stdout
    assert cli("verify", "--explain", "nonsense").returncode == 2
    assert cli("verify").returncode == 2


def test_the_verb_says_what_failed_and_exits_with_1(copy: Path, cli: Cli) -> None:
    assert cli("verify", copy).returncode == 0
    change(copy, DAMAGE["losses"])
    done = cli("verify", copy)
    assert done.returncode == 1
    assert "FAILED  losses: losses add up" in done.stdout
    assert "3 are in the rows, 0 were sealed" in done.stdout
