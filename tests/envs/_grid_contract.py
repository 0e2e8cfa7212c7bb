"""Tests that Key-to-Door and Visual Match both pass."""

from __future__ import annotations

import copy
import io
import pickle
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import check_env_specs

from tests.envs._grid_helpers import inject, step
from torchrl_shm.envs._grid import GridEnv
from torchrl_shm.envs._situations import APPLE_CELLS

RESET = torch.tensor([True, False, True, False])
ENTRIES = ("observation", "previous_action", "previous_reward", "success", "done", "terminated")
PLACES = torch.zeros(7, 11, dtype=torch.bool)
PLACES[tuple(zip(*APPLE_CELLS, strict=True))] = True


def through_state_dict(env: GridEnv, fresh: GridEnv) -> GridEnv:
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def through_pickle(env: GridEnv, fresh: GridEnv) -> GridEnv:
    return pickle.loads(pickle.dumps(env))


def through_deepcopy(env: GridEnv, fresh: GridEnv) -> GridEnv:
    return copy.deepcopy(env)


def run(env: GridEnv, actions: Tensor) -> list[TensorDict]:
    """Play actions `[T, B]`, starting new episodes where one ends."""
    seen = []
    for action in actions:
        seen.append(step(env, action))
        if seen[-1]["done"].any():
            seen.append(env.reset(TensorDict({"_reset": seen[-1]["done"]}, env.batch_size)))
    return seen


