"""Pictures are written, whatever the numbers."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread
from tensordict import TensorDict
from torch import Tensor

from tests.training._helpers import Countdown
from torchrl_shm import figures
from torchrl_shm.envs import Plane, TMazeEnv
from torchrl_shm.figures import plot_learning_curve, plot_trajectories

NAN = float("nan")
GREEN = (44 / 255, 160 / 255, 44 / 255)
BLUE, PURPLE = (31 / 255, 119 / 255, 180 / 255), (148 / 255, 103 / 255, 189 / 255)


def check_picture(path: Path) -> tuple[int, int]:
    """Size of a PNG that shows more than one color."""
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = imread(path)
    assert pixels.min() < 0.5 < pixels.max()
    return pixels.shape[:2]


@pytest.mark.parametrize(
    "rows",
    [
        [{"frames": 1, "return": 0.0}, {"frames": 2, "return": 1.0}],
        [{"frames": i, "return": float(i), "success": i / 9} for i in range(10)],
        # no episode ended in the first batches, or in any
        [{"frames": i, "return": NAN if i < 3 else 1.0, "success": NAN} for i in range(10)],
        [{"frames": i, "return": NAN, "success": NAN} for i in range(2)],
        [{"frames": 1, "return": 1.0, "success": 1.0}],
        [],
    ],
)
def test_learning_curve(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    plot_learning_curve(rows, tmp_path / "curve.png", title="wind, shm, seed 0")
    assert check_picture(tmp_path / "curve.png") == (480, 750)


def test_ending_chooses_the_format(tmp_path: Path) -> None:
    plot_learning_curve([{"frames": 1, "return": 0.0}], str(tmp_path / "curve.svg"))
    assert "<svg" in (tmp_path / "curve.svg").read_text()


class Paths:
    """An environment in the plane whose paths are given, `[N, T + 1, 2]`, and their goals."""

    split = "test"

    def __init__(self, positions: Tensor, max_steps: int, drift: Tensor | None = None) -> None:
        count = len(positions)
        goal = torch.tensor([0.5, 0.5]).expand(count, 2)
        self.task = Plane(goal, 0.1, max_steps, drift)
        seen = {
            "observation": positions[:, :-1],
            ("next", "observation"): positions[:, 1:],
            # the last one is the worst
            ("next", "reward"): torch.arange(count).flip(0)[:, None, None].expand(-1, 20, 1),
        }
        self.rollout = TensorDict({}, [count, 20]).update(seen)

    def plane(self) -> Plane:
        return self.task


def count(path: Path, color: tuple[float, float, float]) -> int:
    """Number of pixels that are about of a color."""
    return int((abs(imread(path)[..., :3] - color).max(-1) < 0.1).sum())


@pytest.mark.parametrize(("number", "rows"), [(1, 1), (5, 3)])
def test_trajectories(tmp_path: Path, number: int, rows: int) -> None:
    positions = 0.1 * torch.randn(9, 21, 2).cumsum(1)
    # an agent that got lost for good
    positions[-1, 5:] = NAN
    env: Any = Paths(positions, 20, torch.empty(9, 2).uniform_(-0.1, 0.1))
    assert plot_trajectories(env, env.rollout, tmp_path / "paths.png", num_paths=number)
    assert check_picture(tmp_path / "paths.png") == (405 * rows + 60, 750)
    # the arrow of every drift is inside its axes
    pixels = imread(tmp_path / "paths.png")[60:, :, :3]
    columns = min(number, 2)
    for i in range(number):
        row, column = divmod(i, columns)
        panel = pixels[405 * row :, 750 * column // columns :][:405, : 750 // columns]
        assert (abs(panel - GREEN).max(-1) < 0.1).sum() > 30


def test_worst_path_is_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **kwargs: titles.append(text))
    env: Any = Paths(torch.rand(9, 21, 2), 20)
    plot_trajectories(env, env.rollout, tmp_path / "paths.png", num_paths=3)
    assert titles == [f"test task {i}:\nreturn {20 * (8 - i)}" for i in (8, 4, 0)]


def test_trajectories_of_several_episodes(tmp_path: Path) -> None:
    # along the lower and along the upper border, with a jump between
    right = torch.linspace(0, 1, 11)
    low, high = torch.zeros(11), torch.ones(10)
    positions = torch.cat([torch.stack([right, low], -1), torch.stack([right[1:], high], -1)])
    for name, max_steps in (("two", 10), ("one", 20)):
        env: Any = Paths(positions.expand(2, 21, 2), max_steps)
        plot_trajectories(env, env.rollout, tmp_path / f"{name}.png", num_paths=2)
    two, one = tmp_path / "two.png", tmp_path / "one.png"
    assert count(two, PURPLE) > 100
    assert count(one, PURPLE) == 0
    # the jump is no part of a path
    assert count(two, BLUE) + count(two, PURPLE) < count(one, BLUE)
    # without a drift there is no arrow
    assert count(two, GREEN) == 0


def test_environments_that_are_in_no_plane(tmp_path: Path) -> None:
    for env in (TMazeEnv(2), Countdown(2)):
        assert not plot_trajectories(env, env.rollout(3), tmp_path / "paths.png")
    assert not list(tmp_path.iterdir())


def test_plotting_packages_are_loaded_when_a_figure_is_drawn() -> None:
    for path in Path(figures.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith(("matplotlib", "PIL")) for name in names), path
