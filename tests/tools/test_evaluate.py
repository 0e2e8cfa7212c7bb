"""Looking at a trained agent gives the numbers of its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.recipes._helpers import FRAMES, command
from tests.tools._helpers import tool
from torchrl_shm.training import RunFolder, make_test_env


def evaluate(run: Path, *options: object) -> dict[str, Any]:
    result = tool("evaluate", run, *options)
    assert (result.code, result.stderr) == (0, "")
    return result.summary


def frames(run: Path) -> int:
    with Image.open(run / "episode.gif") as picture:
        return getattr(picture, "n_frames", 1)


@pytest.mark.parametrize("memory", ["shm", pytest.param("lstm", marks=pytest.mark.slow)])
def test_numbers_of_the_run(finished: Any, tmp_path: Path, memory: str) -> None:
    run = Path(shutil.copytree(finished(memory), tmp_path / "run"))
    before = {path.name for path in run.iterdir()}
    found = evaluate(run)
    expected = json.loads((run / "summary.json").read_text())
    # a mixture, or equality shows nothing
    assert 0 < expected["eval_success"] < 1
    pictures = ["episode.gif", "trajectories.png"]
    assert found == {
        **{key: expected[key] for key in ("env", "memory", "seed", "eval_return", "eval_success")},
        "frames": FRAMES,
        "pictures": [str(run / name) for name in pictures],
    }
    # nothing else is new
    assert {path.name for path in run.iterdir()} - before == set(pictures)
    assert frames(run) == 30 + 1
    # it repeats, whatever was drawn before
    drawn = [(run / name).read_bytes() for name in pictures]
    torch.rand(5)
    assert evaluate(run) == found
    assert [(run / name).read_bytes() for name in pictures] == drawn


def test_actions_can_be_sampled(run: Path) -> None:
    def pictures(*options: str) -> list[bytes]:
        assert evaluate(run, *options).get("sampled_actions", False) == bool(options)
        return [(run / name).read_bytes() for name in ("episode.gif", "trajectories.png")]

    most_likely, first, second = (pictures(*how) for how in ((), *[("--sample-actions",)] * 2))
    # both show them
    assert not {*most_likely} & {*first}
    assert second == first


def test_number_of_paths(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrl_shm.tools.evaluate.save_animation", lambda *_: None)
    heights: list[int] = []
    for count in (1, 3):
        evaluate(run, "--num-paths", count)
        with Image.open(run / "trajectories.png") as picture:
            heights.append(picture.size[1])
    # two in a row, in inches at 150 dots
    assert heights == [round(150 * (2.7 * rows + 0.4)) for rows in (1, 2)]
    assert tool("evaluate", run, "--num-paths", 0).code == 2


def test_another_task_in_the_plane(run: Path) -> None:
    """What was trained on Wind can be let loose there: both see and do the same."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["env"] = {
        "_target_": "torchrl_shm.envs.point_robot.PointRobotEnv",
        "_partial_": True,
        "max_steps": 20,
    }
    config["experiment"]["names"]["env"] = "point_robot"
    config["network"]["policy_keys"] = ["observation", "previous_action"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    first = evaluate(run, "--num-paths", 1)
    assert first["env"] == "point_robot"
    assert (run / "trajectories.png").exists()
    assert frames(run) == 40 + 1
    # starts are drawn, and the same every time
    assert evaluate(run, "--num-paths", 1) == first


@pytest.mark.parametrize("env", ["key_to_door_100", "gym"])
def test_tasks_without_a_plane_are_filmed(env: str, tmp_path: Path) -> None:
    if env == "gym":
        pytest.importorskip("popgym", reason="gymnasium comes with the extra popgym")
    short = ("env.frames=[2,4,3]",) if env != "gym" else ()
    result = command(
        "ppo_shm.py", f"env={env}", *short, f"hydra.run.dir={tmp_path}",
        "experiment.total_frames=40", "experiment.num_envs=2", "algo.rollout_length=10",
        "algo.sequences_per_minibatch=2", "algo.epochs=1", "experiment.num_test_episodes=2",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    summary = evaluate(tmp_path)
    assert summary["eval_return"] == result.summary["eval_return"]
    assert summary["pictures"] == [str(tmp_path / "episode.gif")]
    assert not (tmp_path / "trajectories.png").exists()
    assert frames(tmp_path) > 1


def test_the_best_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is that of the highest return in training."""
    monkeypatch.setattr("torchrl_shm.tools.evaluate.save_animation", lambda *_: None)
    checkpoints = RunFolder(run).checkpoints
    state = checkpoints.load()
    shutil.rmtree(run / "checkpoints")
    for step, metric in ((160, 1.0), (320, 3.0), (480, 2.0)):
        checkpoints.save(state | {"frames": step}, step=step, metric=metric)
    few = ("--num-paths", 1)
    assert evaluate(run, *few)["frames"] == 480
    assert evaluate(run, "--checkpoint", "best", *few)["frames"] == 320


def test_a_shared_policy(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the run, by the same command."""
    run, folder = finished("shm"), tmp_path / "shared"
    assert tool("export", run, "--to", folder).code == 0
    monkeypatch.chdir(tmp_path)
    found = evaluate(folder, "--num-paths", 1)
    expected = json.loads((run / "summary.json").read_text())
    place = Path("outputs", "evaluate", "shared")
    pictures = [str(place / name) for name in ("episode.gif", "trajectories.png")]
    assert found == {
        **{key: expected[key] for key in ("env", "memory", "seed", "eval_return", "eval_success")},
        "frames": FRAMES,
        "pictures": pictures,
    }
    assert all(Path(picture).exists() for picture in pictures)
    # it can be exported again, because nothing was added
    assert tool("export", run, "--to", folder).code == 0
    elsewhere = evaluate(folder, "--pictures", tmp_path / "here", "--num-paths", 1)
    assert Path(elsewhere["pictures"][0]).parent == tmp_path / "here"
    result = tool("evaluate", folder, "--checkpoint", "best")
    assert (result.code, result.stdout) == (2, "")
    assert "--checkpoint is for runs" in result.stderr


def test_number_of_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = command(
        "ppo_shm.py", "env=t_maze_passive", "env.length=8", f"hydra.run.dir={tmp_path / 'run'}",
        "experiment.total_frames=20", "algo.rollout_length=10", "experiment.num_envs=2",
        "algo.sequences_per_minibatch=2", "algo.epochs=1", "experiment.num_test_episodes=3",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert tool("export", tmp_path / "run", "--to", tmp_path / "policy").code == 0
    played: list[int] = []

    def make(make_env: Any, *, num_episodes: int, **options: Any) -> Any:
        played.append(num_episodes)
        return make_test_env(make_env, num_episodes=num_episodes, **options)

    monkeypatch.setattr("torchrl_shm.tools.evaluate.make_test_env", make)
    # the pictures of an episode are the same, however many there are
    monkeypatch.setattr("torchrl_shm.tools.evaluate.save_animation", lambda *_: None)
    for folder, options in (("run", ()), ("policy", ()), ("policy", ("--num-episodes", 5))):
        evaluate(tmp_path / folder, "--pictures", tmp_path / "pictures", *options)
    assert played == [3, 256, 5]
    assert tool("evaluate", tmp_path / "run", "--num-episodes", 0).code == 2


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_weights_of_another_network(run: Path, name: str) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["memory"]["memory_size"] = 5
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    result = tool(name, run)
    assert result.code == 2
    assert result.stderr.count("\n") == 1
    assert f"{run} does not fit" in result.stderr
    assert "expected torch.float32 [5, " in result.stderr
    assert not (run / "export").exists()


def test_an_empty_folder(tmp_path: Path) -> None:
    result = tool("evaluate", tmp_path)
    assert result.code == 2
    assert result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr
