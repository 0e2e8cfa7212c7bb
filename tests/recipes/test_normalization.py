"""`network.normalize=true` in every recipe: saved, resumed, evaluated and exported."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipes import test_sac_shm as sac
from tests.recipes._helpers import TINY, check_same_runs, command, fitting, saved_state
from tests.recipes.test_resume import kill
from tests.sharing.test_folder import check_acts_like_the_run
from torchrl_shm.sharing import export_policy, load_policy

pytestmark = pytest.mark.usefixtures("elsewhere")

SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in ("reinforce_shm", "grpo_shm", "sac_shm")]


def start(recipe: str, folder: Path, *arguments: str) -> Any:
    own = (*sac.TINY, *sac.WIND) if recipe == "sac_shm" else fitting(recipe, TINY)
    result = command(
        f"{recipe}.py", *own, "network.normalize=true", *arguments, f"hydra.run.dir={folder}",
        "experiment.checkpoint_interval=1",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    return result


def statistics(folder: Path) -> dict[str, torch.Tensor]:
    operator = saved_state(folder)["operator"]
    return {name: x for name, x in operator.items() if "count_" in name or "loc_" in name}


@pytest.mark.parametrize("recipe", ["ppo_shm", *SLOW])
def test_every_recipe(recipe: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(recipe, run)
    found = statistics(run)
    frames = saved_state(run)["frames"]
    # of the observation and of the action before it
    counts = [float(x) for name, x in found.items() if "count_" in name]
    assert counts == [frames] * (4 if recipe == "sac_shm" else 2)
    folder = export_policy(run)
    check_acts_like_the_run(run, folder, steps=40)
    buffers = dict(load_policy(folder).module.named_buffers())
    assert any(float(x) == frames for name, x in buffers.items() if "count_" in name)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ppo_shm", "sac_shm"])
def test_killed_and_resumed(recipe: str, tmp_path: Path) -> None:
    straight, folder = tmp_path / "straight", tmp_path / "run"
    start(recipe, straight)
    kill(partial(start, recipe, folder), folder, after=2)
    result = command(f"{recipe}.py", f"experiment.resume={folder}")
    assert result.code == 0, result.stderr
    check_same_runs(folder, straight)


@pytest.mark.slow
def test_in_worker_processes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start("ppo_shm", run, "collector=multi_sync")
    counts = [float(x) for name, x in statistics(run).items() if "count_" in name]
    assert counts == [saved_state(run)["frames"]] * 2
