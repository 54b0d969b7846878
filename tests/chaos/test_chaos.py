"""The short run: a few jobs, a handful of faults, the same checks as the long one. And: the checks can fail."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.audit import Change
from tests.chaos.checker import illegal_edges, stale_writes
from tests.chaos.faults import FAULTS, schedule
from tests.chaos.harness import Harness, Scenario
from tests.chaos.report import BEGIN, END, Row, table, write
from tests.chaos.scenarios.corruption import corruption
from tests.chaos.scenarios.volume import volume

SEED = 2

CLAIM = Change(1, "trainer-0.1", "job", "ftjob-a", 1, "running", 0, "queued", 1)


@pytest.mark.parametrize("scenario", [volume, corruption])
def test_promises_hold_under_faults(scenario: Scenario, tmp_path: Path) -> None:
    rows = scenario(Harness(tmp_path, SEED, 0.012, lambda _what, _share: None))
    assert [row for row in rows if not row.ok] == []


def test_a_write_after_another_claim_is_stale() -> None:
    taken = replace(CLAIM, number=2, writer="trainer-1.1", fence=2, old_fence=1, old_state="running")
    late = replace(CLAIM, number=3, what="versions", fence=None, state=None, old_fence=None, old_state=None)
    assert stale_writes([CLAIM, taken, replace(late, writer="trainer-1.1")]) == []
    assert len(stale_writes([CLAIM, taken, late])) == 1


def test_no_edge_leaves_an_end() -> None:
    ended = replace(CLAIM, state="succeeded", old_state="running", old_fence=1)
    again = replace(CLAIM, state="queued", old_state="succeeded", old_fence=1)
    assert illegal_edges([CLAIM, ended]) == []
    assert len(illegal_edges([CLAIM, ended, again])) == 1


def test_the_same_seed_gives_the_same_faults() -> None:
    first, second = (schedule(100, random.Random("7-1"), disk=True) for _ in range(2))
    assert first == second
    assert set(first) == set(FAULTS)
    assert schedule(100, random.Random("8-1"), disk=True) != first


def test_the_table_replaces_the_old_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(page, table([Row(1, "jobs", "3", "0 lost", "1 lost", ok=False)], seed=5, minutes=2, scale=1, cores=2))
    text = page.read_text()
    assert "old" not in text
    assert "**NO**" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
