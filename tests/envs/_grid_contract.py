"""Tests that Key-to-Door and Visual Match both pass."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.envs._helpers import inject, step
from torchrl_shm.envs._grid import GridEnv
from torchrl_shm.envs._situations import APPLE_CELLS

RESET = torch.tensor([True, False, True, False])
PLACES = torch.zeros(7, 11, dtype=torch.bool)
PLACES[tuple(zip(*APPLE_CELLS, strict=True))] = True


class GridContract:
    @staticmethod
    @abstractmethod
    def make(num_envs: int | None = None, **kwargs: Any) -> GridEnv: ...

    @staticmethod
    @abstractmethod
    def layout(count: int) -> dict[str, Tensor]:
        """A layout without apples."""

    @pytest.mark.parametrize(("image", "dtype"), [(True, "uint8"), (False, "float32")])
    def test_observations(self, image: bool, dtype: str) -> None:
        env = self.make(image=image, dtype=dtype, seed=0)
        assert env.batch_size == (64,)
        assert env.action_spec.dtype == torch.int64
        seen, plain = env.reset()["observation"], self.make(seed=0).reset()["observation"]
        assert seen.shape[1:] == ((3, 5, 5) if image else (75,))
        assert torch.equal(seen.flatten(1), plain if dtype == "uint8" else plain / 255)

    def test_rooms_follow_one_another_and_the_end_terminates(self) -> None:
        env = self.make(2, frames=(3, 4, 2))
        data, phases = [env.reset()], [env.phase]
        for _ in range(9):
            data.append(step(env, 1))
            phases.append(env.phase)
        assert torch.stack(phases)[:, 0].tolist() == [0] * 3 + [1] * 4 + [2] * 3
        assert [bool(x["terminated"].all()) for x in data] == [False] * 9 + [True]
        assert not any(x["truncated"].any() for x in data)
        assert all(torch.equal(x["done"], x["terminated"]) for x in data)

    def test_apples_grow_again_and_are_eaten_a_step_later(self) -> None:
        env = self.make(2, frames=(1, 100, 2), apple_reward=0.5, respawn_every=3)
        layout = self.layout(2)
        layout["apples"][0, 5, 7] = True
        inject(env, **layout)
        step(env, 1)
        assert env.player.tolist() == [[5, 5]] * 2
        assert env.apples.sum((1, 2)).tolist() == [1, 0]
        # the wall below keeps the player in row 5
        rewards = [step(env, action)["reward"][:, 0].tolist() for action in [3, 3, *[1] * 10]]
        assert [x[0] for x in rewards] == [0, 0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5]
        assert not any(x[1] for x in rewards)

    def test_apples_that_never_come_back(self) -> None:
        env = self.make(1, frames=(1, 100, 2), respawn_every=0)
        layout = self.layout(1)
        layout["apples"][0, 5, 7] = True
        inject(env, **layout)
        total = sum(step(env, action)["reward"].item() for action in [1, 3, 3, *[1] * 90])
        assert total == 1
        assert not env.apples.any()

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"frames": (10, 100)}, r"frames must be 3 whole numbers .* got \(10, 100\)"),
            ({"frames": (10, 0, 3)}, r"each at least 1, got \(10, 0, 3\)"),
            ({"final_reward": 0.0}, "final_reward must be finite and positive, got 0.0"),
            ({"final_reward": float("inf")}, "final_reward must be finite and positive, got inf"),
            ({"apple_reward": -1.0}, "apple_reward must be finite and not negative, got -1.0"),
            ({"num_apples": 23}, "num_apples must be 0 to 22, .* got 23"),
            ({"respawn_every": -1}, "respawn_every must be at least 0, got -1"),
            ({"dtype": "float16"}, "dtype='float16' is unknown; choose one of"),
        ],
    )
    def test_impossible_constants(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.make(**{"num_envs": 2, **kwargs})

    def test_wrong_apples_are_named(self) -> None:
        layout = self.layout(3)
        layout["apples"][1, 1, 2] = True
        with pytest.raises(ValueError, match=r'"apples" of environment 1 has one at \(1, 2\)'):
            inject(self.make(3), **layout)

    def test_apples_are_a_uniform_set(self) -> None:
        apples = self.make(seed=0)._draw(4000)["apples"]
        assert (apples.sum((1, 2)) == 10).all()
        assert not (apples & ~PLACES).any()
        # 4000 * 10 / 22 = 1818 are expected at each place, with a standard deviation of 31.5
        counts = apples.sum(0)[PLACES]
        assert (counts - 1818).abs().max() < 150
        # and pairs are as frequent as they should be: 4000 * 10 / 22 * 9 / 21 = 779, deviation 25
        pairs = (apples[:, 1, 1, None, None] & apples).sum(0)[PLACES][1:]
        assert (pairs - 779).abs().max() < 125

    def test_steps_are_counted_per_environment(self) -> None:
        env = self.make(4, frames=(2, 30, 3), seed=0)
        env.reset()
        for _ in range(8):
            before = step(env, torch.randint(4, (4,)))
        after = env.reset(before.exclude("reward").set("_reset", RESET[:, None]))
        assert env.phase.tolist() == [0, 1, 0, 1]
        assert not after["previous_action"][RESET].any()
        done = torch.stack([step(env, 0)["done"][:, 0] for _ in range(35)])
        assert (done.int().argmax(0) + 1).tolist() == [35, 27, 35, 27]

    def test_render_shows_the_view_and_darkens_the_rest(self) -> None:
        env = self.make(3, frames=(1, 50, 3), image=True, seed=0)
        data = [env.reset()]
        for action in [1, 0, 2, 0, 2, 2, 2, 0]:
            data.append(step(env, action))
            row, column = env.player[1].tolist()
            board = env.render(index=1, scale=1).permute(2, 0, 1)
            padded = torch.full((3, 11, 15), 204, dtype=torch.uint8)
            padded[:, 2:-2, 2:-2] = board
            view = padded[:, row : row + 5, column : column + 5]
            assert torch.equal(view, data[-1]["observation"][1])
        # the player is far from the right wall now
        assert (board[:, :, -1] == 25 // 2).all()
        picture = env.render(index=1, scale=4)
        assert picture.shape == (28, 44, 3)
        assert torch.equal(picture[::4, ::4].permute(2, 0, 1), board)
