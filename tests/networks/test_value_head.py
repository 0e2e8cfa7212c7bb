"""A value head trains the memory before it, or says that it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import A2CLoss, ClipPPOLoss, ReinforceLoss

from torchrl_shm import SHMModule, WindEnv, unroll
from torchrl_shm.networks import Policy, get_behavior, make_actor_critic


def collected(**options: Any) -> tuple[Any, Any]:
    """An operator and what it has collected, features and all."""
    env = WindEnv(3, max_steps=7, seed=0)
    operator = make_actor_critic(env, SHMModule, embedding_size=8, **options)
    frames: Any = {"frames_per_batch": 3 * 10, "total_frames": 3 * 10}
    # what also runs the critic's memory, but leaves its features where they are
    policy = Policy(*get_behavior(operator).module)
    collector = Collector(env, policy, auto_register_policy_transforms=True, **frames)
    batch = next(iter(collector))
    collector.shutdown()
    for key in ("advantage", "value_target"):
        batch[key] = torch.randn(*batch.shape, 1)
    return operator, batch


def reaches(operator: Any, terms: Any) -> bool:
    """Whether the critic's loss trains the memory."""
    key = "loss_value" if "loss_value" in terms.keys() else "loss_critic"
    cells = [p for name, p in operator.named_parameters() if ".cell." in name]
    found = torch.autograd.grad(terms[key], cells, retain_graph=True, allow_unused=True)
    return sum(gradient is not None and bool(gradient.any()) for gradient in found) > 5


def test_a2c_on_collected_features() -> None:
    """It runs the policy on a copy, so the head finds the features of collection."""
    operator, batch = collected()
    policy = operator.get_policy_operator()
    message = r"no gradient reaches the memory.*get_value_operator\(\).*torchrl_shm\.unroll"
    with pytest.raises(RuntimeError, match=message):
        A2CLoss(policy, operator.get_value_head())(batch)
    # what it tells to do
    assert reaches(operator, A2CLoss(policy, operator.get_value_operator())(batch))
    heads = operator.get_policy_head(), operator.get_value_head()
    assert reaches(operator, A2CLoss(*heads)(unroll(operator, batch)))


@pytest.mark.parametrize("make", [ClipPPOLoss, ReinforceLoss])
def test_losses_that_run_the_policy_first(make: Any) -> None:
    operator, batch = collected()
    loss = make(operator.get_policy_operator(), operator.get_value_head())
    assert reaches(operator, loss(batch))


def test_separate_losses() -> None:
    """The policy alone trains the memory, because the user wants it so."""
    operator, batch = collected()
    loss = ClipPPOLoss(
        operator.get_policy_operator(), operator.get_value_head(), separate_losses=True
    )
    assert not reaches(operator, loss(batch))


def test_heads_on_collected_features() -> None:
    """Outside of the loss they are inputs like others."""
    operator, batch = collected()
    head = operator.get_value_head()
    expected = head(batch.clone())["state_value"]
    with set_recurrent_mode(True):
        assert torch.equal(head(batch.clone())["state_value"], expected)
    with torch.no_grad():
        A2CLoss(operator.get_policy_operator(), head)(batch)


def test_critics_with_a_memory_of_their_own() -> None:
    operator, batch = collected(shared_memory=False)
    loss = A2CLoss(operator.get_policy_operator(), operator.get_value_operator())
    assert reaches(operator, loss(batch))
