"""Sequences survive storage in any order; slices need `state="stored"` or start empty."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchrl.data import LazyTensorStorage, ListStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import (
    RandomSampler,
    Sampler,
    SamplerWithoutReplacement,
    SliceSampler,
    SliceSamplerWithoutReplacement,
)
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ClipPPOLoss

from tests.modules._helpers import (
    EXACT,
    EnvFactory,
    WalkEnv,
    collect,
    estimate,
    make_memory,
    make_policy,
    make_shared,
    replay,
)


def log_prob(policy: Any, batch: Any) -> Tensor:
    with torch.no_grad(), set_recurrent_mode(True):
        return policy.get_dist(batch.copy()).log_prob(batch["action"])


def make_buffer(sampler: Sampler, batch_size: int) -> Any:
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(20), sampler=sampler, batch_size=batch_size
    )


# whole sequences


@pytest.mark.parametrize("sampler", [RandomSampler, SamplerWithoutReplacement])
def test_sequences_keep_their_log_probabilities(sampler: type[Sampler]) -> None:
    policy = make_shared().get_policy_operator()
    buffer = make_buffer(sampler(), 4)
    batches = collect(policy, num_batches=4)
    # numbered, since samples come in any order
    before: Any = torch.cat(batches)
    before["number"] = torch.arange(12).unsqueeze(-1).expand(12, 10)
    expected = log_prob(policy, before)
    assert_close(expected, before["action_log_prob"], **EXACT)
    for batch in before.split(3):
        buffer.extend(batch)
    seen: set[int] = set()
    for _ in range(9):
        sample = buffer.sample()
        numbers = sample["number"][:, 0]
        seen |= set(numbers.tolist())
        assert_close(log_prob(policy, sample), expected[numbers], **EXACT)
    assert len(seen) > 9


def test_other_storages(tmp_path: Any) -> None:
    policy = make_shared().get_policy_operator()
    data = torch.cat(collect(policy))
    buffer, loaded = (make_buffer(RandomSampler(), 4) for _ in range(2))
    buffer.extend(data)
    buffer.dumps(tmp_path)
    loaded.loads(tmp_path)
    listed: Any = TensorDictReplayBuffer(storage=ListStorage(20), batch_size=4)
    listed.extend(data)
    for other in (loaded, listed):
        sample = other.sample()
        assert_close(log_prob(policy, sample), sample["action_log_prob"], **EXACT)


def test_a_buffer_that_the_collector_fills() -> None:
    policy = make_shared().get_policy_operator()
    buffer = make_buffer(RandomSampler(), 6)
    options = {"replay_buffer": buffer, "extend_buffer": True}
    assert not collect(policy, **options)
    sample = buffer.sample()
    assert sample.shape == (6, 10)
    assert_close(log_prob(policy, sample), sample["action_log_prob"], **EXACT)


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("backend", ["single", "multi_sync"])
def test_from_collector_to_loss(backend: str) -> None:
    operator = make_shared()
    policy = operator.get_policy_operator()
    loss = ClipPPOLoss(policy, operator.get_value_head())
    options: dict[str, Any] = {"env": WalkEnv(6)}
    if backend == "multi_sync":
        options = {"env": EnvFactory(), "num_lanes": 6, "backend": "process", "sync": True}
        options |= {"num_collectors": 2, "cat_results": "stack", "use_buffers": False}
    batches = [batch.reshape(-1, 10) for batch in collect(operator, num_batches=2, **options)]
    assert (~batches[1]["is_init"][:, 0]).sum() > 3
    buffer = make_buffer(SamplerWithoutReplacement(), 4)
    for batch in batches:
        estimated = estimate(batch, operator.get_value_operator())
        assert_close(estimated["state_value"], batch["state_value"], **EXACT)
        buffer.extend(estimated)
    ratios: list[float] = []
    for minibatch in buffer:
        term = loss(minibatch)
        ratios.append(float(term["max_ratio"]))
        total = term["loss_objective"] + term["loss_critic"] + term["loss_entropy"]
        total.backward()
    assert ratios == pytest.approx([1.0] * 3, abs=1e-8)
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    theta = operator.get_policy_operator()[0].cell.theta
    assert theta.grad.any()


# slices


def sliced(batches: list[Any], sampler: type[Sampler], ndim: int, options: Any) -> Any:
    """A buffer of single steps, of shape `[90]` or `[3, 30]`, that gives slices."""
    options = {"traj_key": ("collector", "traj_ids"), "strict_length": False} | options
    buffer: Any = TensorDictReplayBuffer(
        storage=LazyTensorStorage(90, ndim=ndim), sampler=sampler(**options), batch_size=24
    )
    if ndim == 1:
        for batch in batches:
            buffer.extend(batch.reshape(-1))
    else:
        buffer.extend(torch.cat(batches, 1))
    return buffer


# samplers of slices, flat and two-dimensional storages, and what is fixed of the slices
every_way = pytest.mark.parametrize(
    "how",
    [
        (SliceSampler, 1, {"slice_len": 4}),
        (SliceSampler, 2, {"num_slices": 4}),
        (SliceSamplerWithoutReplacement, 1, {"num_slices": 4}),
        (SliceSamplerWithoutReplacement, 2, {"slice_len": 4}),
    ],
)


@every_way
def test_slices_of_stored_memories_are_exact(how: Any) -> None:
    policy = make_policy(make_memory(state="stored"))
    buffer = sliced(collect(policy), *how)
    mid_episode = 0
    for _ in range(5):
        sample = buffer.sample()
        assert_close(replay(policy[0], sample)["features"], sample["features"], **EXACT)
        mid_episode += int((sample["is_init"].squeeze(-1) & sample["memory"].any(-1).any(-1)).sum())
    assert mid_episode > 2


@every_way
@pytest.mark.parametrize("burn_in", [0, 2])
def test_slices_may_start_empty(how: Any, burn_in: int) -> None:
    policy = make_policy(make_memory(state="zero", burn_in=burn_in))
    buffer = sliced(collect(policy), *how)
    sample = buffer.sample()
    sample["observation"] = x = sample["observation"].requires_grad_()
    with set_recurrent_mode(True):
        y = policy[0](sample.exclude("features"))["features"]
    # each slice by hand, from nothing
    starts = sample["is_init"].flatten().nonzero().flatten().tolist()
    outputs: list[Tensor] = []
    for start, end in zip(starts, [*starts[1:], len(sample)], strict=True):
        memory = None
        for t in range(start, end):
            index = sample["theta_index"][t]
            output, memory, _ = policy[0].cell.step(x[t].detach(), memory, index)
            outputs.append(output)
    assert_close(y, torch.stack(outputs), **EXACT)
    assert not torch.allclose(y, sample["features"])

    (gradient,) = torch.autograd.grad(y.sum(), x)
    age = torch.arange(len(x)) - torch.tensor(starts)[sample["is_init"].flatten().cumsum(0) - 1]
    assert torch.equal(gradient.any(-1), age >= burn_in)


@every_way
def test_lean_sequences_refuse_slices(how: Any) -> None:
    policy = make_policy()
    buffer = sliced(collect(policy), *how)
    message = r"parts of sequences, or joined ones.*SliceSampler\) build .* state='stored'.*'zero'"
    with pytest.raises(ValueError, match=message):
        replay(policy[0], buffer.sample())


@pytest.mark.parametrize("ndim", [1, 2])
def test_lean_sequences_refuse_single_steps(ndim: int) -> None:
    """What a sampler of steps gives is no sequence, though it may look like one."""
    policy = make_policy()
    buffer: Any = TensorDictReplayBuffer(storage=LazyTensorStorage(90, ndim=ndim), batch_size=24)
    buffer.extend(torch.cat(collect(policy), 1) if ndim == 2 else collect(policy)[0].reshape(-1))
    with pytest.raises(ValueError, match="parts of sequences, or joined ones"):
        replay(policy[0], buffer.sample())
