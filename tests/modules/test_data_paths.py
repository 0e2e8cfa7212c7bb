"""Collected data are replayed exactly, whichever way they came and were stored, in every state."""

from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch.testing import assert_close
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    ListStorage,
    TensorDictReplayBuffer,
)
from torchrl.envs import ParallelEnv, SerialEnv
from torchrl.modules import set_recurrent_mode

from tests.modules._helpers import EXACT, EnvFactory, collect, make_memory, make_shared
from torchrl_shm import unroll

STATES = ["lean", "stored", "zero"]


def make(state: Any) -> Any:
    return make_shared(make_memory(8, state=state)).get_policy_operator()


def assert_exact(policy: Any, rollouts: TensorDictBase) -> None:
    """Features, log-probabilities and what came next are those of the steps."""
    rollouts = rollouts.reshape(-1, rollouts.shape[-1])
    memory = policy[0]
    known = torch.ones(rollouts.shape, dtype=torch.bool)
    if memory.state == "zero":
        # up to the first reset the memory of the steps is not known
        known = rollouts["is_init"].squeeze(-1).cumsum(1) > 0
        assert known.any()
    with torch.no_grad(), set_recurrent_mode(True):
        features = memory(rollouts.copy())["features"]
        log_prob = policy.get_dist(rollouts.copy()).log_prob(rollouts["action"])
    assert_close(features[known], rollouts["features"][known], **EXACT)
    assert_close(log_prob[known], rollouts["action_log_prob"][known], **EXACT)
    unrolled = unroll(memory, rollouts)
    assert_close(unrolled["features"], features, **EXACT)
    goes_on = known[:, :-1] & ~rollouts["next", "done"].squeeze(-1)[:, :-1]
    following = unrolled["next", "features"][:, :-1]
    assert_close(following[goes_on], features[:, 1:][goes_on], **EXACT)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "kind",
    [SerialEnv, pytest.param(ParallelEnv, marks=pytest.mark.slow)],
    ids=["serial", "parallel"],
)
def test_batches_of_environments(kind: Any, state: Any) -> None:
    policy = make(state)
    env = kind(2, EnvFactory(num_envs=None))
    for rollouts in collect(policy, env)[1:]:
        assert_exact(policy, rollouts)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_workers(sync: bool, state: Any) -> None:
    policy = make(state)
    options: dict[str, Any] = {"backend": "process", "num_collectors": 2, "use_buffers": False}
    options |= {"sync": True, "cat_results": "stack"} if sync else {"sync": False}
    lanes = 6 if sync else 3
    batches = collect(policy, EnvFactory(), num_lanes=lanes, num_batches=6, **options)
    # each worker's first sequences start with a reset
    for rollouts in batches[2:]:
        assert_exact(policy, rollouts)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage, ListStorage])
def test_storages(storage: Any, state: Any) -> None:
    policy = make(state)
    buffer = TensorDictReplayBuffer(storage=storage(20), batch_size=6)
    for rollouts in collect(policy)[1:]:
        buffer.extend(rollouts)
    for _ in range(3):
        assert_exact(policy, buffer.sample().to_tensordict())
