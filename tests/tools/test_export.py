"""From a run to a folder to be shared, and from there to the numbers of the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.docs.test_code_blocks import BLOCK
from tests.recipes._helpers import FRAMES, ROOT, command
from tests.tools._helpers import tool
from torchrl_shm.configs import instantiate_saved
from torchrl_shm.sharing import load_policy
from torchrl_shm.training import evaluate, make_test_env

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("memory", ["shm", "lstm"])
def test_it_evaluates_as_the_run(finished: Any, tmp_path: Path, memory: str) -> None:
    run, folder = finished(memory), tmp_path / "shared"
    before = {path.name for path in run.iterdir()}
    result = tool("export", run, "--to", folder)
    assert (result.code, result.stderr) == (0, "")
    assert result.summary == {"folder": str(folder), "files": FILES}
    assert {path.name for path in run.iterdir()} == before
    parts = instantiate_saved(run)
    env = make_test_env(parts["env"], num_episodes=parts["experiment"].num_test_episodes)
    found = evaluate(load_policy(folder).module, env)
    summary = json.loads((run / "summary.json").read_text())
    # a mixture, or equality shows nothing
    assert 0 < summary["eval_success"] < 1
    assert round(found.mean_return, 4) == summary["eval_return"]
    assert found.success_rate == summary["eval_success"]
    config = json.loads((folder / "config.json").read_text())
    assert config["evaluation"] == {
        "mean_return": summary["eval_return"],
        "success_rate": summary["eval_success"],
    }
    assert (config["task"], config["memory_name"], config["frames"]) == ("wind", memory, FRAMES)


def test_the_command_on_the_card_makes_the_run_again(run: Path, tmp_path: Path) -> None:
    """Evaluated, it gives the numbers that stand beside it."""
    tool("export", run, "--checkpoint", "latest")
    config = json.loads((run / "export" / "config.json").read_text())
    arguments = config["command"].split()
    assert arguments[:2] == ["python", "recipes/ppo_shm.py"]
    again = tmp_path / "again"
    result = command("ppo_shm.py", *arguments[2:], f"hydra.run.dir={again}")
    assert result.code == 0, result.stderr
    assert result.summary["eval_return"] == config["evaluation"]["mean_return"]


def test_the_best_checkpoint(run: Path) -> None:
    tool("export", run, "--checkpoint", "best")
    config = json.loads((run / "export" / "config.json").read_text())
    # the evaluation is that of the last
    assert (config["frames"] == FRAMES) == (config["evaluation"] is not None)


def test_page_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="comes with the extra popgym")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "recipes" / "sharing.md").read_text()
    train, share = re.search(r"```bash\n(.*?)```", page, re.S)[1].splitlines()  # type: ignore[index]
    tiny = ("experiment.total_frames=40", "experiment.num_envs=2", "algo.rollout_length=10",
            "algo.sequences_per_minibatch=2", "algo.epochs=1",
            "experiment.num_test_episodes=2")  # fmt: skip
    result = command("ppo_shm.py", *train.split()[2:], *tiny)
    assert result.code == 0, result.stderr
    assert share.startswith("torchrl-shm ")
    assert tool(*share.split()[1:]).code == 0
    names: dict[str, Any] = {}
    blocks = [match["code"] for match in BLOCK.finditer(page) if match["language"] == "python"]
    assert len(blocks) == 3
    first, index, last = blocks
    exec(first, names)
    exec(last, names)
    assert names["score"] > 0
    # the robot of another page
    own = (ROOT / "docs" / "tutorials" / "own_environment.md").read_text()
    robot = next(match["code"] for match in BLOCK.finditer(own) if "class Robot" in match["code"])
    Path("robot.py").write_text(robot.partition("env = ")[0])
    monkeypatch.syspath_prepend(tmp_path)
    run = ("env=gym", "env.id=robot:Robot-v0", *tiny, "hydra.run.dir=robot_run")
    with patch.dict(gymnasium.registry):
        # another test may have run that page
        gymnasium.registry.pop("Robot-v0", None)
        assert command("ppo_shm.py", *run).code == 0
        assert tool("export", "robot_run", "--to", "robot").code == 0
        exec(index, names)
    assert names["done"]


@pytest.mark.slow
def test_page_on_production(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="comes with the extra onnx")
    pytest.importorskip("onnxruntime", reason="comes with the extra onnx")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "recipes" / "production.md").read_text()
    *_, share = re.search(r"```bash\n(.*?)```", page, re.S)[1].splitlines()  # type: ignore[index]
    assert share.startswith("torchrl-shm export wind_run ")
    run.rename("wind_run")
    result = tool(*share.split()[1:])
    assert (result.code, result.stderr) == (0, "")
    assert result.summary == {"folder": "wind", "files": sorted([*FILES, "policy.onnx"])}
    assert "`policy.onnx` is one step" in Path("wind", "README.md").read_text()
    names: dict[str, Any] = {}
    blocks = [match["code"] for match in BLOCK.finditer(page) if match["language"] == "python"]
    assert len(blocks) == 5
    for code in blocks:
        exec(code, names)
    assert names["found"]["action"].shape == (1, 2)
    # without it nothing of it is left
    assert tool("export", "wind_run", "--to", "wind").summary["files"] == FILES


def test_without_the_packages_for_onnx(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = tool("export", run, "--onnx")
    assert result.code == 2
    assert result.stderr.splitlines() == [
        "torchrl-shm export: ONNX files need onnx and onnxscript: pip install 'torchrl_shm[onnx]'"
    ]
    assert not (run / "export").exists()
