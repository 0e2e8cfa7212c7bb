"""The tools read the runs of every recipe in the same way, and compare them with each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.figures.test_plots import check_picture
from tests.recipes._helpers import FRAMES, RECIPES, TINY, command, fitting
from tests.tools._helpers import tool


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in RECIPES:
        options = (*fitting(recipe, TINY), "memory=lru", f"hydra.run.dir={folder / recipe}")
        result = command(f"{recipe}.py", *options)
        assert result.code == 0, result.stderr
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluate_and_export(runs: Path, tmp_path: Path, recipe: str) -> None:
    summary = json.loads((runs / recipe / "summary.json").read_text())
    policy = tmp_path / "policy"
    assert tool("export", runs / recipe, "--to", policy).code == 0
    for folder in (runs / recipe, policy):
        result = tool("evaluate", folder, "--pictures", tmp_path / "pictures", "--num-paths", 1)
        assert (result.code, result.stderr) == (0, "")
        found = result.summary
        assert (found["frames"], found["eval_return"]) == (FRAMES, summary["eval_return"])
    config = json.loads((policy / "config.json").read_text())
    assert config["command"].startswith(f"python recipes/{recipe}.py ")


def test_compare(runs: Path) -> None:
    result = tool("compare", runs)
    assert (result.code, result.stderr) == (0, "")
    names = {line.split("`")[1] for line in result.stdout.splitlines()[2:]}
    assert names == {"lru, PPO", "lru, Reinforce", "lru, GRPO"}
    check_picture(runs / "comparison.png")
    # alone, it goes by the name of its memory
    assert "| `lru` | 1 |" in tool("compare", runs / "grpo_shm").stdout
