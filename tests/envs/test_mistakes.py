"""What every environment refuses: actions of another shape or kind, numbers that are not whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.envs._helpers import MAKERS, inject, random_action, step
from torchrl_shm.envs import BatchedEnv


def started(name: str) -> BatchedEnv:
    env = MAKERS[name](5, seed=0)
    env.reset()
    return env


class TestActions:
    # one of each kind: two numbers, one number, an index, two indices
    @pytest.mark.parametrize("name", ["Wind", "PositionOnlyPendulum", "TMaze", "BattleshipApart"])
    @pytest.mark.parametrize("looks", [True, False], ids=["looks", "never_looks"])
    def test_other_shapes_and_kinds(self, name: str, looks: bool) -> None:
        """This is refused on every device: it takes no look at a value."""
        env = started(name)
        env._looks = looks
        action = random_action(env)
        kinds = ["int64"] if action.is_floating_point() else ["float32", "int32", "bool"]
        wrong = [action.unsqueeze(-1), *(action.to(getattr(torch, kind)) for kind in kinds)]
        if action.ndim == 2:
            wrong.append(action[:, :1].expand(5, 3))
            if action.shape[1] > 1:
                # this one would be played by both axes
                wrong.append(action[:, :1])
        before = {key: value.clone() for key, value in env._running().items()}
        for found in wrong:
            message = rf"actions of \w+ are torch\.\w+ of shape \(5.*got {found.dtype} of shape \(5"
            with pytest.raises(ValueError, match=message):
                step(env, found)
        assert all(torch.equal(value, before[key]) for key, value in env._running().items())

    @pytest.mark.parametrize(
        ("name", "number"),
        [("Wind", "nan"), ("PointRobot", "inf"), ("PositionOnlyPendulum", "-inf")],
    )
    def test_numbers_that_are_not_finite(self, name: str, number: str) -> None:
        env = started(name)
        action = random_action(env)
        action[3, -1] = float(number)
        with pytest.raises(ValueError, match=f"actions of {name}Env must be finite, got {number}"):
            step(env, action)
        # where reading a value would make the host wait, nothing is checked
        env._looks = False
        step(env, action)

    @pytest.mark.parametrize("name", ["Wind", "PointRobot", "PositionOnlyPendulum"])
    def test_large_numbers_are_clipped(self, name: str) -> None:
        """Their sum is infinite, but they are not."""
        env, twin = started(name), started(name)
        huge = torch.full_like(random_action(env), 3e38)
        ours, theirs = step(env, huge), step(twin, huge.clamp(max=2))
        for key in ("observation", "reward"):
            # popgym shows the torque as it was given
            width = 2 if key == "observation" else 1
            assert torch.equal(ours[key][:, :width], theirs[key][:, :width])

    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("TMaze", 4), ("MemoryLength", 2), ("KeyToDoor", 4), ("Concentration", 52),
            ("Battleship", 64), ("BattleshipApart", 8),
        ],
    )  # fmt: skip
    def test_indices_out_of_range(self, name: str, count: int) -> None:
        env = started(name)
        for index in (-1, count, 10_000):
            action = random_action(env)
            action.view(-1)[-1] = index
            with pytest.raises(ValueError, match=rf"actions of \w+ are (0 to|below).*{index}"):
                step(env, action)

    @pytest.mark.parametrize("name", ["Wind", "PositionOnlyPendulum"])
    def test_double_precision_is_an_action(self, name: str) -> None:
        env = started(name)
        step(env, random_action(env).double())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Wind", {"num_envs": 2.0}),
        ("TMaze", {"num_envs": 2.0}),
        ("Wind", {"max_steps": 99.5}),
        ("KeyToDoor", {"num_apples": 2.5}),
        ("KeyToDoor", {"respawn_every": 1.5}),
        ("VisualMatch", {"frames": (10.5, 100, 3)}),
        ("PointRobot", {"num_episodes": 1.5}),
        ("TMaze", {"length": 2.5}),
        ("MemoryLength", {"length": 2.5}),
        ("MemoryLength", {"num_bits": 1.5}),
        ("Autoencode", {"num_decks": 1.5}),
        ("RepeatPrevious", {"k": 3.5}),
        ("Battleship", {"board_size": 8.5}),
        ("Battleship", {"ship_sizes": (2, 2.5)}),
        ("MineSweeper", {"board_size": 4.5}),
        ("MineSweeper", {"num_mines": 2.5}),
        ("MultiarmedBandit", {"num_arms": 2.5}),
        ("MultiarmedBandit", {"max_steps": 2.5}),
        ("PositionOnlyCartPole", {"max_steps": 2.5}),
    ],
)
def test_numbers_that_are_not_whole(name: str, options: dict[str, Any]) -> None:
    (argument,) = options
    with pytest.raises(ValueError, match=rf"{argument} must be .*whole numbers?.*\d\.\d"):
        MAKERS[name](**{"num_envs": 2, **options})


class TestLayouts:
    @pytest.mark.parametrize(
        ("name", "entry", "value", "message"),
        [
            ("Wind", "wind", torch.tensor([[0.0, torch.nan]] * 2), r"finite, got nan at \(0, 1\)"),
            ("PointRobot", "goal", torch.full((2, 2), torch.inf), "finite, got inf"),
            ("PointRobot", "start", torch.full((2, 2, 2), torch.nan), "finite, got nan"),
            ("KeyToDoor", "key", torch.tensor([[1.9, 3.2]] * 2), r"whole number, got 1\.89"),
            ("KeyToDoor", "player", torch.full((2, 2), torch.nan), "whole number, got nan"),
            ("KeyToDoor", "apples", torch.full((2, 7, 11), 0.5), r"0 or 1, got 0\.5 at \(0, 0, 0"),
            ("VisualMatch", "target", torch.tensor([0.0, 1.5]), r"whole number, got 1\.5 at \(1,"),
            ("TMaze", "goal", torch.tensor([1.0, -0.9]), "whole number, got -0.89"),
            ("MemoryLength", "bits", torch.tensor([[0.0], [0.9]]), "whole number, got 0.89"),
            ("Autoencode", "deck", torch.zeros(2, 52) + 0.9, "whole number, got 0.89"),
            ("Battleship", "board", torch.full((2, 8, 8), 2), "0 or 1, got 2"),
            ("MineSweeper", "mines", torch.full((2, 4, 4), 0.1), "0 or 1, got 0.1"),
            ("MultiarmedBandit", "arms", torch.full((2, 10), torch.nan), "finite, got nan"),
            ("PositionOnlyCartPole", "state", torch.full((2, 4), torch.nan), "finite, got nan"),
        ],
    )
    def test_what_would_become_something_else(
        self, name: str, entry: str, value: Tensor, message: str
    ) -> None:
        env = MAKERS[name](2, seed=0)
        layout = {**env._draw(2), entry: value}
        with pytest.raises(ValueError, match=f'"{entry}" must be .*{message}'):
            inject(env, **layout)

    def test_other_dtypes_with_the_same_values(self) -> None:
        env = MAKERS["Autoencode"](2, seed=0)
        deck = env._draw(2)["deck"]
        for dtype in (torch.float32, torch.uint8, torch.int32):
            inject(env, deck=deck.to(dtype))
            assert torch.equal(env._running()["deck"], deck)
