"""What turned out better than expected is kept, learned from, and forgotten once it is expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchrl.modules import set_recurrent_mode

from torchrl_shm import SHMModule, TMazeEnv
from torchrl_shm.modules import make_mlp
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import LeanClipPPOLoss, RolloutCollector, SelfImitation


@torch.no_grad()
def run(loss: LeanClipPPOLoss, batch: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the actions, and values."""
    with set_recurrent_mode(True):
        dist, value = loss.run_networks(batch)
    return dist.log_prob(batch["action"]), value


def make(num_envs: int = 6) -> tuple[LeanClipPPOLoss, Any]:
    """A loss, and a batch with targets of the value that were not met but at one step."""
    torch.manual_seed(0)
    operator = make_actor_critic(TMazeEnv(num_envs), SHMModule, time_size=4)
    collector = RolloutCollector(
        TMazeEnv, get_behavior(operator), num_envs=num_envs, rollout_length=12, total_frames=1
    )
    (batch,) = collector
    collector.close()
    loss = LeanClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
    _, value = run(loss, batch)
    batch["state_value"] = value
    batch["advantage"] = torch.zeros_like(value)
    batch["value_target"] = value - 0.1
    batch["value_target"][2, 7] += 5.0
    return loss, batch


def predict(loss: LeanClipPPOLoss, value: float) -> None:
    """Make the critic expect the same value everywhere."""
    for parameter in loss.critic_network.parameters():
        parameter.data.zero_()
    # the last bias
    parameter.data.fill_(value)


def test_the_most_surprising_is_learned_from() -> None:
    loss, batch = make()
    imitation = SelfImitation(loss, coeff=1.0, sequences_per_minibatch=1)
    imitation.add(batch)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    before = run(loss, batch)
    for _ in range(30):
        optimizer.zero_grad()
        imitation.loss().backward()
        optimizer.step()
    for now, then in zip(run(loss, batch), before, strict=True):
        assert now[2, 7] - then[2, 7] > 0.1


def test_what_is_expected_gives_no_gradient() -> None:
    loss, batch = make()
    batch["value_target"][2, 7] -= 5.0
    imitation = SelfImitation(loss, coeff=1.0)
    imitation.add(batch)
    imitation.loss().backward()
    assert all(p.grad is None or not p.grad.any() for p in loss.parameters())


def test_the_priority_is_that_of_now() -> None:
    """A critic that has learned to expect a success gives its place to another."""
    loss, batch = make()
    imitation = SelfImitation(loss, coeff=1.0, sequences_per_minibatch=4, num_sequences=4)
    imitation.add(batch)
    first = float(imitation._priority.max())
    otherwise = 1 - batch["action_log_prob"][2, 7].exp()
    assert_close(first, 4.9 * float(otherwise))
    predict(loss, 20.0)
    for _ in range(4):
        imitation.loss()
    assert imitation._priority.max() < 1e-5
    batch["state_value"] = batch["value_target"] - 1.0
    imitation.add(batch)
    assert len(imitation._priority) == 2
    assert 0.1 < imitation._priority.max() <= 1.0


def test_what_the_policy_does_by_itself_is_not_kept() -> None:
    loss, batch = make()
    batch["value_target"] = batch["state_value"] + 1.0
    batch["action_log_prob"] = torch.zeros_like(batch["action_log_prob"])
    batch["action_log_prob"][3, 4] = -2.0
    imitation = SelfImitation(loss, coeff=1.0, num_sequences=1)
    imitation.add(batch)
    assert imitation._kept is not None
    assert torch.equal(imitation._kept["observation"][0], batch["observation"][3])


def test_a_batch_does_not_replace_all() -> None:
    loss, batch = make()
    imitation = SelfImitation(loss, coeff=1.0, num_sequences=8)
    for gain in (1.0, 2.0):
        batch["value_target"] = batch["state_value"] + gain
        imitation.add(batch)
    assert len(imitation._priority) == 2
    assert imitation._priority.max() > 1.5 * imitation._priority.min()


@pytest.mark.parametrize(("decay", "first"), [(0.0, 1), (0.9, 2)])
def test_luck_at_every_step_hides_no_surprising_one(decay: float, first: int) -> None:
    """Eleven steps bring 1 more than expected each, and in another sequence one brings 5."""
    loss, batch = make()
    batch["action_log_prob"] = torch.full_like(batch["action_log_prob"], -100.0)
    batch["is_init"] = torch.zeros_like(batch["is_init"])
    extra = torch.zeros(6, 13)
    extra[1, :11], extra[2, 7] = 1.0, 5.0
    gain = torch.zeros_like(extra)
    for step in reversed(range(12)):
        gain[:, step] = extra[:, step] + 0.9 * gain[:, step + 1]
    batch["value_target"] = batch["state_value"] + gain[:, :12, None]
    imitation = SelfImitation(loss, coeff=1.0, num_sequences=1, trace_decay=decay)
    imitation.add(batch)
    assert imitation._kept is not None
    assert torch.equal(imitation._kept["observation"][0], batch["observation"][first])
    assert_close(imitation._priority[0], extra[2, 7] if decay else gain[1, 0])


