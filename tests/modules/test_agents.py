"""Several agents: one memory and one random choice each, in a branch of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import SliceSampler
from torchrl.envs import Compose, InitTracker, SerialEnv, TransformedEnv, check_env_specs
from torchrl.modules import ValueOperator, set_recurrent_mode
from torchrl.modules.utils import get_env_transforms_from_module
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import MultiAgentGAE

from tests.modules._agents import (
    ACTION,
    AGENTS,
    FEATURES,
    FLAGS,
    MEMORY,
    OBSERVED,
    AgentsEnv,
    assert_replayed,
    make,
    make_agents_policy,
)
from tests.modules._helpers import (
    DTYPE,
    EXACT,
    SIZE,
    EnvFactory,
    collect,
    join,
    make_memory,
    replay,
)
from torchrl_shm import unroll
from torchrl_shm.modules import LRU, MemoryModule

STATES = ["lean", "stored", "zero"]
CHOICE = ("agents", "theta_index")
DONE: Any = ["root", "both", "agents"]


# the primer


@pytest.mark.parametrize("done", DONE)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("num_envs", [None, 3])
def test_primer(num_envs: int | None, state: Any, done: Any) -> None:
    module = make(done, state=state)
    agents = (AGENTS,) if num_envs is None else (num_envs, AGENTS)
    for first in ("reset", "specs"):
        env: Any = AgentsEnv(num_envs, done=done)
        env = TransformedEnv(env, get_env_transforms_from_module(module))
        if first == "specs":
            assert env.full_state_spec["agents"].shape == agents
            assert env.full_state_spec[MEMORY].shape == (*agents, 4, 4)
        data = env.reset()
        assert data["agents"].shape == agents
        assert data[MEMORY].shape == (*agents, 4, 4)
        assert not data[MEMORY].any()
        assert data[CHOICE].shape == agents
        if state == "stored":
            check_env_specs(env)


def test_a_primer_of_another_environment() -> None:
    primer = make().make_tensordict_primer()
    for num_envs in (3, 5, None):
        # a clone knows of the environment of its original
        primer = primer.clone()
        env: Any = AgentsEnv(num_envs)
        data = TransformedEnv(env, Compose(InitTracker(), primer)).reset()
        assert data[MEMORY].shape == (*env.batch_size, AGENTS, 4, 4)


def test_a_reset_empties_the_memories_of_the_agents_that_end() -> None:
    module = make("agents")
    env: Any = AgentsEnv(done="agents")
    env = TransformedEnv(env, get_env_transforms_from_module(module))
    data = env.reset()
    policy = make_agents_policy(module)
    one_of_two = False
    for _ in range(12):
        step = policy(data)
        carried = step["next", "agents", "memory"]
        _, data = env.step_and_maybe_reset(step)
        first = data[FLAGS].squeeze(-1)
        assert torch.equal(data[MEMORY], torch.where(first[..., None, None], 0, carried))
        one_of_two |= bool((first[:, 0] != first[:, 1]).any())
    assert one_of_two


# collected data are replayed


@pytest.mark.parametrize("done", DONE)
@pytest.mark.parametrize("state", STATES)
def test_collector(state: Any, done: Any) -> None:
    module = make(done, state=state)
    policy = make_agents_policy(module)
    batches = collect(policy, AgentsEnv(done=done))
    assert_replayed(module, policy, batches)
    assert not any(batch[module.is_init_key][:, 0].all() for batch in batches[1:])
    for batch in batches:
        assert batch["agents"].shape == (3, 10, AGENTS)
        assert batch["next", "agents"].shape == (3, 10, AGENTS)
        assert batch[CHOICE].shape == (3, 10, AGENTS)
        assert not torch.equal(batch[CHOICE][..., 0], batch[CHOICE][..., 1])
        keys = set(batch.keys(True, True))
        stored = {MEMORY, ("next", *MEMORY)}
        assert keys & stored == (stored if state == "stored" else set())
        lean = {("agents", "memory_lean"): 2, ("agents", "memory_lean_index"): 4}
        found = {key: batch[key].shape for key in lean if key in keys}
        shapes = {key: (3, 10, AGENTS, width) for key, width in lean.items()}
        assert found == (shapes if state == "lean" else {})
    if state == "lean":
        clocks = torch.cat([batch["agents", "memory_lean_index"] for batch in batches])[..., 0]
        assert len(clocks.unique()) == clocks.numel()


@pytest.mark.parametrize("state", STATES)
def test_unroll(state: Any) -> None:
    """What came next is right for every agent; they share the ends of their episodes."""
    module = make(state=state, calibration="neural")
    for batch in collect(make_agents_policy(module), AgentsEnv()):
        found = unroll(module, batch)
        alone = make_memory(state="zero", calibration="neural")
        alone.load_state_dict(module.state_dict())
        for agent in range(AGENTS):
            data = TensorDict({"is_init": batch["is_init"]}, batch.shape)
            data["observation"] = batch[OBSERVED][:, :, agent]
            data["next", "observation"] = batch["next", *OBSERVED][:, :, agent]
            data["memory_role"] = batch["agents", "memory_role"][:, :, agent]
            expected = unroll(alone, data)
            # the other one starts empty
            known = batch["is_init"].squeeze(-1).cumsum(1) > 0
            for key in ("features", ("next", "features")):
                branch = ("next", *FEATURES) if key != "features" else FEATURES
                assert_close(found[branch][:, :, agent][known], expected[key][known], **EXACT)


def test_unroll_wants_one_end_for_all_agents() -> None:
    module = make("agents")
    batch = collect(make_agents_policy(module), AgentsEnv(done="agents"))[0]
    with pytest.raises(ValueError, match=r"'is_init'\) resets some agents .* and not others"):
        unroll(module, batch)


@pytest.mark.parametrize("make_env", [EnvFactory(AgentsEnv, num_envs=None), AgentsEnv])
def test_batches_of_environments(make_env: Any) -> None:
    module = make()
    policy = make_agents_policy(module)
    env = SerialEnv(3, make_env) if isinstance(make_env, EnvFactory) else make_env(None)
    assert_replayed(module, policy, collect(policy, env))


@pytest.mark.parametrize("key", [MEMORY, ("agents", "lru", "state")])
@pytest.mark.parametrize("state", STATES)
def test_another_memory(state: Any, key: Any) -> None:
    cell = LRU(SIZE, 6).to(DTYPE)
    module = MemoryModule(cell, in_keys=[OBSERVED, key], out_key=FEATURES, state=state)
    policy = make_agents_policy(module)
    assert_replayed(module, policy, collect(policy, AgentsEnv()))


def test_a_memory_of_all_agents_beside_one_of_each() -> None:
    module = make()
    pool = TensorDictModule(lambda x: x.mean(-2)[..., :SIZE], [FEATURES], ["pooled"])
    common = make_memory(in_key="pooled", out_key="common")
    # TorchRL's own primer does not know which of two reset flags to take
    batches = collect(join(make_agents_policy(module), pool, common), AgentsEnv(done="both"))
    for batch in batches:
        assert batch["memory_lean"].shape == (3, 10, 2)
        assert_close(replay(module, batch)[FEATURES], batch[FEATURES], **EXACT)
        assert_close(replay(common, batch)["common"], batch["common"], **EXACT)


@pytest.mark.parametrize("done", DONE)
def test_rollout(done: Any) -> None:
    module = make(done)
    policy = make_agents_policy(module)
    env: Any = AgentsEnv(done=done)
    env = TransformedEnv(env, get_env_transforms_from_module(module))
    rollout = env.rollout(20, policy, break_when_any_done=False)
    assert rollout[module.is_init_key].flatten(2).any(-1).sum(1).max() > 1
    assert_close(replay(module, rollout)[FEATURES], rollout[FEATURES], **EXACT)


def test_replay_buffer() -> None:
    module = make()
    policy = make_agents_policy(module)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(20), batch_size=5)
    for batch in collect(policy, AgentsEnv()):
        buffer.extend(batch)
    for _ in range(3):
        assert_replayed(module, policy, [buffer.sample()])


@pytest.mark.parametrize("done", DONE)
def test_slices(done: Any) -> None:
    module = make(done, state="stored")
    policy = make_agents_policy(module)
    sampler = SliceSampler(
        slice_len=4, traj_key=("collector", "traj_ids"), init_key=module.is_init_key,
        strict_length=False,
    )  # fmt: skip
    storage = LazyTensorStorage(90, ndim=2)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=24)
    buffer.extend(torch.cat(collect(policy, AgentsEnv(done=done)), 1))
    sample = buffer.sample()
    assert sample.ndim == 1
    assert_close(replay(module, sample)[FEATURES], sample[FEATURES], **EXACT)


@pytest.mark.parametrize("done", DONE)
def test_losses(done: Any) -> None:
    module = make(done)
    policy = make_agents_policy(module)
    value: Any = ("agents", "state_value")
    critic = ValueOperator(nn.Linear(6, 1, dtype=DTYPE), in_keys=[FEATURES], out_keys=[value])
    batch = collect(policy, AgentsEnv(done=done))[-1].refine_names(..., "time")
    root: Any = ("agents",) if done == "agents" else ()
    keys: Any = {key: (*root, key) for key in ("done", "terminated")} | {
        key: ("agents", key) for key in ("reward", "advantage", "value_target")
    }
    both = join(module, critic)
    estimator = MultiAgentGAE(gamma=0.9, lmbda=0.8, value_network=both, shifted=True)
    estimator.set_keys(value=value, **keys)
    with torch.no_grad(), set_recurrent_mode(True):
        data = estimator(batch.exclude(FEATURES))
        assert_close(data[value], critic(batch)[value], **EXACT)
    assert data["agents", "advantage"].shape == (3, 10, AGENTS, 1)
    loss = ClipPPOLoss(policy, critic, loss_critic_type="l2")
    log_prob_key: Any = ("agents", "action_log_prob")
    loss.set_keys(value=value, action=ACTION, sample_log_prob=log_prob_key, **keys)
    terms = loss(data.exclude(FEATURES))
    assert terms["kl_approx"].detach().abs().max() < 1e-12
    terms["loss_objective"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
