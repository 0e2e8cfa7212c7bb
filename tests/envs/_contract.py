"""What every batched environment keeps to; a test class inherits it and says what to build."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.envs import EnvBase, check_env_specs

from torchrl_shm.envs.base import BatchedEnv

RESET = torch.tensor([True, False, True, False, False])


def step(env: BatchedEnv, action: Tensor) -> TensorDictBase:
    return env.step(TensorDict({"action": action}, batch_size=env.batch_size))["next"]


def inject(env: BatchedEnv, **entries: Tensor) -> TensorDictBase:
    return env.reset(TensorDict(dict(entries), batch_size=env.batch_size), set_state=True)


def random_action(env: BatchedEnv) -> Tensor:
    return env.action_spec.rand()


def layout(env: BatchedEnv) -> dict[str, Tensor]:
    """What was drawn; all of the state where an environment keeps it in another form."""
    state = env._running()
    names = env._layout() if keeps_layout(env) else state
    return {name: state[name].clone() for name in names}


def keeps_layout(env: BatchedEnv) -> bool:
    return set(env._layout()) <= set(env._running())


def same_row(first: TensorDictBase, second: TensorDictBase, rows: Tensor) -> bool:
    names = set(first.keys()) & set(second.keys())
    return all(torch.equal(first[name][rows], second[name][rows]) for name in names)


def _saved(env: BatchedEnv, make: Callable[..., BatchedEnv]) -> BatchedEnv:
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    fresh = make(env.num_envs, seed=99)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


DUPLICATES: dict[str, Callable[..., BatchedEnv]] = {
    "state_dict": _saved,
    "deepcopy": lambda env, make: copy.deepcopy(env),
    "pickle": lambda env, make: pickle.loads(pickle.dumps(env)),
}


class Calls(TorchDispatchMode):
    """Names of the operations that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Contract:
    """Tests of one environment; episodes are to be of more than six steps.

    Attributes:
        draws_in_steps: whether resets to one layout and steps may differ by what they draw.
    """

    draws_in_steps = False

    @staticmethod
    def make(num_envs: int, **kwargs: Any) -> BatchedEnv:
        raise NotImplementedError

    def test_specs_and_rollout(self) -> None:
        env = self.make(5)
        check_env_specs(env)
        data = env.rollout(1_000)
        assert data["next", "done"].any()
        assert data["observation"].dtype == torch.float32

    def test_partial_reset(self) -> None:
        env = self.make(5, seed=0)
        env.reset()
        for _ in range(4):
            before = step(env, random_action(env))
        state = {name: value.clone() for name, value in env._running().items()}
        data = before.exclude("reward").clone().set("_reset", RESET[:, None])
        after = env.reset(data)
        assert same_row(after, before, ~RESET)
        for name, value in env._running().items():
            assert torch.equal(value[~RESET], state[name][~RESET])
        again = self.make(5)
        # what a whole reset to the same layout shows
        if keeps_layout(env):
            fresh = inject(again, **layout(env))
            assert self.draws_in_steps or same_row(after, fresh, RESET)
        assert any(
            (value[RESET] != state[name][RESET]).any() for name, value in layout(env).items()
        )

    def test_rows_that_wait_stay_as_they_are(self) -> None:
        env = self.make(5, seed=0)
        env.reset()
        before = step(env, random_action(env))
        state = env._running()
        action = {"action": random_action(env), "_step": RESET}
        after = env.step(TensorDict(action, batch_size=[5]))["next"]
        assert same_row(after.exclude("reward"), before, ~RESET)
        assert not after["reward"][~RESET].any()
        for name, value in env._running().items():
            assert torch.equal(value[~RESET], state[name][~RESET])

    def test_stored_data_are_not_written_to(self) -> None:
        env = self.make(5, seed=0)
        data = env.reset()
        stored: list[TensorDictBase] = []
        copies: list[TensorDictBase] = []
        for t in range(12):
            if t == 3:
                data = env.reset(data.set("_reset", RESET[:, None]))
            data["action"] = random_action(env)
            transition, data = env.step_and_maybe_reset(data)
            stored.append(transition)
            copies.append(transition.clone())
        for transition, copied in zip(stored, copies, strict=True):
            assert (transition == copied).all()

    def test_rewards_may_be_changed_in_place(self) -> None:
        env, twin = self.make(5, seed=0), self.make(5, seed=0)
        env.reset()
        twin.reset()
        for _ in range(6):
            action = random_action(env)
            ours, theirs = step(env, action), step(twin, action)
            assert (ours == theirs).all()
            ours["reward"] += 100

    def layouts(self, seed: int) -> list[dict[str, Tensor]]:
        env, found = self.make(5, seed=seed), []
        for _ in range(8):
            env.reset()
            found.append(layout(env))
        return found

    def test_seed_decides(self) -> None:
        first, again, other = self.layouts(3), self.layouts(3), self.layouts(4)
        equal = lambda a, b: all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in x)  # noqa: B905, E731
        assert equal(first, again)
        assert not equal(first, other)

    def test_global_generators_are_left_alone(self) -> None:
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
        env = self.make(5, seed=0)
        env.reset()
        step(env, torch.zeros_like(env.action_spec.zero()))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.array_equal(np.random.get_state()[1], numpy_state[1])

    @pytest.mark.parametrize("name", DUPLICATES)
    @pytest.mark.parametrize("steps", [None, 0, 5])
    def test_copies_go_on_as_the_original(self, name: str, steps: int | None) -> None:
        env = self.make(5, seed=1)
        if steps is not None:
            env.reset()
            for _ in range(steps):
                step(env, random_action(env))
        twin = DUPLICATES[name](env, self.make)
        if steps is None:
            assert (env.reset() == twin.reset()).all()
        for _ in range(20):
            action = random_action(env)
            ours, theirs = step(env, action), step(twin, action)
            assert (ours == theirs).all()
            if ours["done"].all():
                assert (env.reset() == twin.reset()).all()
        for key, value in layout(env).items():
            assert torch.equal(value, layout(twin)[key])

    def test_nothing_waits_for_a_value(self) -> None:
        """No operation hands a value to Python or has a result whose shape depends on values."""
        env = self.make(5)
        # the CPU may check actions and draw row by row, other devices do neither
        env._looks = False
        env.reset()
        action = random_action(env)
        with Calls() as calls:
            for _ in range(2):
                env._step(TensorDict({"action": action}, batch_size=[5]))
            env._step(TensorDict({"action": action, "_step": RESET}, batch_size=[5]))
            env._reset(TensorDict({"_reset": RESET}, batch_size=[5]))
            env._reset(None)
        assert len(calls.names) > 30
        forbidden = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"}
        assert not forbidden & set(calls.names)

    def test_to_another_device_moves_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        env = self.make(5, seed=3)
        env.reset()
        action = random_action(env)
        # the meta device is everywhere, but has neither specs nor generators
        seeds: list[int] = []
        move = lambda env, device: env.__dict__.update(_device=torch.device(device))  # noqa: E731
        monkeypatch.setattr(EnvBase, "to", move)
        monkeypatch.setattr(type(env), "_set_seed", lambda env, seed: seeds.append(seed))
        assert env.to("meta") is env
        assert seeds == [3]
        tensors = [value for value in vars(env).values() if isinstance(value, Tensor)]
        assert {x.device.type for x in (*tensors, *env._running().values())} == {"meta"}
        # where actions are not looked at: there is nothing to see on this one
        start = TensorDict({"action": action.to("meta")}, batch_size=[5])
        assert {entry.device.type for entry in env._step(start).values()} == {"meta"}

    @pytest.mark.gpu
    def test_cuda(self) -> None:
        """Moves there, steps as on the CPU, and never makes the CPU wait."""
        env, there = self.make(5, seed=0), self.make(5, seed=0).to("cuda")
        env.reset()
        there._state = {name: value.cuda() for name, value in env._running().items()}
        for _ in range(6):
            action = random_action(env)
            ours = step(env, action)
            start = TensorDict({"action": action.cuda()}, batch_size=[5], device="cuda")
            torch.cuda.set_sync_debug_mode("error")
            try:
                theirs = there._step(start)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for name, value in theirs.items():
                if self.draws_in_steps:
                    continue
                torch.testing.assert_close(value.cpu(), ours[name])
        mask = TensorDict({"_reset": RESET.cuda()}, batch_size=[5], device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            there._reset(mask)
            there._reset(None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        check_env_specs(self.make(5).to("cuda"))
