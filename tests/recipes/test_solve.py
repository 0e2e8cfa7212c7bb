"""The benchmark of `tests/benchmarks/solve.py` ends runs where it says."""

from __future__ import annotations

import math
import sys

import pytest

from tests.benchmarks import solve
from tests.recipes._helpers import FRAMES, FRAMES_PER_UPDATE, TINY

TASK = ["env=wind", "memory=lru", *TINY]

# each starts a process, which imports for seconds
pytestmark = pytest.mark.slow


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # every return reaches it; the episodes of 30 steps end in the second update
    arguments = ["--env=wind", "--memories=lru", "--seeds=0", "--target=-1e9", "--wait=0"]
    monkeypatch.setattr(sys, "argv", ["solve", *arguments, *TINY])
    solve.main()
    runs, medians = capsys.readouterr().out.split("\n\n")
    *_, run = runs.splitlines()
    name, seed, frames, seconds, _, reached = run.strip("| ").split(" | ")
    assert (name, seed, reached) == ("lru", "0", "yes")
    assert frames == str(2 * FRAMES_PER_UPDATE)
    assert float(seconds) > 0.5
    assert medians.splitlines()[-1] == f"| lru | {frames} | {seconds} | 1 of 1 |"


@pytest.mark.parametrize(("limit", "frames"), [(math.inf, FRAMES), (1, FRAMES_PER_UPDATE)])
def test_target_out_of_reach(limit: float, frames: int) -> None:
    run = solve.solve(TASK, target=1e9, frames=limit)
    assert run.frames == frames
    # no episode ends in the first update
    assert math.isfinite(run.score) == (frames == FRAMES)


def test_failure_is_shown() -> None:
    with pytest.raises(SystemExit, match=r"algo\.epochs must be at least 1, got 0"):
        solve.solve([*TASK, "algo.epochs=0"], target=0.0)
