"""An actor and a critic of action values, with a memory each."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, MultiCategorical, Unbounded
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_shm import SHMModule, TMazeEnv, WindEnv
from torchrl_shm.modules import GRU, SHM, make_memory
from torchrl_shm.networks import EnvSpecs, Policy, get_behavior, make_soft_actor_critic
from torchrl_shm.training import RolloutCollector

gru = partial(make_memory, cell=GRU)


def specs(action: Any) -> EnvSpecs:
    observation = Unbounded(torch.Size((2,)))
    return EnvSpecs(Composite({"observation": observation}), action, ["observation"])


@pytest.mark.parametrize("env", [WindEnv, TMazeEnv])
def test_untrained_actions_are_uniform(env: Any) -> None:
    torch.manual_seed(0)
    operator = make_soft_actor_critic(env(2), SHMModule)
    collector = RolloutCollector(
        env, get_behavior(operator), num_envs=64, rollout_length=20, total_frames=64 * 20
    )
    (batch,) = collector
    action: Any = batch["action"].flatten()
    if operator.discrete:
        shares = action.bincount(minlength=4) / len(action)
    else:
        assert bool((action.abs() <= 1).all())
        shares = torch.histc(action, 5, -1, 1) / len(action)
    assert shares.min() > 0.8 / len(shares)
    assert shares.max() < 1.3 / len(shares)


def test_bounds_of_the_action() -> None:
    low, high = torch.tensor([-3.0, 0.0]), torch.tensor([-1.0, 8.0])
    space = specs(Bounded(low, high, torch.Size((2,)), dtype=torch.float32))
    policy = make_soft_actor_critic(space, gru).get_policy_operator()
    data = TensorDict({"observation": torch.randn(500, 2)}, [500])
    data["is_init"] = torch.ones(500, 1, dtype=torch.bool)
    action = policy(data)["action"]
    assert bool(((action >= low) & (action <= high)).all())
    assert bool((action.amax(0) - action.amin(0) > 0.8 * (high - low)).all())
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        one, other = policy(data.clone())["action"], policy(data.clone())["action"]
    assert torch.equal(one, other)
    torch.testing.assert_close(one.mean(0), (low + high) / 2, rtol=0.05, atol=0.1)


def test_a_memory_of_another_kind_for_the_actor() -> None:
    operator = make_soft_actor_critic(WindEnv(2), SHMModule, actor_memory=gru, time_size=4)
    assert isinstance(operator.actor[-1].cell, GRU)
    assert isinstance(operator.critic[-1].cell, SHM)
    policy = operator.get_policy_operator()
    assert not {id(x) for x in policy.parameters()} & {id(x) for x in operator.critic.parameters()}
    # both act in the collection, and nothing is kept that a loss computes
    behavior = get_behavior(operator)
    assert {"memory_role", "critic_memory_role"} < set(behavior.out_keys)
    assert not {"features", "critic_features"} & set(behavior.out_keys)
    assert isinstance(policy, Policy)


def test_heads_are_different_ones() -> None:
    operator = make_soft_actor_critic(TMazeEnv(2), gru)
    one, other = operator.make_q_heads()
    assert one.out_keys == ["action_value"]
    first, second = (next(x for x in head.parameters() if x.ndim == 2) for head in (one, other))
    assert not torch.equal(first, second)
    assert len(list(operator.make_q_heads(3))) == 3


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Unbounded(torch.Size((2,))), "it takes a continuous action with bounds, or an index"),
        (MultiCategorical([3, 3]), "it takes a continuous action with bounds, or an index"),
    ],
)
def test_actions_that_it_does_not_take(action: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_soft_actor_critic(specs(action), gru)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_size": 0}, "network.embedding_size must be at least 1"),
        ({"hidden_sizes": (8, 0)}, "network.hidden_sizes must be at least 1"),
        ({"time_size": 3}, "network.time_size=3 must be an even number"),
    ],
)
def test_sizes(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_soft_actor_critic(WindEnv(2), gru, **options)


def test_name_of_a_memory() -> None:
    with pytest.raises(TypeError, match="write network/actor_memory=gru, with a slash"):
        make_soft_actor_critic(WindEnv(2), SHMModule, actor_memory="gru")
