"""Pictures are written, whatever the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from torchrl_shm.training import plot_learning_curve, plot_trajectories

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
        goal=torch.tensor([0.0, 1.0]),
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