class GridContract:
    @staticmethod
    @abstractmethod
    def make(num_envs: int | None = None, **kwargs: Any) -> GridEnv: ...

    @staticmethod
    @abstractmethod
    def layout(count: int) -> dict[str, Tensor]:
        """A layout without apples."""

    @pytest.mark.parametrize("image", [False, True])
    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_specs(self, image: bool, dtype: str) -> None:
        env = self.make(3, image=image, dtype=dtype, frames=(3, 4, 2), seed=0)
        check_env_specs(env)
        assert env.action_spec.shape == (3,)
        assert env.action_spec.dtype == torch.int64
        rollout = env.rollout(100)
        assert rollout.shape == (3, 9)
        assert rollout["observation"].shape[2:] == ((3, 5, 5) if image else (75,))
        plain = self.make(3, frames=(3, 4, 2), seed=0)
        bytes_seen = plain.reset()["observation"]
        seen = self.make(3, image=image, dtype=dtype, frames=(3, 4, 2), seed=0).reset()
        expected = bytes_seen if dtype == "uint8" else bytes_seen / 255
        assert torch.equal(seen["observation"].flatten(1), expected)

    def test_batch_size_defaults_to_64(self) -> None:
        assert self.make().batch_size == (64,)

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
        inject(env, layout)
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
        inject(env, layout)
        total = sum(step(env, action)["reward"].item() for action in [1, 3, 3, *[1] * 90])
        assert total == 1
        assert not env.apples.any()

    def test_actions_that_do_not_exist_are_refused(self) -> None:
        env = self.make(2)
        env.reset()
        with pytest.raises(ValueError, match="are 0 to 3, got 0 to 4"):
            step(env, torch.tensor([0, 4]))

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
            ({"dtype": "float16"}, "dtype must be one of .* got 'float16'"),
            ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ],
    )
    def test_impossible_constants(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.make(**{"num_envs": 2, **kwargs})

    def test_wrong_apples_are_named(self) -> None:
        layout = self.layout(3)
        layout["apples"][1, 1, 2] = True
        with pytest.raises(ValueError, match=r'"apples" of environment 1 has one at \(1, 2\)'):
            inject(self.make(3), layout)

    def test_missing_entries_are_named(self) -> None:
        layout = self.layout(3)
        del layout["player"]
        with pytest.raises(ValueError, match=r'"player" of shape \(3, 2\), got none'):
            inject(self.make(3), layout)

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

    def test_partial_reset_leaves_other_rows(self) -> None:
        env = self.make(4, frames=(2, 30, 3), seed=0)
        env.reset()
        for _ in range(8):
            before = step(env, torch.randint(4, (4,)))
        state = {name: x.clone() for name, x in env._running().items()}
        after = env.reset(before.exclude("reward").set("_reset", RESET[:, None]))
        for name, x in env._running().items():
            assert torch.equal(x[~RESET], state[name][~RESET])
        for name in ENTRIES:
            assert torch.equal(after[name][~RESET], before[name][~RESET])
        assert env.phase.tolist() == [0, 1, 0, 1]
        assert not after["previous_action"][RESET].any()
        # steps count on where they were
        done = torch.stack([step(env, 0)["done"][:, 0] for _ in range(35)])
        assert (done.int().argmax(0) + 1).tolist() == [35, 27, 35, 27]

    def test_stored_data_are_not_written_to(self) -> None:
        env = self.make(4, frames=(2, 5, 2), seed=0)
        data, stored, copies = env.reset(), [], []
        for _ in range(20):
            data["action"] = torch.randint(4, (4,))
            transition, data = env.step_and_maybe_reset(data)
            stored.append(transition)
            copies.append(transition.clone())
        assert all((x == y).all() for x, y in zip(stored, copies, strict=True))

    def test_rows_that_wait_stay_as_they_are(self) -> None:
        env = self.make(4, seed=0)
        before = env.reset()
        action = {"action": torch.full((4,), 0), "_step": RESET}
        after = env.step(TensorDict(action, batch_size=[4]))["next"]
        for name in ENTRIES:
            assert torch.equal(after[name][~RESET], before[name][~RESET])
        assert after["previous_action"][RESET, 0].all()

    def test_seed_decides(self) -> None:
        actions = torch.randint(4, (30, 5))
        frames = {"frames": (3, 8, 2)}
        first, again = (run_from(self.make(5, seed=3, **frames), actions) for _ in range(2))
        other = run_from(self.make(5, seed=4, **frames), actions)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_global_generators_are_left_alone(self) -> None:
        state = torch.get_rng_state()
        env = self.make(4, seed=0)
        env.reset()
        step(env, 0)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("duplicate", [through_state_dict, through_pickle, through_deepcopy])
    def test_copies_go_on_alike(self, duplicate: Callable[[GridEnv, GridEnv], GridEnv]) -> None:
        kwargs: dict[str, Any] = {"frames": (3, 8, 2)}
        env = self.make(5, seed=1, **kwargs)
        env.reset()
        run(env, torch.randint(4, (6, 5)))
        twin = duplicate(env, self.make(5, seed=99, **kwargs))
        actions = torch.randint(4, (30, 5))
        ours, theirs = run(env, actions), run(twin, actions)
        assert all((x == y).all() for x, y in zip(ours, theirs, strict=True))

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

    def test_nothing_waits_for_a_value(self) -> None:
        """On the meta device, where no tensor has values, a step and a reset run through."""
        env = self.make(4, seed=0)
        env.reset()
        meta = torch.device("meta")
        state = {name: x.to(meta) for name, x in env._running().items()}
        layout = {name: x.to(meta) for name, x in env._draw(4).items()}
        for name in env._tensors:
            setattr(env, name, getattr(env, name).to(meta))
        new = env._advance(state, torch.zeros(4, dtype=torch.int64, device=meta))
        assert env._observe(new.state)["observation"].shape == (4, 75)
        assert {x.device.type for x in env._start(layout).values()} == {"meta"}

    @pytest.mark.gpu
    def test_cuda(self) -> None:
        """Moves there, steps as on the CPU, and never makes the CPU wait."""
        kwargs: dict[str, Any] = {"frames": (4, 20, 4)}
        env, there = self.make(5, seed=0, **kwargs), self.make(5, seed=0, **kwargs).to("cuda")
        layout = self.layout(5)
        layout["apples"] |= PLACES
        inject(env, layout)
        inject(there, {name: x.cuda() for name, x in layout.items()})
        for _ in range(env.max_steps):
            action = torch.randint(4, (5,))
            start = TensorDict({"action": action.cuda()}, batch_size=[5], device="cuda")
            torch.cuda.set_sync_debug_mode("error")
            try:
                theirs = there._step(start)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert (step(env, action) == theirs.cpu()).all()
        mask = TensorDict({"_reset": theirs["done"]}, batch_size=[5], device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            there._reset(mask)
            there._reset(None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert there.render().device.type == "cpu"
        check_env_specs(self.make(5, device="cuda"))


def run_from(env: GridEnv, actions: Tensor) -> Tensor:
    """Observations of episodes from the start of the environment."""
    start = env.reset()
    return torch.stack([x["observation"] for x in [start, *run(env, actions)]])
