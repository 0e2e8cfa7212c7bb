"""Pictures are written, whatever the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from torchrl_shm.figures import plot_learning_curve, plot_trajectories

NAN = float("nan")
GREEN = (44 / 255, 160 / 255, 44 / 255)


def check_picture(path: Path) -> tuple[int, int]:
    """Size of a PNG that shows more than one colour."""
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
    assert check_picture(tmp_path / "curve.png") == (510, 900)


def test_ending_chooses_the_format(tmp_path: Path) -> None:
    plot_learning_curve([{"frames": 1, "return": 0.0}], str(tmp_path / "curve.svg"))
    assert "<svg" in (tmp_path / "curve.svg").read_text()


@pytest.mark.parametrize(("number", "shape"), [(1, (1, 1)), (3, (1, 3)), (5, (2, 4)), (8, (2, 4))])
def test_trajectories(tmp_path: Path, number: int, shape: tuple[int, int]) -> None:
    positions = 0.1 * torch.randn(number, 21, 2).cumsum(1)
    # an agent that got lost for good
    positions[0, 5:] = NAN
    plot_trajectories(
        positions,
        tmp_path / "paths.png",
        winds=torch.empty(number, 2).uniform_(-0.1, 0.1),
        goals=torch.tensor([0.0, 1.0]).expand(number, 2),
        goal_radius=0.01,
        returns=torch.arange(number, dtype=torch.float64),
        labels=[f"test task {i}" for i in range(number)],
    )
    height, width = check_picture(tmp_path / "paths.png")
    # the arrow of every wind is inside its axes
    pixels = imread(tmp_path / "paths.png")[..., :3]
    for i in range(number):
        row, column = divmod(i, shape[1])
        panel = pixels[height * row // shape[0] :, width * column // shape[1] :]
        panel = panel[: height // shape[0], : width // shape[1]]
        assert (abs(panel - GREEN).max(-1) < 0.1).sum() > 50
    assert height == 450 * shape[0]
    assert width == pytest.approx(390 * shape[1], abs=1)


def test_trajectories_of_several_episodes(tmp_path: Path) -> None:
    # along the lower and along the upper border, with a jump between
    right = torch.linspace(0, 1, 11)
    low, high = torch.zeros(11), torch.ones(10)
    positions = torch.cat(
        [torch.stack([right, low], -1), torch.stack([right[1:], high], -1)]
    ).expand(2, 21, 2)
    options = {"goal_radius": 0.1, "returns": torch.ones(2), "labels": ["a", "b"]}
    goals = torch.tensor([[0.2, 0.5], [0.8, 0.5]])
    plot_trajectories(positions, tmp_path / "two.png", goals=goals, num_episodes=2, **options)
    plot_trajectories(positions, tmp_path / "one.png", goals=goals, **options)
    check_picture(tmp_path / "two.png")
    blue, purple = (31 / 255, 119 / 255, 180 / 255), (148 / 255, 103 / 255, 189 / 255)

    def number_of(name: str, color: tuple[float, float, float]) -> int:
        return (abs(imread(tmp_path / name)[..., :3] - color).max(-1) < 0.1).sum()

    assert number_of("two.png", purple) > 100
    assert number_of("one.png", purple) == 0
    # the jump is no part of a path
    assert number_of("two.png", blue) + number_of("two.png", purple) < number_of("one.png", blue)
    # without wind there is no arrow
    assert number_of("two.png", GREEN) == 0
