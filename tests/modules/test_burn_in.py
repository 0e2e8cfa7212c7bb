"""TorchRL's BurnInTransform: which states it works with, and what it gives there."""

from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch.testing import assert_close
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.transforms import BurnInTransform
from torchrl.modules import set_recurrent_mode

from tests.modules._helpers import DTYPE, EXACT, collect, make_memory, make_policy

BURN_IN = 4


def sample(module: Any, rollouts: TensorDictBase, *, primed: bool = False) -> TensorDictBase:
    """Rollouts as a replay buffer with a burn-in gives them, in their order."""
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(rollouts)), batch_size=3)
    buffer.extend(rollouts)
    if primed:
        buffer.append_transform(module.make_tensordict_primer())
    buffer.append_transform(BurnInTransform([module], burn_in=BURN_IN))
    with set_recurrent_mode(True):
        return buffer[:]


def run(module: Any, data: TensorDictBase) -> torch.Tensor:
    with set_recurrent_mode(True):
        return module(data.copy())["features"]


# in batch 1 an episode starts at the first step after the burn-in
@pytest.mark.parametrize("batch", [1, 2])
def test_stored_is_refreshed_with_the_parameters_of_now(batch: int) -> None:
    module = make_memory(8, state="stored", calibration="neural")
    rollouts = collect(make_policy(module))[batch]
    assert not rollouts["is_init"][:, 0].all()
    # the parameters move on, so what was stored is stale
    with torch.no_grad():
        module.cell.value.weight.mul_(1.5)
    burnt = sample(module, rollouts)
    assert burnt.shape == (3, rollouts.shape[1] - BURN_IN)
    expected = run(module, rollouts)[:, BURN_IN:]
    assert_close(run(module, burnt), expected, **EXACT)
    stale = run(module, rollouts[:, BURN_IN:])
    assert (stale - expected).abs().max() > 1e-3
    # the burn-in is no part of the graph
    assert not burnt["memory"].requires_grad


def test_stored_is_refreshed_where_slices_begin_within_the_burn_in() -> None:
    module = make_memory(8, state="stored", calibration="neural")
    rollouts = collect(make_policy(module))[2]
    # as SliceSampler marks a slice
    rollouts["is_init"][0, 2] = True
    expected = run(module, rollouts)[:, BURN_IN:]
    assert_close(run(module, sample(module, rollouts)), expected, **EXACT)


def test_zero_starts_from_the_burn_in() -> None:
    module = make_memory(8, state="zero", calibration="neural")
    rollouts = collect(make_policy(module))[2]
    burnt = sample(module, rollouts, primed=True)
    expected = run(module, rollouts)[:, BURN_IN:]
    assert_close(run(module, burnt), expected, **EXACT)
    cold = run(module, rollouts[:, BURN_IN:])
    assert (cold - expected).abs().max() > 1e-3
    x = burnt["observation"].requires_grad_()
    (gradient,) = torch.autograd.grad(run(module, burnt).sum(), x)
    assert gradient[:, 0].any()


@pytest.mark.parametrize("primed", [False, True])
def test_lean_rollouts_are_refused(primed: bool) -> None:
    module = make_memory()
    rollouts = collect(make_policy(module))[0]
    with pytest.raises(ValueError, match=r"BurnInTransform.*state='stored'"):
        sample(module, rollouts, primed=primed)


def test_zero_says_how_the_burn_in_gets_its_memory() -> None:
    module = make_memory(state="zero")
    rollouts = collect(make_policy(module))[0]
    with pytest.raises(KeyError, match=r"'memory' in the sampled data: append .*primer\(\)"):
        sample(module, rollouts)


def test_other_passes_leave_the_stored_memories_alone() -> None:
    module = make_memory(state="stored")
    rollouts = collect(make_policy(module))[1]
    before = rollouts["next", "memory"].clone()
    with torch.no_grad(), set_recurrent_mode(True):
        module(rollouts)
    assert torch.equal(rollouts["next", "memory"], before)
    assert before.dtype == DTYPE
