"""What no environment takes: actions of another shape or kind, numbers that are not whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.envs._contract import inject, random_action, step
from torchrl_shm import envs
from torchrl_shm.envs import popgym
from torchrl_shm.envs.base import BatchedEnv

GRIDS = ("KeyToDoor", "VisualMatch")
OTHERS = ("MemoryLength", "PointRobot", "TMaze", "Wind", *GRIDS)
MAKERS: dict[str, Any] = {name: getattr(envs, f"{name}Env") for name in OTHERS}
MAKERS |= {
    name.removesuffix("Env"): getattr(popgym, name)
    for name in popgym.__all__
    if name.endswith("Env") and name != "POPGymEnv"
}
MAKERS["BattleshipApart"] = partial(popgym.BattleshipEnv, joint_action=False)
CONTINUOUS = ("Wind", "PointRobot", "PositionOnlyPendulum", "NoisyPositionOnlyPendulum")


def started(name: str) -> BatchedEnv:
    env = MAKERS[name](5, seed=0)
    env.reset()
    return env


class TestActions:
    @pytest.mark.parametrize("name", MAKERS)
    @pytest.mark.parametrize("looks", [True, False], ids=["looks", "never_looks"])
    def test_other_shapes_and_kinds(self, name: str, looks: bool) -> None:
        """This is refused on every device: it takes no look at a value."""
        env = started(name)
        env._looks = looks
        action = random_action(env)
        kinds = ["int64"] if name in CONTINUOUS else ["float32", "int32", "bool"]
        wrong = [action.unsqueeze(-1), action[:, :1].expand(5, 3) if action.ndim == 2 else None]
        if action.ndim == 2 and action.shape[1] > 1:
            # this one would be played by both axes
            wrong.append(action[:, :1])
        wrong += [action.to(getattr(torch, kind)) for kind in kinds]
        before = {key: value.clone() for key, value in env._running().items()}
        for found in wrong:
            if found is None:
                continue
            message = rf"actions of \w+ are torch\.\w+ of shape \(5.*got {found.dtype} of shape \(5"
            with pytest.raises(ValueError, match=message):
                step(env, found)
        assert all(torch.equal(value, before[key]) for key, value in env._running().items())

    @pytest.mark.parametrize("name", CONTINUOUS)
    @pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
    def test_numbers_that_are_none(self, name: str, number: str) -> None:
        env = started(name)
        action = random_action(env)
        action[3, -1] = float(number)
        with pytest.raises(ValueError, match=f"actions of {name}Env must be finite, got {number}"):
            step(env, action)
        # where looking would make the host wait, nobody looks
        env._looks = False
        step(env, action)

    @pytest.mark.parametrize("name", CONTINUOUS)
    def test_large_numbers_are_clipped(self, name: str) -> None:
        """Their sum is infinite, but they are not."""
        env, twin = started(name), started(name)
        huge = torch.full_like(random_action(env), 3e38)
        ours, theirs = step(env, huge), step(twin, huge.clamp(max=2))
        for key in ("observation", "reward"):
            # popgym shows the torque as it was given
            width = 2 if key == "observation" else 1
            assert torch.equal(ours[key][:, :width], theirs[key][:, :width])

    @pytest.mark.parametrize("name", [name for name in MAKERS if name not in CONTINUOUS])
    @pytest.mark.parametrize("index", [-1, 10_000])
    def test_indices_that_do_not_exist(self, name: str, index: int) -> None:
        env = started(name)
        action = random_action(env)
        action.view(-1)[-1] = index
        with pytest.raises(ValueError, match=rf"actions of \w+ are (0 to|below).*{index}"):
            step(env, action)

    @pytest.mark.parametrize("name", ["Wind", "PositionOnlyPendulum"])
    def test_double_precision_is_an_action(self, name: str) -> None:
        env = started(name)
        step(env, random_action(env).double())


WHOLE: list[tuple[str, dict[str, Any]]] = [
    *((name, {"num_envs": 2.0}) for name in MAKERS),
    *((name, {"num_apples": 2.5}) for name in GRIDS),
    *((name, {"respawn_every": 1.5}) for name in GRIDS),
    *((name, {"frames": (10.5, 100, 3)}) for name in GRIDS),
    *((name, {"max_steps": 99.5}) for name in ("Wind", "PointRobot")),
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
]


@pytest.mark.parametrize(("name", "options"), WHOLE)
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