@pytest.mark.parametrize(("decay", "smallest", "largest"), [(0.0, 3.0, 7.0), (0.9, 0.3, 1.0)])
def test_renewed_priorities_are_of_steps_too(decay: float, smallest: float, largest: float) -> None:
    loss, batch = make()
    batch["is_init"] = torch.zeros_like(batch["is_init"])
    gain = torch.zeros(6, 13)
    for step in reversed(range(11)):
        gain[1, step] = 1.0 + 0.9 * gain[1, step + 1]
    batch["value_target"] = gain[:, :12, None]
    batch["state_value"] = batch["value_target"]
    imitation = SelfImitation(loss, coeff=1.0, num_sequences=1, trace_decay=decay)
    imitation.add(batch[1:2])
    assert imitation._priority[0] == 0
    # the critic of now expects nothing, and the policy has a choice of four
    predict(loss, 0.0)
    imitation.loss()
    assert smallest < float(imitation._priority[0]) < largest


def test_a_bad_end_makes_the_step_before_it_a_good_one() -> None:
    """What follows may be worse than expected: without it, the step was as much better."""
    loss, batch = make()
    batch["action_log_prob"] = torch.full_like(batch["action_log_prob"], -100.0)
    batch["is_init"] = torch.zeros_like(batch["is_init"])
    batch["value_target"] = batch["state_value"].clone()
    batch["value_target"][4, 6] -= 2.0
    for decay, expected in ((0.0, 0.0), (0.5, 1.0)):
        imitation = SelfImitation(loss, coeff=1.0, num_sequences=1, trace_decay=decay)
        imitation.add(batch)
        assert float(imitation._priority) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("trace_decay", [-0.1, 1.5, float("nan")])
def test_a_trace_decay_out_of_range(trace_decay: float) -> None:
    loss, _ = make()
    with pytest.raises(ValueError, match=rf"^trace_decay={trace_decay} must be between 0 and 1$"):
        SelfImitation(loss, coeff=1.0, trace_decay=trace_decay)


@pytest.mark.parametrize("trace_decay", [0.0, 0.9])
def test_networks_that_read_no_resets(trace_decay: float) -> None:
    """Priorities of steps need them all the same, and what was kept without them goes on."""
    torch.manual_seed(0)
    operator = make_actor_critic(TMazeEnv(4), make_mlp)
    loss = LeanClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
    assert "is_init" not in loss.in_keys
    collector = RolloutCollector(
        TMazeEnv, get_behavior(operator), num_envs=4, rollout_length=12, total_frames=1
    )
    (batch,) = collector
    collector.close()
    batch["state_value"] = run(loss, batch)[1]
    batch["value_target"] = batch["state_value"] + 1.0
    imitation = SelfImitation(loss, coeff=1.0, trace_decay=trace_decay)
    for _ in range(2):
        imitation.add(batch)
        imitation.loss().backward()
    assert imitation._kept is not None
    assert ("is_init" in imitation._kept.keys()) == bool(trace_decay)


def test_the_next_episode_is_not_the_next_step() -> None:
    loss, batch = make()
    batch["action_log_prob"] = torch.full_like(batch["action_log_prob"], -100.0)
    batch["is_init"] = torch.zeros_like(batch["is_init"])
    batch["value_target"] = batch["state_value"].clone()
    batch["value_target"][4, 5:7] += torch.tensor([[3.0], [2.0]])
    for starts, expected in ((False, 2.0), (True, 3.0)):
        batch["is_init"][4, 6] = starts
        imitation = SelfImitation(loss, coeff=1.0, num_sequences=1, trace_decay=1.0)
        imitation.add(batch)
        assert float(imitation._priority) == pytest.approx(expected, rel=1e-5)


def test_returns_are_kept_in_units_of_the_task() -> None:
    """A return of 10 is expected by a value of 2 where rewards are divided by 5."""
    loss, batch = make()
    imitation = SelfImitation(loss, coeff=1.0, num_sequences=4)
    batch["value_target"] = torch.full_like(batch["value_target"], 10.0)
    batch["state_value"] = torch.zeros_like(batch["value_target"])
    imitation.add(batch, scale=1.0)
    assert imitation._priority.min() > 5
    batch["state_value"] = batch["value_target"] = torch.full_like(batch["value_target"], 2.0)
    predict(loss, 2.0)
    imitation.add(batch, scale=5.0)
    assert imitation.loss() < 1e-5


def test_few_are_kept_and_what_is_not_finite_is_not() -> None:
    loss, batch = make()
    batch["value_target"][0] = torch.nan
    imitation = SelfImitation(loss, coeff=1.0, num_sequences=1)
    imitation.add(batch)
    assert imitation._kept is not None
    assert torch.equal(imitation._kept["observation"][0], batch["observation"][2])
    assert imitation.loss().isfinite()


def test_saved_and_loaded() -> None:
    loss, batch = make()
    imitation, other = (SelfImitation(loss, coeff=1.0) for _ in range(2))
    imitation.add(batch)
    other.load_state_dict(imitation.state_dict())
    torch.manual_seed(3)
    expected = imitation.loss()
    torch.manual_seed(3)
    assert torch.equal(other.loss(), expected)
    fresh = SelfImitation(loss, coeff=1.0)
    fresh.load_state_dict(imitation.state_dict())
    fresh.load_state_dict(SelfImitation(loss, coeff=1.0).state_dict())
    assert fresh.loss() == 0


def test_without_a_weight_nothing_is_kept() -> None:
    loss, batch = make()
    imitation = SelfImitation(loss, coeff=0.0)
    state = torch.get_rng_state()
    imitation.add(batch)
    assert imitation.loss() == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_errors() -> None:
    loss, _ = make()
    with pytest.raises(ValueError, match=r"coeff=-1\.0 must be a finite number"):
        SelfImitation(loss, coeff=-1.0)
    with pytest.raises(ValueError, match="num_sequences must be at least 1, got 0"):
        SelfImitation(loss, coeff=1.0, num_sequences=0)
