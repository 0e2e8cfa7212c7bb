"""The lean loss is TorchRL's loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.envs.popgym import BattleshipEnv, RepeatPreviousEnv
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import LeanClipPPOLoss, RolloutCollector

OPTIONS: dict[str, float] = {"clip_epsilon": 0.1, "entropy_coeff": 0.03, "critic_coeff": 0.4}


def collected(env: Any, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    operator = make_actor_critic(env(4), SHMModule, embedding_size=8, **options)
    collector = RolloutCollector(
        env, get_behavior(operator), num_envs=4, rollout_length=12, total_frames=1
    )
    batch = next(iter(collector))
    collector.close()
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=operator.get_value_operator(), shifted=True)
    gae.shifted_budget = 2
    with torch.no_grad(), set_recurrent_mode(True):
        batch = gae(batch)
    # away from the policy that acted, so that ratios are clipped on both sides
    for parameter in operator.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return operator, batch


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("env", [WindEnv, RepeatPreviousEnv, BattleshipEnv])
def test_losses_and_gradients(env: Any, shared: bool) -> None:
    operator, batch = collected(env, shared_memory=shared)
    networks = operator.get_policy_operator(), operator.get_value_head()
    options: dict[str, Any] = {**OPTIONS, "loss_critic_type": "l2", "functional": False}
    found: list[Any] = []
    for loss, data in (
        (ClipPPOLoss(*networks, **options), batch),
        # the entries that it names are enough
        (lean := LeanClipPPOLoss(*networks, **OPTIONS), batch.select(*lean_keys(networks))),
    ):
        operator.zero_grad()
        terms = loss(data)
        sum(terms[key] for key in terms.keys() if key.startswith("loss_")).backward()
        found.append((terms, [x.grad.clone() for x in operator.parameters()]))
    (theirs, expected), (ours, gradients) = found
    assert 0.05 < float(theirs["clip_fraction"]) < 0.99
    assert set(ours.keys()) < set(theirs.keys())
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key].squeeze(), rtol=1e-5, atol=1e-6)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)
    assert lean.functional is False
    assert list(ours.keys()) == lean.out_keys


def lean_keys(networks: tuple[Any, Any]) -> list[Any]:
    keys = LeanClipPPOLoss(*networks).in_keys
    assert not {"reward", "done", ("next", "reward")} & set(keys)
    # a memory per step is not there, and not needed
    return [key for key in keys if not str(key).endswith("memory")]


def test_coefficients_may_change_while_training() -> None:
    operator, batch = collected(WindEnv)
    loss = LeanClipPPOLoss(operator.get_policy_operator(), operator.get_value_head(), **OPTIONS)
    before = loss(batch)
    for coefficient in (loss.clip_epsilon, loss.entropy_coeff, loss.critic_coeff):
        coefficient.mul_(2)
    after = loss(batch)
    assert float(after["clip_fraction"]) < float(before["clip_fraction"])
    for key in ("loss_entropy", "loss_critic"):
        torch.testing.assert_close(after[key], 2 * before[key])


def test_the_data_stay_as_they_are() -> None:
    operator, batch = collected(WindEnv)
    loss = LeanClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
    before = set(batch.keys(True, True))
    loss(batch)
    assert set(batch.keys(True, True)) == before
    with pytest.raises(KeyError, match="action_log_prob"):
        loss(batch.exclude("action_log_prob"))


@pytest.mark.parametrize("critic", [True, False])
def test_steps_that_do_not_count(critic: bool) -> None:
    """Whatever stands there, the loss is that of TorchRL, with and without a critic."""
    operator, batch = collected(RepeatPreviousEnv)
    networks = operator.get_policy_operator(), operator.get_value_head() if critic else None
    options: dict[str, Any] = {**OPTIONS, "critic_coeff": 0.4 if critic else None}
    mask = torch.rand(batch.shape) < 0.6
    batch["collector", "mask"] = mask
    theirs = ClipPPOLoss(*networks, **options, loss_critic_type="l2", functional=False)
    ours = LeanClipPPOLoss(*networks, **OPTIONS)
    found: list[Any] = []
    for loss in (theirs, ours):
        operator.zero_grad()
        terms = loss(batch)
        sum(terms[key] for key in terms.keys() if key.startswith("loss_")).backward()
        gradients = [x.grad.clone() for x in operator.parameters() if x.grad is not None]
        found.append((terms, gradients))
    (expected, gradients), (terms, ours_gradients) = found
    assert list(terms.keys()) == ours.out_keys
    assert ("loss_critic" in terms.keys()) == critic
    for key in terms.keys() - {"entropy"}:
        torch.testing.assert_close(terms[key], expected[key].squeeze(), rtol=1e-5, atol=1e-6)
    for ours_gradient, gradient in zip(ours_gradients, gradients, strict=True):
        torch.testing.assert_close(ours_gradient, gradient, rtol=1e-4, atol=1e-6)
    assert len(gradients) < len(list(operator.parameters())) or critic
    # NaN times zero would be NaN
    batch["advantage"] = torch.where(mask[..., None], batch["advantage"], torch.nan)
    torch.testing.assert_close(ours(batch)["loss_objective"], terms["loss_objective"])
    batch["collector", "mask"] = torch.zeros_like(mask)
    assert float(ours(batch)["loss_objective"].detach()) == 0


def test_divergence_from_the_policy_that_acted() -> None:
    """It is KL(now, then) where actions are drawn often, and zero at the start."""
    operator, batch = collected(RepeatPreviousEnv)
    policy = operator.get_policy_operator()
    loss = LeanClipPPOLoss(policy, entropy_coeff=0.0, kl_coeff=0.5)
    terms = loss(batch)
    assert list(terms.keys()) == loss.out_keys
    with set_recurrent_mode(True):
        dist = policy.get_dist(batch.copy())
    # a policy of then that differs, and of which every action of a step is one of many rows
    logits = dist.logits.detach()
    then = torch.distributions.Categorical(logits=logits + torch.randn_like(logits))
    rows = 1000
    data = batch.expand(rows, *batch.shape).flatten(0, 1).clone()
    data["action"] = then.sample((rows,)).flatten(0, 1)
    data["action_log_prob"] = then.log_prob(data["action"].unflatten(0, (rows, -1))).flatten(0, 1)
    now = torch.distributions.Categorical(logits=logits)
    expected = torch.distributions.kl_divergence(now, then).mean()
    found = loss(data)["loss_kl"].detach()
    torch.testing.assert_close(found, 0.5 * expected, rtol=0.03, atol=0.0)
    batch["action_log_prob"] = dist.log_prob(batch["action"]).detach()
    assert float(loss(batch)["loss_kl"].detach().abs()) < 1e-6
