"""What the pages say of the memories stands in the raw data."""

from __future__ import annotations

import csv
import json

import pytest

from tests.benchmarks import memories, probe
from tests.docs.test_code_blocks import ROOT
from torchrl_shm.configs import MEMORIES

RESULTS = ROOT / "docs" / "results" / "memories"
SEEDS = 5
# nothing to remember with, or fewer steps than the delay
FORGETFUL = ("mlp", "frame_stack")


def rows() -> list[dict[str, str]]:
    with open(RESULTS / "probe.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_probe_is_complete() -> None:
    found = [(row["memory"], row["task"], int(row["seed"])) for row in rows()]
    expected = [(m, t, s) for m in probe.NAMES for t in probe.DELAYS for s in range(SEEDS)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", probe.NAMES)
def test_every_memory_learns_and_the_others_stay_at_chance(name: str) -> None:
    for task in probe.DELAYS:
        mine = [row for row in rows() if (row["memory"], row["task"]) == (name, task)]
        accuracy = sorted(float(row["accuracy"]) for row in mine)
        if name in FORGETFUL:
            assert accuracy[-1] < 0.35
        else:
            assert sum(accuracy) / SEEDS >= 0.95
            # one seed may be stuck
            assert accuracy[1] >= 0.95


def test_table_of_the_probe_is_that_of_the_data() -> None:
    assert (RESULTS / "probe.md").read_text().strip() == probe.summarize(rows())


def test_speed_is_complete() -> None:
    record = json.loads((RESULTS / "speed.json").read_text())
    found = [(row["memory"], row["steps"]) for row in record["rows"]]
    assert sorted(found) == sorted((m, t) for m in memories.NAMES for t in (128, 1024))
    assert all(row["batch"] == 64 for row in record["rows"])


@pytest.mark.parametrize("size", ["own", "params", "state"])
def test_sizes_are_complete(size: str) -> None:
    lines = (RESULTS / f"sizes_{size}.md").read_text().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(MEMORIES)
