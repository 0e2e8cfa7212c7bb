"""An actor and a critic with a memory each."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hydra_zen import instantiate
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from tests._night import at_night
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.configs import MEMORIES
from torchrl_shm.networks import Policy, get_behavior, make_actor_critic
from torchrl_shm.training import RolloutCollector


def make(memory: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return make_actor_critic(
        WindEnv(3), memory, embedding_size=6, hidden_sizes=(5,), shared_memory=False, **options
    )


def both(operator: Any) -> Policy:
    """The policy that runs both memories, and leaves their features where they are."""
    return Policy(*get_behavior(operator).module)


def collect(operator: Any) -> Any:
    collector = RolloutCollector(
        partial(WindEnv, max_steps=7), both(operator), num_envs=3, rollout_length=10,
        total_frames=60,
    )  # fmt: skip
    *_, batch = collector
    collector.close()
    return batch


# ablations and presets differ from these in a number or a word
@pytest.mark.parametrize(
    "memory",
    at_night(
        [x for x in MEMORIES if not x.startswith(("shm_", "fast_weights_"))],
        unless=lambda name: name in ("shm", "gru", "gpt2", "lru"),
    ),
)
def test_second_rollout_repeats_what_acted(memory: str) -> None:
    """Both memories start where the first rollout ended."""
    operator = make(instantiate(MEMORIES[memory]))
    batch = collect(operator)
    assert not batch["is_init"][:, 0].any()
    seen = {name: batch.pop(f"{name}features") for name in ("", "critic_")}
    with torch.no_grad(), set_recurrent_mode(True):
        again = both(operator)(batch.exclude("action", "critic_embedding", "embedding"))
    for name, features in seen.items():
        torch.testing.assert_close(again[f"{name}features"], features, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen[""], seen["critic_"])


@pytest.mark.parametrize("memory", ["shm", "lstm", "mlp"])
def test_loss_of_each_reaches_its_own(memory: str) -> None:
    operator = make(instantiate(MEMORIES[memory]))
    batch = collect(operator).exclude("embedding", "features", "critic_features", "loc", "scale")
    loss = ClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=operator.get_value_operator(), shifted=True)
    truncated = batch["next", "done"] & ~batch["next", "terminated"]
    gae.shifted_budget = 1 + int(truncated.sum(-2).max())
    with torch.no_grad(), set_recurrent_mode(True):
        batch = gae(batch)
    term = loss(batch)
    assert float(term["max_ratio"]) == pytest.approx(1, abs=1e-4)
    named = dict(operator.named_parameters())
    critic = {id(x) for x in operator.get_value_operator().parameters()}
    for key, own in (("loss_objective", False), ("loss_critic", True)):
        operator.zero_grad()
        term[key].backward(retain_graph=True)
        reached = {
            name: bool(x.grad is not None and x.grad.abs().sum() > 0) for name, x in named.items()
        }
        assert any(reached.values())
        for name, parameter in named.items():
            if reached[name]:
                assert (id(parameter) in critic) == own, f"{key} reaches {name}"


def test_nothing_is_shared() -> None:
    operator = make(SHMModule)
    actor = {id(x) for x in operator.get_policy_operator().parameters()}
    critic = {id(x) for x in operator.get_value_operator().parameters()}
    assert not actor & critic
    assert actor | critic == {id(x) for x in operator.parameters()}
    behavior = get_behavior(operator)
    # the value head does not act
    assert actor < {id(x) for x in behavior.parameters()} < actor | critic
