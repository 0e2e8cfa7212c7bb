"""Gymnasium's and popgym's own environments behind TorchRL."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_shm import SHMModule
from torchrl_shm.envs import make_gym_env, make_popgym_env, popgym
from torchrl_shm.training import RowCollector, make_actor_critic

pytest.importorskip("popgym", reason="the original environments come with the extra popgym")


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RepeatPreviousEasy", {}),
        ("BattleshipEasy", {}),
        ("PositionOnlyPendulumEasy", {}),
        ("CountRecallEasy", {"antialias": False}),
    ],
)
def test_original_popgym(name: str, options: dict[str, Any]) -> None:
    env = make_popgym_env(name, 2, seed=0, **options)
    ours: Any = getattr(popgym, f"{name.removesuffix('Easy')}Env")(2, seed=0, **options)
    check_env_specs(env)
    assert env.observation_spec["observation"].shape == ours.observation_spec["observation"].shape
    assert env.action_spec.shape == ours.action_spec.shape
    data = env.rollout(5)
    assert set(data["observation"].shape) == {2, 5, ours.reset()["observation"].shape[-1]}


def test_a_memory_learns_from_it() -> None:
    make = partial(make_gym_env, "CartPole-v1", previous_action=True)
    policy = make_actor_critic(make(2), SHMModule).get_policy_operator()
    rows = RowCollector(make, policy, num_envs=2, row_length=5, total_frames=10)
    (batch,) = rows
    rows.close()
    assert batch["logits"].shape == (2, 5, 2)


class TestMistakes:
    def test_unknown_names(self) -> None:
        with pytest.raises(ValueError, match="gymnasium has no environment 'Nothing-v0'"):
            make_gym_env("Nothing-v0")
        with pytest.raises(ValueError, match=r"popgym has no environment 'Nothing'.*'Autoencode"):
            make_popgym_env("Nothing")

    def test_number_of_environments(self) -> None:
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
