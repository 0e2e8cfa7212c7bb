"""Key-to-Door: the original's bytes, rewards and ends, and its rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.envs._grid_contract import GridContract
from tests.envs._grid_helpers import DOWN, LEFT, UP, check_replay, play, recorded
from tests.envs._helpers import inject, step
from torchrl_shm.envs.key_to_door import KeyToDoorEnv

ORIGINAL: dict[str, Any] = {"frames": (15, 60, 10), "final_reward": 5.0}
KEY = torch.tensor([159, 81, 44], dtype=torch.uint8)
WHITE = torch.tensor([255, 255, 255], dtype=torch.uint8)
DOOR = torch.tensor([134, 206, 235], dtype=torch.uint8)


def start(count: int, player: tuple[int, int] = (4, 5)) -> dict[str, Tensor]:
    """No apples, and a key at (2, 5)."""
    return {
        "player": torch.tensor([player] * count),
        "key": torch.tensor([[2, 5]] * count),
        "apples": torch.zeros(count, 7, 11, dtype=torch.bool),
    }


class TestContract(GridContract):
    make = staticmethod(KeyToDoorEnv)
    layout = staticmethod(start)


class TestOriginal:
    @pytest.mark.parametrize("name", ["key_to_door_shm", "key_to_door_pomdp_baselines"])
    def test_steps_are_exact(self, name: str) -> None:
        data = recorded(name)
        # both were recorded with a final reward of 10
        env = KeyToDoorEnv(len(data["action"]), frames=tuple(data["frames"].tolist()))
        layout = {"player": data["player0"], "key": data["key"], "apples": data["apples"]}
        check_replay(env, layout, data)

    def test_defaults(self) -> None:
        env = KeyToDoorEnv()
        assert env.max_steps == 113
        assert (env.final_reward, env.num_apples, env.apple_reward) == (10, 10, 1)


class TestRules:
    def test_key_shows_the_indicator_once_and_opens_the_door_once(self) -> None:
        env = KeyToDoorEnv(1, frames=(6, 2, 9), final_reward=7.0, image=True)
        assert torch.equal(inject(env, **start(1))["observation"][0, :, 0, 2], KEY)
        step(env, UP)
        seen = step(env, UP)["observation"][0]
        assert env.player.tolist() == [[2, 5]]
        assert torch.equal(seen[:, 0, 2], WHITE)
        assert not (seen == KEY[:, None, None]).all(0).any()
        for _ in range(2):
            assert not torch.equal(step(env, UP)["observation"][0, :, 1, 2], WHITE)
        for _ in range(4):
            step(env, DOWN)
        assert env.phase.tolist() == [2]
        data = [step(env, action) for action in [UP, UP, UP, DOWN, DOWN, UP, UP, LEFT, UP]]
        assert [x["reward"].item() for x in data] == [0, 7] + [0] * 7
        assert [x["success"].item() for x in data] == [False] + [True] * 8
        # the door is drawn above the player
        assert torch.equal(data[1]["observation"][0, :, 2, 2], DOOR)
        assert data[-1]["terminated"].item()

    def test_door_stays_shut_without_the_key(self) -> None:
        env = KeyToDoorEnv(1, frames=(1, 1, 5))
        inject(env, **start(1))
        data = [step(env, UP) for _ in range(7)]
        assert env.player.tolist() == [[2, 5]]
        assert not any(x["reward"].item() or x["success"].item() for x in data)

    def test_key_of_the_last_step_counts(self) -> None:
        env = KeyToDoorEnv(1, frames=(2, 1, 2))
        inject(env, **start(1))
        rewards = [step(env, UP)["reward"].item() for _ in range(5)]
        assert rewards == [0, 0, 0, 0, 10]

    def test_beyond_the_door_the_edge_of_the_board_stops_the_player(self) -> None:
        env = KeyToDoorEnv(1, frames=(2, 1, 30))
        inject(env, **start(1))
        for action in [UP] * 3 + [UP] * 5 + [LEFT] * 9:
            step(env, action)
        assert env.player.tolist() == [[0, 0]]


class TestLayouts:
    def test_cells_are_uniform(self) -> None:
        drawn = KeyToDoorEnv(seed=0)._draw(4000)
        for name, row in (("player", 4), ("key", 1)):
            cells, counts = drawn[name].unique(dim=0, return_counts=True)
            expected = [[row + i, column] for i in range(2) for column in range(3, 8)]
            assert cells.tolist() == expected
            # 400 are expected at each, with a standard deviation of 19
            assert (counts - 400).abs().max() < 95
        together = torch.cat([drawn["player"], drawn["key"]], -1).unique(dim=0)
        assert len(together) == 100

    @pytest.mark.parametrize(
        ("name", "cell"), [("player", (2, 5)), ("key", (4, 5)), ("key", (-1, 5)), ("key", (3, 99))]
    )
    def test_wrong_cells_are_named(self, name: str, cell: tuple[int, int]) -> None:
        layout = start(3)
        layout[name][1] = torch.tensor(cell)
        found = rf'"{name}" of environment 1 is \({cell[0]}, {cell[1]}\); it must be one of \('
        with pytest.raises(ValueError, match=found):
            inject(KeyToDoorEnv(3), **layout)


class TestScores:
    @pytest.mark.parametrize(
        ("kwargs", "random", "success", "greedy"),
        [({}, 8.96, 0.005, 47.1), (ORIGINAL, 5.6, 0.021, 27.5)],
    )
    def test_bounds(
        self, kwargs: dict[str, Any], random: float, success: float, greedy: float
    ) -> None:
        returns, won = play(KeyToDoorEnv(1000, seed=0, **kwargs), greedy=False)
        assert returns.mean().item() == pytest.approx(random, abs=0.5)
        assert won.mean().item() == pytest.approx(success, abs=0.015)
        returns, won = play(KeyToDoorEnv(1000, seed=0, **kwargs), greedy=True)
        assert returns.mean().item() == pytest.approx(greedy, abs=0.5)
        assert won.all()
