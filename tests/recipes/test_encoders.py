"""Images and encoders on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.docs.test_code_blocks import BLOCK
from tests.recipes._helpers import ROOT, Result, command, saved_state
from tests.tools._helpers import tool
from torchrl_shm.sharing import PolicyStep, load_policy

pytestmark = pytest.mark.usefixtures("elsewhere")

TINY = (
    "experiment.total_frames=80", "experiment.num_envs=2", "algo.rollout_length=20",
    "algo.sequences_per_minibatch=1", "algo.epochs=1", "experiment.num_test_episodes=2",
    "network.embedding_size=8",
)  # fmt: skip
IMAGE = ("env=visual_match_100", "env.frames=[2,2,3]", "env.image=true")


class Patch(nn.Module):
    """An encoder of one's own, with an option."""

    def __init__(self, shapes: Any, output_size: int, device: Any, width: int = 2) -> None:
        super().__init__()
        self.sizes = [shape.numel() for shape in shapes]
        self.first = nn.Linear(sum(self.sizes), width, device=device)
        self.second = nn.Linear(width, output_size, device=device)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = torch.cat([x.flatten(1).float() / 255 for x in inputs], -1)
        return self.second(torch.relu(self.first(x)))


def start(folder: Path, *arguments: str) -> Result:
    return command("ppo_shm.py", *TINY, *arguments, f"hydra.run.dir={folder}")


def convolutions(folder: Path) -> int:
    return sum("convolutions" in name for name in saved_state(folder)["operator"])


@pytest.mark.parametrize(
    ("encoder", "found"),
    [
        ("auto", True),
        pytest.param("image", True, marks=pytest.mark.slow),
        pytest.param("flat", False, marks=pytest.mark.slow),
    ],
)
def test_by_name(encoder: str, found: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = start(run, *IMAGE, f"network.encoder={encoder}")
    assert (result.code, result.stderr) == (0, "")
    assert bool(convolutions(run)) == found
    assert tool("export", run).code == 0
    policy = load_policy(run / "export")
    image = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    look = {"observation": image, "previous_action": torch.zeros(1, 4)}
    keys = list(policy.specs.policy_keys)
    action, _ = policy({key: look[str(key)] for key in keys}, policy.initial_memory(1))
    assert action.shape == (1,)


@pytest.mark.slow
def test_of_ones_own() -> None:
    run = Path("wind_run")
    target = f"{Patch.__module__}.{Patch.__qualname__}"
    given = f"network.encoder={{_target_: {target}, _partial_: true, width: 3}}"
    result = start(run, *IMAGE, given)
    assert (result.code, result.stderr) == (0, "")
    shapes = {name: x.shape for name, x in saved_state(run)["operator"].items()}
    assert [shape for name, shape in shapes.items() if name.endswith("first.bias")] == [(3,)]
    # it is found again, but not sent to others
    assert tool("evaluate", run, "--num-episodes", "2", "--num-paths", 1).code == 0
    refused = tool("export", run)
    assert refused.code == 2
    assert "has an encoder of its own, and a shared policy runs no code" in refused.stderr
    # the page on production tells what to do
    page = (ROOT / "docs" / "recipes" / "production.md").read_text()
    (code,) = (x["code"] for x in BLOCK.finditer(page) if "instantiate_saved" in x["code"])
    names: dict[str, Any] = {}
    exec(code, names)
    policy = names["policy"]
    look = {"observation": torch.zeros(2, 3, 5, 5, dtype=torch.uint8)}
    look["previous_action"] = torch.zeros(2, 4)
    action, _ = policy(look, policy.initial_memory(2))
    assert action.shape == (2,)
    saved = saved_state(run)["operator"]
    (weight,) = (x for name, x in policy.state_dict().items() if name.endswith("first.weight"))
    (expected,) = (x for name, x in saved.items() if name.endswith("first.weight"))
    assert torch.equal(weight, expected)
    assert PolicyStep(policy).export() is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "network.encoder=picture",
            "network.encoder='picture' is unknown; choose auto, flat, fourier or",
        ),
        ("network.encoder=3", "encoder"),
        ("network.encoder=image", "network.encoder=image needs an image"),
        ("network.normalise=true", "did you mean network.normalize?"),
    ],
)
def test_mistakes(given: str, message: str, tmp_path: Path) -> None:
    result = start(tmp_path / "run", "env=wind", given)
    assert result.code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 3


@pytest.fixture
def image_task() -> Iterator[str]:
    """A task of gymnasium: say in which half a white square was seen."""
    gymnasium: Any = pytest.importorskip("gymnasium", reason="comes with the extra popgym")

    class Halves(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (40, 48, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.steps, self.right = 0, int(self.np_random.integers(2))
            return self._look(), {}

        def _look(self) -> Any:
            image = np.zeros((40, 48, 3), np.uint8)
            if self.steps == 0:
                image[10:30, 24 * self.right + 4 : 24 * self.right + 20] = 255
            return image

        def step(self, action: Any) -> Any:
            self.steps += 1
            done = self.steps == 3
            return self._look(), float(done and action == self.right), done, False, {}

    gymnasium.register("torchrl_shm_test/Halves-v0", entry_point=Halves)
    yield "torchrl_shm_test/Halves-v0"
    del gymnasium.registry["torchrl_shm_test/Halves-v0"]


def test_a_picture_of_gymnasium(image_task: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = start(
        run, "env=gym", f"env.id={image_task}", "memory=gru", "network.normalize=true",
        "experiment.max_test_steps=20",
    )  # fmt: skip
    assert (result.code, result.stderr) == (0, "")
    # sides of 40 and 48 are halved three times
    assert convolutions(run) == 6
    assert tool("export", run).code == 0
    (entry,) = json.loads((run / "export" / "config.json").read_text())["observations"]
    assert (entry["shape"], entry["dtype"]) == ([40, 48, 3], "uint8")
    policy = load_policy(run / "export")
    action, _ = policy(torch.zeros(1, 40, 48, 3, dtype=torch.uint8), policy.initial_memory(1))
    assert action.shape == (1,)


@pytest.mark.slow
def test_a_picture_of_gymnasium_is_learned(image_task: str, tmp_path: Path) -> None:
    result = start(
        tmp_path / "run", "env=gym", f"env.id={image_task}", "memory=gru",
        "experiment.total_frames=20000", "experiment.num_envs=16", "algo.rollout_length=12",
        "algo.sequences_per_minibatch=8", "algo.epochs=2", "algo.learning_rate=1e-3",
        "experiment.num_test_episodes=32", "network.embedding_size=32",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert result.summary["eval_return"] > 0.9
