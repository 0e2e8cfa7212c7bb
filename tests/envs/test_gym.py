"""Gymnasium's and popgym's own environments behind TorchRL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from tests.envs._helpers import POPGYM
from torchrl_shm import SHMModule
from torchrl_shm.envs import make_gym_env, make_popgym_env, popgym
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import RolloutCollector

pytest.importorskip("popgym", reason="the original environments come with the extra popgym")
gymnasium: Any = pytest.importorskip("gymnasium")
spaces: Any = gymnasium.spaces


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1"])
def test_any_gymnasium_environment(id: str) -> None:
    env: Any = make_gym_env(id, 2, previous_action=True, previous_reward=True, seed=0)
    check_env_specs(env)
    assert env.policy_keys == ("observation", "previous_action", "previous_reward")
    data = env.rollout(12, break_when_any_done=False)
    assert data.shape == (2, 12)
    assert not data["previous_action"][:, 0].any()
    action = data["action"][:, :-1]
    if id == "CartPole-v1":
        action = torch.nn.functional.one_hot(action, 2)
    # reset rows start from zero again
    going_on = ~data["next", "done"][:, :-1]
    assert torch.equal(data["previous_action"][:, 1:], action * going_on)
    reward = data["next", "reward"][:, :-1]
    assert torch.equal(data["previous_reward"][:, 1:], reward * going_on)


def test_seed_decides() -> None:
    first, again, other = (
        make_gym_env("CartPole-v1", 2, seed=seed).reset()["observation"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_original_popgym() -> None:
    env = make_popgym_env("BattleshipEasy", 2, seed=0)
    check_env_specs(env)
    assert env.action_spec.shape == popgym.BattleshipEnv(2).action_spec.shape


# numpy 2.4 warns about what gymnasium's pendulum does
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("name", POPGYM)
def test_observations_are_those_of_our_own(name: str, wrapped: bool) -> None:
    options: dict[str, Any] = {"previous_action": wrapped, "antialias": wrapped}
    env = make_popgym_env(f"{name}Easy", 2, seed=0, **options)
    ours = POPGYM[name](2, seed=0, **options)
    theirs = env.rollout(3, break_when_any_done=False)["observation"]
    rollout = ours.rollout(3, break_when_any_done=False)["observation"]
    assert theirs.shape == rollout.shape
    assert theirs.dtype == rollout.dtype
    if "Only" not in name:
        # as many blocks, with one one each
        assert torch.equal(theirs.sum(-1), rollout.sum(-1))
        assert set(theirs.unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("id", "width", "ones"),
    [
        ("FrozenLake-v1", 16, [0]),
        ("CliffWalking-v1", 48, [36]),
        ("Blackjack-v1", 32 + 11 + 2, None),
    ],
)
def test_observations_that_are_indices_become_one_hot(
    id: str, width: int, ones: list[int] | None
) -> None:
    env = make_gym_env(id, 2, seed=0)
    check_env_specs(env)
    seen = env.reset()["observation"]
    assert seen.shape == (2, width)
    assert seen.dtype == torch.float32
    if ones is None:
        blocks = seen.split([32, 11, 2], -1)
        assert all((block.sum(-1) == 1).all() for block in blocks)
    else:
        assert seen.nonzero()[:, 1].tolist() == ones * 2


class Odd(gymnasium.Env):
    """Shows whatever its space holds."""

    def __init__(self, space: Any) -> None:
        self.observation_space = space
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture
def odd() -> Iterator[Callable[[Any], str]]:
    """Registers an environment with a space of observations."""

    def register(space: Any) -> str:
        gymnasium.register("Odd-v0", entry_point=lambda: Odd(space), disable_env_checker=True)
        return "Odd-v0"

    yield register
    gymnasium.registry.pop("Odd-v0", None)


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.MultiDiscrete([3, 2]), (5,), torch.float32),
        (spaces.MultiBinary(4), (4,), torch.float32),
        (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0, 1, (2,))}), (5,), torch.float32),
        (spaces.Box(0, 9, (3,), np.int64), (3,), torch.float32),
        (spaces.Box(-1, 1, (3,), np.float64), (3,), torch.float32),
        (spaces.Box(0, 255, (3,), np.uint8), (3,), torch.uint8),
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), (4, 4, 3), torch.uint8),
    ],
    ids=str,
)
def test_spaces_of_observations(odd: Any, space: Any, shape: Any, dtype: torch.dtype) -> None:
    env: Any = make_gym_env(odd(space), 2)
    (key,) = env.policy_keys
    assert key == ("pixels" if len(shape) == 3 else "observation")
    seen = env.reset()[key]
    assert seen.dtype == dtype
    assert seen.shape == (2, *shape)
    # a policy can read it
    make_actor_critic(env, SHMModule)


@pytest.mark.parametrize(
    "make",
    [
        partial(make_gym_env, "CartPole-v1", previous_action=True),
        partial(make_gym_env, "Blackjack-v1"),
        partial(make_popgym_env, "BattleshipEasy", previous_action=False, antialias=False),
    ],
    ids=lambda make: "_".join((*make.args, *make.keywords)),
)
def test_a_memory_learns_from_it(make: Any) -> None:
    policy = make_actor_critic(make(2), SHMModule).get_policy_operator()
    rows = RolloutCollector(make, policy, num_envs=2, rollout_length=5, total_frames=10)
    (batch,) = rows
    rows.close()
    assert batch["logits"].shape == (2, 5, make(1).action_spec.n)


class TestMistakes:
    def test_observations_of_no_fixed_size(self, odd: Any) -> None:
        with pytest.raises(ValueError, match=r"observations of Odd-v0 are of no fixed size: Seq"):
            make_gym_env(odd(spaces.Sequence(spaces.Discrete(2))), 2)

    def test_arguments(self) -> None:
        with pytest.raises(ValueError, match="gymnasium has no environment 'Nothing-v0'"):
            make_gym_env("Nothing-v0")
        with pytest.raises(ValueError, match=r"popgym has no environment 'Nothing'.*'Autoencode"):
            make_popgym_env("Nothing")
        with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
            make_gym_env("CartPole-v1", 0)

    @pytest.mark.parametrize(
        ("module", "make"),
        [
            ("gymnasium", partial(make_gym_env, "CartPole-v1")),
            ("popgym.envs", partial(make_popgym_env, "AutoencodeEasy")),
        ],
    )
    def test_package_that_is_not_installed(
        self, monkeypatch: pytest.MonkeyPatch, module: str, make: Any
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"pip install 'torchrl_shm\[popgym\]'"):
            make()
