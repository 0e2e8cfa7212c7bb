"""Modules with little around the tensors do what TensorDict's own do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.envs.popgym import BattleshipEnv, RepeatPreviousEnv
from torchrl_shm.modules import make_mlp
from torchrl_shm.networks import Behavior, Layer, Policy, get_behavior, make_actor_critic
from torchrl_shm.training import RolloutCollector

ENVS: dict[str, Any] = {
    "continuous": WindEnv, "index": RepeatPreviousEnv, "indices": BattleshipEnv,
}  # fmt: skip


def make_policy(env: Any, memory: Any = SHMModule, **options: Any) -> Policy:
    torch.manual_seed(0)
    policy = make_actor_critic(env(3), memory, embedding_size=8, **options).get_policy_operator()
    assert type(policy) is Policy
    return policy


def first_step(env: Any) -> Any:
    data = env(3, seed=0).reset()
    data["is_init"] = torch.ones(3, 1, dtype=torch.bool)
    return data


def test_layer() -> None:
    linear, data = nn.Linear(2, 3), TensorDict({"x": torch.randn(4, 2)}, [4])
    theirs = TensorDictModule(linear, ["x"], ["y"])(data.clone())["y"]
    layer = Layer(linear, ["x"], ["y"])
    assert torch.equal(layer(data)["y"], theirs)
    # without a TensorDict, as theirs
    assert torch.equal(layer(data["x"]), theirs)
    with pytest.raises(KeyError, match="missing"):
        Layer(linear, ["missing"], ["y"])(data)
    two = Layer(nn.Module(), ["x"], ["a", ("b", "c")])
    two.module.forward = lambda x: (x, -x)
    assert torch.equal(two(data)["b", "c"], -data["x"])
    # a module that returns too few
    two.module.forward = lambda x: (x,)
    with pytest.raises(ValueError, match="shorter"):
        two(data)


@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
@pytest.mark.parametrize("env", list(ENVS))
def test_policies_act_as_theirs(env: str, kind: ExplorationType) -> None:
    policy, data = make_policy(ENVS[env]), first_step(ENVS[env])
    found: list[Any] = []
    for module in (policy, ProbabilisticTensorDictSequential(*policy.module)):
        torch.manual_seed(1)
        with torch.no_grad(), set_exploration_type(kind):
            found.append(module(data.clone()))
    ours, theirs = found
    assert set(ours.keys(True, True)) == set(theirs.keys(True, True))
    for key in ours.keys(True, True):
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("env", list(ENVS))
def test_distributions_are_theirs(env: str) -> None:
    policy, data = make_policy(ENVS[env]), first_step(ENVS[env])
    theirs = ProbabilisticTensorDictSequential(*policy.module)
    dists: list[Any] = []
    for module in (policy, theirs):
        torch.manual_seed(1)
        dists.append(module.get_dist(data.clone()))
    assert type(dists[0]) is type(dists[1])
    action = dists[1].sample()
    torch.testing.assert_close(dists[0].log_prob(action), dists[1].log_prob(action))
    torch.testing.assert_close(dists[0].entropy(), dists[1].entropy())


@pytest.mark.parametrize("shared", [True, False])
def test_behavior_writes_what_is_collected(shared: bool) -> None:
    torch.manual_seed(0)
    operator = make_actor_critic(WindEnv(3), SHMModule, embedding_size=8, shared_memory=shared)
    behavior = get_behavior(operator)
    assert type(behavior) is Behavior
    # it shares the parameters
    own, all_ = (dict(x.named_parameters()).values() for x in (behavior, operator))
    assert {id(x) for x in own} <= {id(x) for x in all_}
    collector = RolloutCollector(WindEnv, behavior, num_envs=3, rollout_length=5, total_frames=30)
    *_, batch = collector
    collector.close()
    # some losses compare distributions
    written = {
        "loc",
        "scale",
        "action",
        "action_log_prob",
        "theta_index",
        "memory_lean",
        "memory_lean_index",
    }
    assert written <= set(batch.keys())
    computed = ("embedding", "features", "critic_embedding", "critic_features")
    assert not set(computed) & {*batch.keys(), *behavior.out_keys}
    assert ("critic_memory_lean" in batch.keys()) is not shared


def test_hooks_and_state_dicts_are_kept() -> None:
    policy = make_policy(WindEnv, make_mlp)
    seen: list[str] = []
    for layer in policy.modules():
        if isinstance(layer, Layer):
            layer.register_forward_hook(lambda module, *_: seen.append(module.out_keys[0]))
    policy(first_step(WindEnv))
    assert seen == ["embedding", "loc", "loc"]
    theirs = ProbabilisticTensorDictSequential(*policy.module)
    assert policy.state_dict().keys() == theirs.state_dict().keys()


def test_heads_with_other_options() -> None:
    """Several samples, or none of the probability: as the head itself does."""
    policy, data = make_policy(WindEnv), first_step(WindEnv)
    head: Any = policy.module[-1]
    kinds = {"in_keys": head.in_keys, "out_keys": ["action"]}
    plain = ProbabilisticTensorDictModule(
        **kinds, distribution_class=head.distribution_class, return_log_prob=False
    )
    for kind in (Policy, Behavior):
        module = kind(*policy.module[:-1], plain)
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            found = module(data.clone())
        assert "action" in found.keys()
        assert "action_log_prob" not in found.keys()


def test_entries_of_branches_stay_there() -> None:
    """A key of two parts that does not begin with "next"."""
    policy, data = make_policy(WindEnv), first_step(WindEnv)
    extra = Layer(nn.Linear(2, 3), ["observation"], [("agents", "x")])
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        found = Behavior(extra, *policy.module)(data.clone())
    assert found["agents", "x"].shape == (3, 3)
    assert "x" not in found["next"].keys()


@pytest.mark.parametrize("name", ["features", "loc", "logits", "action", "state_value"])
def test_observations_named_as_what_is_written(name: str) -> None:
    """The critic would read what the actor has written over them."""
    env = WindEnv(3)
    specs = env.observation_spec.clone()
    specs[name] = specs["observation"].clone()
    env.observation_spec = specs
    for policy_keys in (["observation", name], ["observation"]):
        with pytest.raises(ValueError, match=f"{name}.*RenameTransform"):
            make_actor_critic(env, SHMModule, policy_keys=policy_keys)


def test_gradients_through_actions() -> None:
    policy, data = make_policy(WindEnv), first_step(WindEnv)
    with set_exploration_type(ExplorationType.RANDOM):
        action = policy(data)["action"]
    action.sum().backward()
    assert any(x.grad is not None and x.grad.abs().sum() > 0 for x in policy.parameters())


def test_parts_of_a_policy() -> None:
    part = make_policy(WindEnv).select_subsequence(out_keys=["features"])
    assert part(first_step(WindEnv))["features"].shape == (3, 8)
