"""Episodes that start while others go on: `maybe_reset` returns what TorchRL's own returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

import torchrl_shm.envs.popgym as families
from tests.envs._helpers import POPGYM, random_action
from torchrl_shm.envs import BatchedEnv

Reset = Callable[[BatchedEnv, TensorDictBase], TensorDictBase]
OURS: Reset = lambda env, data: env.maybe_reset(data)  # noqa: E731
THEIRS: Reset = lambda env, data: EnvBase.maybe_reset(env, data)  # noqa: E731


def play(name: str, steps: int, **extra: Any) -> tuple[list[TensorDictBase], list[int]]:
    """Play on twins with the same actions, each reset in its own way; compare all along.

    Returns:
        What ours returned, and how many rows started anew at each step.
    """
    twins = [(POPGYM[name](4, seed=0), OURS), (POPGYM[name](4, seed=0), THEIRS)]
    for env, _ in twins:
        env.reset()
        # so that rows do not end together
        for _ in range(2):
            env.step(TensorDict({"action": torch.zeros_like(random_action(env))}, [4]))
        mask = torch.tensor([[True], [False], [False], [False]])
        env.reset(TensorDict({"_reset": mask, "done": mask.clone()}, [4]))
    returned: list[TensorDictBase] = []
    counts: list[int] = []
    for _ in range(steps):
        action = random_action(twins[0][0])
        results: list[TensorDictBase] = []
        for env, reset in twins:
            data = env.step(TensorDict({"action": action, **extra}, [4]))
            counts.append(int(data["next", "done"].sum()))
            results.append(reset(env, env._step_mdp(data)))
        ours, theirs = results
        assert set(ours.keys()) == set(theirs.keys())
        assert (ours == theirs).all()
        states = [env._running() for env, _ in twins]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        returned.append(ours)
    return returned, counts[::2]


@pytest.mark.parametrize("name", POPGYM)
def test_is_what_torchrl_does(name: str) -> None:
    steps = 210 if "Pendulum" in name or name == "MultiarmedBandit" else 110
    _, counts = play(name, steps, hidden=torch.ones(4, 3), label=torch.arange(4))
    # some rows and not all
    assert any(0 < count < 4 for count in counts)


def test_whole_resets() -> None:
    """Bandits end together: what is not the environment's own then stays, as in TorchRL."""
    env = families.MultiarmedBanditEnv(4, max_steps=3, seed=0)
    data = env.reset()
    for _ in range(3):
        action = torch.ones(4, dtype=torch.int64)
        _, data = env.step_and_maybe_reset(data.set("action", action).set("hidden", torch.ones(4)))
    assert data["hidden"].all()
    assert not data["done"].any()
    assert not env._running()["step"].any()


def test_nested_entries() -> None:
    """They are left to TorchRL."""
    returned, counts = play(
        "PositionOnlyCartPole", 60, nested=TensorDict({"x": torch.ones(4)}, [4])
    )
    assert any(counts)
    assert all("nested" in data.keys() for data in returned)


def test_mask_of_an_earlier_reset_goes() -> None:
    env = families.PositionOnlyCartPoleEnv(4, max_steps=1, seed=0)
    data = env.step(env.reset().set("action", torch.ones(4, dtype=torch.int64)))["next"]
    data["_reset"] = torch.zeros(4, 1, dtype=torch.bool)
    assert "_reset" not in env.maybe_reset(data.exclude("reward")).keys()


def test_nothing_ends() -> None:
    env = families.AutoencodeEnv(4, seed=0)
    data = env.reset()
    state = env._running()
    assert env.maybe_reset(data) is data
    assert env._running() is state


def test_data_that_came_before_are_not_written_to() -> None:
    env = families.PositionOnlyCartPoleEnv(4, max_steps=1, seed=0)
    data = env.step(env.reset().set("action", torch.ones(4, dtype=torch.int64)))["next"]
    before = data.clone()
    after = env.maybe_reset(data)
    assert (data == before).all()
    assert not torch.equal(after["observation"], before["observation"])
