"""A memory solves what no memory can: presets as they are, one thread, some minutes each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes._helpers import command

# preset, entry of the summary, frames (None: those of the preset), least and most with SHM, and
# with no memory; seed 0. Guessing gives a half in T-Maze, a third in Visual Match, -0.5 in Repeat
# Previous; but no memory solves Key-to-Door, for who always takes the key has nothing to remember
TASKS = [
    ("t_maze_passive", "eval_success", 2_000_000, (0.9, 1.0), (0.4, 0.6)),
    ("popgym_repeat_previous_easy", "eval_return", 1_000_000, (0.95, 1.0), (-0.6, -0.4)),
    ("visual_match_100", "eval_success", None, (0.95, 1.0), (0.2, 0.45)),
    ("visual_match_250", "eval_success", None, (0.95, 1.0), (0.2, 0.45)),
    ("key_to_door_100", "eval_success", None, (0.9, 1.0), (0.9, 1.0)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("env", "score", "frames", "solved", "guessed"), TASKS)
def test_memory_pays(
    tmp_path: Path,
    env: str,
    score: str,
    frames: int | None,
    solved: tuple[float, float],
    guessed: tuple[float, float],
) -> None:
    budget = () if frames is None else (f"experiment.total_frames={frames}",)
    for memory, (least, most) in {"shm": solved, "mlp": guessed}.items():
        place = f"hydra.run.dir={tmp_path / memory}"
        result = command("ppo_shm.py", f"env={env}", f"memory={memory}", *budget, place)
        assert result.code == 0, result.stderr
        assert least <= result.summary[score] <= most, memory


# recipe, preset, entry of the summary, and its least and most with SHM and with no memory; seed 0.
# Without a memory an agent passes through the goal of Wind, but cannot stay there
OTHERS = [
    ("reinforce_shm", "memory_length", "eval_success", (0.98, 1.0), (0.4, 0.6)),
    ("grpo_shm", "t_maze_passive", "eval_success", (0.98, 1.0), (0.0, 0.6)),
    ("sac_shm", "t_maze_passive", "eval_success", (0.95, 1.0), (0.0, 0.6)),
    ("grpo_shm", "wind", "eval_success", (0.8, 1.0), (0.0, 0.9)),
    ("grpo_shm", "wind", "eval_return", (60.0, 81.7), (0.0, 55.0)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "env", "score", "solved", "guessed"), OTHERS)
def test_memory_pays_with_other_algorithms(
    tmp_path: Path,
    recipe: str,
    env: str,
    score: str,
    solved: tuple[float, float],
    guessed: tuple[float, float],
) -> None:
    for memory, (least, most) in {"shm": solved, "mlp": guessed}.items():
        place = f"hydra.run.dir={tmp_path / memory}"
        result = command(f"{recipe}.py", f"env={env}", f"memory={memory}", place)
        assert result.code == 0, result.stderr
        assert least <= result.summary[score] <= most, memory


@pytest.mark.slow
def test_memory_pays_off_policy(tmp_path: Path) -> None:
    options = ("env=memory_length", "env.length=20", "algo.rollout_length=21")
    for memory, (least, most) in {"shm": (0.98, 1.0), "mlp": (0.35, 0.65)}.items():
        place = f"hydra.run.dir={tmp_path / memory}"
        frames = "experiment.total_frames=30_000"
        result = command("sac_shm.py", *options, frames, f"memory={memory}", place)
        assert result.code == 0, result.stderr
        assert least <= result.summary["eval_success"] <= most, memory
