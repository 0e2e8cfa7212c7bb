"""Panels of an animation show what they say, to the pixel where it counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torchrl_shm.envs import Plane
from torchrl_shm.figures.panels import as_matrix, draw_matrices, draw_path, draw_series

NAN = float("nan")
BLUE, PURPLE, ORANGE, GREEN = (31, 119, 180), (148, 103, 189), (255, 127, 14), (44, 160, 44)


def found(picture: Tensor, color: tuple[int, int, int]) -> Tensor:
    """Where a picture is about of a color, bool `[H, W]`."""
    return (picture.int() - torch.tensor(color)).abs().amax(-1) < 16


def draw(path: Tensor, goal: Any = (0.0, 0.0), **options: Any) -> Tensor:
    task = {"goal_radius": 0.01, "max_steps": 100} | options
    return draw_path(path, Plane(torch.tensor([goal]), **task))


class TestPaths:
    def test_up_is_up_and_right_is_right(self) -> None:
        path = torch.linspace(0, 1, 6).unsqueeze(-1) * torch.tensor([[1.0, 0.0]])
        last = draw(path, (1.0, 1.0), goal_radius=0.05, drift=torch.tensor([[0.0, 0.1]]))[-1]
        centers = [found(last, color).nonzero().double().mean(0) for color in (BLUE, ORANGE, GREEN)]
        (path_row, path_column), (goal_row, goal_column), (drift_row, drift_column) = centers
        assert goal_row < drift_row < path_row
        assert drift_column < path_column < goal_column

    def test_path_so_far(self) -> None:
        frames = draw(torch.linspace(0, 1, 6).unsqueeze(-1).expand(6, 2))
        lengths = [int(found(frame, BLUE).sum()) for frame in frames]
        assert lengths == sorted(lengths)
        assert lengths[-1] > 2 * lengths[0]
        assert not found(frames, GREEN).any()

    def test_episodes_are_not_connected(self) -> None:
        # along the lower and along the upper border, the second one from where it is first seen
        right = torch.linspace(0, 1, 6)
        low = torch.stack([right, torch.zeros(6)], -1)
        high = torch.stack([right[1:], torch.ones(5)], -1)
        path = torch.cat([low, high])
        two, one = (draw(path, (0.5, 0.5), max_steps=steps) for steps in (5, 10))
        middle = slice(100, 140)
        assert not found(two[-1], BLUE)[middle].any()
        assert not found(two[-1], PURPLE)[middle].any()
        assert found(one[-1], BLUE)[middle].any()
        assert not found(two[5], PURPLE).any()
        assert found(two[6], PURPLE).any()
        assert not found(one, PURPLE).any()

    def test_an_agent_that_got_lost_or_never_moved(self) -> None:
        path = torch.tensor([[0.0, 0.0], [0.1, 0.1], [NAN, NAN], [NAN, NAN]])
        frames = draw(path, (1.0, 1.0))
        assert frames.shape == (4, 240, 240, 3)
        assert torch.equal(frames[2], frames[3])
        assert found(draw(torch.zeros(3, 2))[-1], BLUE).any()


class TestSeries:
    def test_columns_from_the_right(self) -> None:
        parts = {
            "observation": torch.tensor([[1.0, 0.0], [-5.0, 0.0], [10.0, 0.0]]),
            "reward": torch.tensor([[0.0], [0.0], [-0.1]]),
        }
        frames = draw_series(parts)
        assert frames.shape == (3, 240, 360, 3)
        # nothing before the start
        assert (frames[0, 30:, :351] == 255).all() or not frames[0, 30:, :351].lt(60).all()
        first_row, last_row = 20, 216
        newest, before, oldest = (frames[-1, first_row, column].int() for column in (355, 346, 337))
        # each number is scaled by its largest absolute value
        assert newest[2] > newest[0] + 50
        assert before[0] > before[2] + 50
        assert oldest[2] - oldest[0] < 60
        red, _, blue = frames[-1, last_row, 355].int()
        assert red > blue + 50
        # what follows is not known yet
        assert torch.equal(frames[0, first_row, 355], frames[-1, first_row, 337])

    def test_only_the_last_steps(self) -> None:
        values = torch.zeros(60, 1)
        values[0] = 1
        frames = draw_series({"observation": values})
        dark = [bool((frame[100].int().amin(-1) < 100).any()) for frame in frames]
        assert dark == [True] * 40 + [False] * 20

    @pytest.mark.parametrize("size", [1, 3, 75, 782])
    def test_any_number_of_rows(self, size: int) -> None:
        parts = {"observation": torch.randn(3, size), "action": torch.randn(3, 1)}
        parts["observation"][1, 0] = NAN
        assert draw_series(parts).shape == (3, 240, 360, 3)


class TestMatrices:
    @pytest.mark.parametrize(
        ("shapes", "sides"),
        [
            ([(24, 24)], (24, 24)),
            ([(64, 19)], (64, 19)),
            # too long, complex numbers, flat, two states
            ([(128, 2)], (16, 16)),
            ([(128, 4, 2)], (32, 32)),
            ([(752,)], (27, 28)),
            ([(1, 64), (1, 64)], (11, 12)),
            ([(1,)], (1, 1)),
        ],
    )
    def test_sides(self, shapes: list[tuple[int, ...]], sides: tuple[int, int]) -> None:
        states = [torch.randn(3, *shape) for shape in shapes]
        matrix = as_matrix(states)
        assert matrix.shape == (3, *sides)
        # every number once and in order, and nothing else
        flat = torch.cat([state.flatten(1) for state in states], 1)
        assert torch.equal(matrix[matrix.isfinite()].view(3, -1), flat)

    def test_colors(self) -> None:
        matrix = torch.tensor([[[-1.0, 0.0, 1.0, NAN]]]).repeat(1, 100, 1)
        # one that is far beyond all others
        matrix[0, 0, 2] = 1e6
        pixels = draw_matrices(matrix)[0, 1].int()
        assert pixels[0, 0] > pixels[0, 2] + 50
        assert pixels[2, 2] > pixels[2, 0] + 50
        assert pixels[1].min() > 230
        assert pixels[3].tolist() == [255, 255, 255]

    def test_nothing_yet(self) -> None:
        assert draw_matrices(torch.zeros(1, 2, 2)).min() > 230
