"""Looking at a trained agent gives the numbers of its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.image import imread
from PIL import Image

from recipes import evaluate
from tests.recipes._helpers import FRAMES, MEMORIES, command, process
from torchrl_shm.training import RunFolder

OPTIONS: dict[str, Any] = {
    "checkpoint": "latest", "device": "cpu", "threads": 1, "num_paths": 8, "seed": 0,
}  # fmt: skip


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished("shm")[0], tmp_path / "run"))


def check_same(found: dict[str, Any], run: Path) -> None:
    expected = json.loads((run / "summary.json").read_text())
    # a mixture, or equality shows nothing
    assert 0 < expected["eval_success"] < 1
    assert found == {
        **{key: expected[key] for key in ("env", "memory", "seed", "eval_return", "eval_success")},
        "frames": FRAMES,
        "pictures": [str(run / "episode.gif"), str(run / "trajectories.png")],
    }
    assert imread(run / "trajectories.png").shape[:2] == (900, 1560)
    # the path, and beside it what the agent remembers
    width = {"mlp": 240, "lstm": 240 + 8 + 262}.get(expected["memory"], 240 + 8 + 240)
    check_film(run, steps=30, width=width)


def check_film(run: Path, *, steps: int, width: int) -> None:
    with Image.open(run / "episode.gif") as picture:
        assert getattr(picture, "n_frames", 1) == steps + 1
        assert picture.size == (width, 258)


def test_command(run: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    before = {path.name for path in run.iterdir()}
    result = process("evaluate.py", f"run={run}", cwd=cwd)
    assert (result.code, result.stderr) == (0, "")
    check_same(result.summary, run)
    # pictures, and nothing else, are new
    assert {path.name for path in run.iterdir()} - before == {"episode.gif", "trajectories.png"}
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("memory", MEMORIES)
def test_memories(finished: Any, tmp_path: Path, memory: str) -> None:
    run = Path(shutil.copytree(finished(memory)[0], tmp_path / "run"))
    check_same(evaluate.main(str(run), **OPTIONS), run)


def test_repeats_whatever_was_drawn_before(run: Path) -> None:
    first = evaluate.main(str(run), **OPTIONS)
    pictures = [Path(path).read_bytes() for path in first["pictures"]]
    torch.rand(5)
    assert evaluate.main(str(run), **OPTIONS) == first
    assert [Path(path).read_bytes() for path in first["pictures"]] == pictures


@pytest.mark.parametrize("num_paths", [1, 3, 12])
def test_number_of_paths(run: Path, num_paths: int) -> None:
    evaluate.main(str(run), **OPTIONS | {"num_paths": num_paths})
    height = {1: 450, 3: 450, 12: 1350}[num_paths]
    assert imread(run / "trajectories.png").shape[0] == height


def test_point_robot(run: Path) -> None:
    """What was trained on Wind can be let loose there: both see and do the same."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["env"] = {
        "_target_": "torchrl_shm.envs.point_robot.PointRobotEnv",
        "_partial_": True,
        "max_steps": 20,
    }
    config["names"]["env"] = "point_robot"
    config["algo"]["policy_keys"] = ["observation", "previous_action"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    first = evaluate.main(str(run), **OPTIONS)
    assert first["env"] == "point_robot"
    assert imread(run / "trajectories.png").shape[:2] == (900, 1560)
    check_film(run, steps=40, width=488)
    # starts are drawn, and the same every time
    assert evaluate.main(str(run), **OPTIONS) == first


@pytest.mark.parametrize(
    ("env", "width"),
    [
        # a board, and numbers over time of environments that are stepped one after the other
        ("key_to_door_100", 377 + 8 + 240),
        ("gym", 360 + 8 + 240),
        ("popgym/RepeatPreviousEasy", 360 + 8 + 240),
    ],
)
def test_tasks_without_a_plane_are_filmed(env: str, width: int, tmp_path: Path) -> None:
    if env in ("gym", "popgym/RepeatPreviousEasy"):
        pytest.importorskip("popgym", reason="the original environments come with the extra popgym")
    result = command(
        "ppo_shm.py", f"env={env}", f"hydra.run.dir={tmp_path}", "algo.total_frames=40",
        "algo.num_envs=2", "algo.rollout_length=10", "algo.sequences_per_minibatch=2", "algo.epochs=1",
        "algo.num_test_episodes=2",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    summary = evaluate.main(str(tmp_path), **OPTIONS)
    assert summary["eval_return"] == result.summary["eval_return"]
    assert summary["pictures"] == [str(tmp_path / "episode.gif")]
    assert not (tmp_path / "trajectories.png").exists()
    with Image.open(tmp_path / "episode.gif") as picture:
        assert getattr(picture, "n_frames", 1) > 1
        assert picture.size == (width, 258)


class TestCheckpoint:
    @pytest.mark.parametrize(("which", "frames"), [("latest", 480), ("best", 320)])
    def test_which(self, run: Path, which: str, frames: int) -> None:
        """The best is that of the highest return in training."""
        checkpoints = RunFolder(run).checkpoints
        state = checkpoints.load()
        checkpoints.clear()
        for step, metric in ((160, 1.0), (320, 3.0), (480, 2.0)):
            checkpoints.save(state | {"frames": step}, step=step, metric=metric)
        found = evaluate.main(str(run), **OPTIONS | {"checkpoint": which})
        assert found["frames"] == frames

    def test_damaged(self, run: Path) -> None:
        (path,) = (run / "checkpoints").glob(f"*{FRAMES:012d}")
        (path / "SHA256SUMS").write_text("")
        with pytest.raises(RuntimeError, match=f"no checkpoint can be used: {path} is damaged"):
            evaluate.main(str(run), **OPTIONS)

    def test_unknown(self, run: Path) -> None:
        result = command("evaluate.py", f"run={run}", "checkpoint=first")
        assert result.code == 1
        assert "'first'" in result.stderr
        assert "'latest'" in result.stderr


class TestMistakes:
    @pytest.mark.parametrize("arguments", [[], ["device=cpu"], ["run="]])
    def test_no_run(self, arguments: list[str]) -> None:
        result = command("evaluate.py", *arguments)
        assert (result.code, result.stdout) == (2, "")
        # one line, which says what to pass
        assert result.stderr.count("\n") == 1
        assert "run=outputs/ppo_shm/" in result.stderr

    @pytest.mark.parametrize("recipe", ["evaluate.py", "export.py"])
    def test_missing_folder_from_the_command_line(self, tmp_path: Path, recipe: str) -> None:
        result = command(recipe, f"run={tmp_path / 'no_run'}")
        assert (result.code, result.stdout) == (2, "")
        # one line, without a traceback
        assert result.stderr.count("\n") == 1
        assert "config.yaml does not exist; this must be the folder of a run" in result.stderr

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist; this must be"):
            evaluate.main(str(tmp_path / "no_run"), **OPTIONS)
        assert list(tmp_path.iterdir()) == []

    def test_missing_checkpoint(self, run: Path) -> None:
        shutil.rmtree(run / "checkpoints")
        with pytest.raises(FileNotFoundError, match="checkpoints holds no checkpoint: the run"):
            evaluate.main(str(run), **OPTIONS)

    def test_checkpoint_of_another_memory(self, run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["memory"]["memory_size"] = 5
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(RuntimeError, match=r"size mismatch for .*key\.weight"):
            evaluate.main(str(run), **OPTIONS)

    def test_foreign_target(self, run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["env"]["_target_"] = "os.system"
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=r"'os\.system'; only targets of torchrl_shm"):
            evaluate.main(str(run), **OPTIONS)


def test_help() -> None:
    result = command("evaluate.py", "--help")
    assert result.code == 0
    for option in ("run ", "checkpoint ", "device ", "threads ", "num_paths ", "seed "):
        assert f"\n{option}" in result.stdout
    assert "num_paths: 8" in result.stdout
