"""A memory learns more than no memory: presets as they are, one thread, some minutes each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes._helpers import command

# preset, entry of the summary, frames, at least with SHM, at most without a memory; seed 0.
# measured: 1.00 and 0.52, 0.06 and -0.50, 0.62 and 0.31, 0.17 and 0.00
TASKS = [
    ("t_maze_passive", "eval_success", 2_000_000, 0.9, 0.6),
    ("popgym_repeat_previous_easy", "eval_return", 2_000_000, -0.1, -0.4),
    ("visual_match_100", "eval_success", 2_000_000, 0.5, 0.4),
    ("key_to_door_100", "eval_success", 3_000_000, 0.1, 0.05),
]


@pytest.mark.slow
@pytest.mark.parametrize(("env", "score", "frames", "least", "most"), TASKS)
def test_memory_pays(
    tmp_path: Path, env: str, score: str, frames: int, least: float, most: float
) -> None:
    found: dict[str, float] = {}
    for memory in ("shm", "mlp"):
        result = command(
            "ppo_shm.py", f"env={env}", f"memory={memory}", f"experiment.total_frames={frames}",
            f"hydra.run.dir={tmp_path / memory}",
        )  # fmt: skip
        assert result.code == 0, result.stderr
        found[memory] = result.summary[score]
    assert found["shm"] >= least
    assert found["mlp"] <= most
