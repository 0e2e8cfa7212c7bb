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
from tests.recipes._helpers import FRAMES, MEMORIES, process
from torchrl_shm.envs import TMazeEnv

OPTIONS: dict[str, Any] = {"device": "cpu", "threads": 1, "num_paths": 8, "seed": 0}


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
        "picture": str(run / "trajectories.png"),
    }
    assert imread(run / "trajectories.png").shape[:2] == (900, 1560)


def test_command(run: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    before = {path.name for path in run.iterdir()}
    result = process("evaluate.py", f"run={run}", cwd=cwd)
    assert (result.code, result.stderr) == (0, "")
    check_same(result.summary, run)
    # a picture, and nothing else, is new
    assert {path.name for path in run.iterdir()} - before == {"trajectories.png"}
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("memory", MEMORIES)
def test_memories(finished: Any, tmp_path: Path, memory: str) -> None:
    run = Path(shutil.copytree(finished(memory)[0], tmp_path / "run"))
    check_same(evaluate.main(str(run), **OPTIONS), run)


def test_repeats_whatever_was_drawn_before(run: Path) -> None:
    first = evaluate.main(str(run), **OPTIONS)
    picture = (run / "trajectories.png").read_bytes()
    torch.rand(5)
    assert evaluate.main(str(run), **OPTIONS) == first
    assert (run / "trajectories.png").read_bytes() == picture


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
    # starts are drawn, and the same every time
    assert evaluate.main(str(run), **OPTIONS) == first


def test_tasks_without_a_plane_are_animated(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = TMazeEnv(3)
    result = evaluate.Evaluation(torch.zeros(3), None, env.rollout(5))
    assert not evaluate.draw_paths(env, result, 2, run / "trajectories.png")
    assert not (run / "trajectories.png").exists()

    monkeypatch.setattr(evaluate, "draw_paths", lambda *arguments: False)
    summary = evaluate.main(str(run), **OPTIONS)
    assert summary["picture"] == str(run / "episode.gif")
    with Image.open(run / "episode.gif") as picture:
        # one frame per step, and the first observation
        assert getattr(picture, "n_frames", 1) > 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary


class TestMistakes:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist; run=\.\.\."):
            evaluate.main(str(tmp_path / "no_run"), **OPTIONS)
        assert list(tmp_path.iterdir()) == []

    def test_missing_checkpoint(self, run: Path) -> None:
        (run / "checkpoint.pt").unlink()
        with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt does not exist: the run was"):
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
