"""Lean rollouts: rows know the memory with which they started, and nobody stacks one per step."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.envs import (
    ParallelEnv,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    check_env_specs,
)

from tests.modules._helpers import (
    EXACT,
    STEP,
    EnvFactory,
    WalkEnv,
    collect,
    make_env,
    make_memory,
    make_policy,
    replay,
)
from torchrl_shm.envs import WindEnv
from torchrl_shm.modules import SHMModule
from torchrl_shm.modules.lean import rebuild_start

ADVICE = r"whole sequences as the collector made them.*state='stored' \(exact.*state='zero'"


def assert_replayed(module: Any, batches: list[Any]) -> None:
    """Recurrent mode repeats what was collected, from rows that carry no per-step memory."""
    for batch in batches:
        keys = set(batch.keys(True, True))
        assert not keys & {"memory", ("next", "memory"), ("next", "memory_lean_index")}
        features = batch["features"]
        tolerance = EXACT if features.dtype == torch.float64 else STEP
        assert_close(replay(module, batch)["features"], features, **tolerance)


def starts(batches: list[Any]) -> Tensor:
    """Whether rows start with a reset."""
    return torch.stack([batch["is_init"][..., 0, 0] for batch in batches])


# collectors


@pytest.mark.parametrize("env_device", ["cpu", None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device": "cpu"},
        {"storing_device": "cpu"},
        {"policy_device": "cpu"},
        {"env_device": "cpu"},
        {"use_buffers": False},
        {"compact_obs": True},
        {"return_same_td": True},
        {"track_traj_ids": False},
    ],
    ids=str,
)
def test_collector(options: dict[str, Any], env_device: str | None) -> None:
    policy = make_policy()
    batches = collect(policy, WalkEnv(device=env_device), **options)
    assert starts(batches).sum(1).tolist() == [3, 1, 0]
    assert_replayed(policy[0], batches)


def test_what_carries_the_row_start() -> None:
    first, second, _ = collect(make_policy(), num_steps=9)
    assert first["memory_lean"].shape == (3, 9, 2)
    assert first["memory_lean"].dtype == torch.float64
    assert first["memory_lean_index"].shape == (3, 9, 4)
    assert first["memory_lean_index"].dtype == torch.int64
    assert not first["memory_lean"].any()
    clock, offset, is_init, size = second["memory_lean_index"].unbind(-1)
    assert (size == 16).all()
    assert torch.equal(clock - clock[:, :1], torch.arange(9).expand(3, 9))
    assert torch.equal(offset, torch.arange(9).expand(3, 9))
    assert torch.equal(is_init.bool(), second["is_init"].squeeze(-1))
    # rows of one environment follow each other, those of others are far away
    assert torch.equal(
        second["memory_lean_index"][:, 0, 0], first["memory_lean_index"][:, -1, 0] + 1
    )
    assert clock.diff(dim=0).min() > 2**32


def test_the_memory_that_is_rebuilt_is_the_one_that_was() -> None:
    policy = make_policy()
    memory = torch.zeros(3, 4, 4, dtype=torch.float64)
    for batch in collect(policy, num_batches=4):
        is_init = batch["is_init"].squeeze(-1)
        rebuilt = rebuild_start(batch["memory_lean"], batch["memory_lean_index"], is_init, (4, 4))
        expected = torch.where(is_init[:, 0, None, None], 0, memory)
        assert_close(rebuilt, expected, **EXACT)
        with torch.no_grad():
            _, memory, _ = policy[0].cell(
                batch["observation"], memory, is_init, batch["theta_index"]
            )


def test_single_precision() -> None:
    policy = make_policy(dtype=torch.float32)
    batches = collect(policy, WalkEnv(dtype=torch.float32))
    assert batches[0]["memory_lean"].dtype == torch.float32
    assert_replayed(policy[0], batches)


@pytest.mark.parametrize(
    ("memory_size", "num_steps"),
    [(3, 10), (3, 30), (5, 10), (4, 16), (4, 7), (7, 1), (1, 6), (4, 2)],
    ids=str,
)
def test_any_size_of_memory_and_row(memory_size: int, num_steps: int) -> None:
    policy = make_policy(make_memory(memory_size))
    batches = collect(policy, num_steps=num_steps, num_batches=5)
    width = math.ceil(memory_size**2 / num_steps)
    assert batches[0]["memory_lean"].shape == (3, num_steps, width)
    assert not starts(batches).all()
    assert_replayed(policy[0], batches)


def test_wind_with_episodes_that_end_in_mid_row() -> None:
    memory = SHMModule(2, 6, 5, num_theta=7, in_key="observation", out_key="features")
    policy = make_policy(memory, torch.float32)
    batches = collect(policy, WindEnv(4, max_steps=7, seed=0))
    assert starts(batches).all(1).tolist() == [True, False, False]
    assert batches[1]["is_init"][:, 4].all()
    assert_replayed(memory, batches)


@pytest.mark.parametrize("num_envs", [None, 1])
def test_a_single_environment(num_envs: int | None) -> None:
    policy = make_policy()
    batches = collect(policy, WalkEnv(num_envs), num_batches=5)
    assert batches[0].shape == ((10,) if num_envs is None else (1, 10))
    assert not starts(batches).all()
    assert_replayed(policy[0], batches)


@pytest.mark.parametrize("num_envs", [None, 3])
def test_around_a_batch_of_environments(num_envs: int | None) -> None:
    policy = make_policy()
    env = SerialEnv(2, EnvFactory(num_envs=num_envs))
    batches = collect(policy, env, num_batches=4)
    assert batches[0].shape == ((2, 10) if num_envs is None else (2, 3, 10))
    assert not starts(batches).all()
    assert_replayed(policy[0], batches)
    # any order, and any number of batch dimensions
    rows = torch.cat(batches).reshape(-1, 10)
    assert_replayed(policy[0], [rows[torch.randperm(len(rows))]])


@pytest.mark.slow
@pytest.mark.parametrize("sync", [True, False])
def test_worker_processes(sync: bool) -> None:
    policy = make_policy()
    options: Any = {"cat_results": "stack"} if sync else {}
    batches = collect(
        policy, EnvFactory(), num_lanes=6 if sync else 3, num_batches=4,
        backend="process", num_collectors=2, sync=sync, **options,
    )  # fmt: skip
    assert batches[0].shape == ((2, 3, 10) if sync else (3, 10))
    assert not starts(batches).all()
    assert_replayed(policy[0], batches)


def test_a_second_collector_starts_its_rows_afresh() -> None:
    policy = make_policy()
    env = make_env(policy)
    for num_steps in (10, 7):
        collector = Collector(
            env, policy, frames_per_batch=3 * num_steps, total_frames=9 * num_steps,
            auto_register_policy_transforms=True,
        )  # fmt: skip
        batches = [batch.clone() for batch in collector]
        collector.shutdown(close_env=False)
        assert (batches[0]["memory_lean_index"][..., 1] == torch.arange(num_steps)).all()
        assert batches[0]["memory_lean"].shape[1] == num_steps
        assert_replayed(policy[0], batches)


def test_a_reset_of_the_collector() -> None:
    policy = make_policy()
    collector = Collector(
        WalkEnv(), policy, frames_per_batch=30, auto_register_policy_transforms=True
    )
    iterator = iter(collector)
    batches = [next(iterator).clone() for _ in range(2)]
    collector.reset()
    batches += [next(iterator).clone() for _ in range(2)]
    collector.shutdown()
    assert starts(batches)[2].all()
    assert_replayed(policy[0], batches)


def test_reset_at_each_iteration() -> None:
    policy = make_policy()
    batches = collect(policy, reset_at_each_iter=True)
    assert starts(batches).all()
    assert_replayed(policy[0], batches)


@pytest.mark.parametrize("traj_format", ["padded", "cat"])
def test_whole_trajectories(traj_format: str) -> None:
    policy = make_policy()
    batches = collect(policy, trajs_per_batch=4, traj_format=traj_format, num_batches=4)
    assert starts(batches).all()
    for batch in batches:
        features = replay(policy[0], batch)["features"]
        mask = slice(None)
        if traj_format == "padded":
            mask = batch["collector", "mask"]
            assert not mask.all()
        assert_close(features[mask], batch["features"][mask], **EXACT)


@pytest.mark.parametrize("stop", [True, False])
def test_rollout(stop: bool) -> None:
    """Without a collector rows start with a reset, so nothing needs to be carried."""
    policy = make_policy()
    env = make_env(policy)
    data = env.rollout(12, policy, break_when_any_done=stop)
    assert data.shape == (3, 4 if stop else 12)
    assert "memory_lean_index" not in data.keys()
    assert_close(replay(policy[0], data)["features"], data["features"], **EXACT)


def test_a_rollout_cannot_go_on_without_its_memory() -> None:
    policy = make_policy()
    env = make_env(policy, endless=True)
    last = env.step_mdp(env.rollout(5, policy)[:, -1])
    with pytest.raises(KeyError, match="'memory' is missing in the middle of an episode"):
        env.rollout(5, policy, tensordict=last, auto_reset=False)


@pytest.mark.filterwarnings("ignore:Nested TransformedEnvs:UserWarning")
@pytest.mark.parametrize("env_device", ["cpu", None])
@pytest.mark.parametrize("of", ["collector", "environment"])
def test_a_limit_of_steps(of: str, env_device: str | None) -> None:
    """The collector's own limit wraps the environment after it has registered itself there."""
    policy = make_policy()
    env: Any = WalkEnv(device=env_device, endless=True)
    options: dict[str, Any] = {"max_frames_per_traj": 4}
    if of == "environment":
        env, options = TransformedEnv(env, StepCounter(4)), {}
    batches = collect(policy, env, **options)
    assert batches[1]["is_init"][:, 2].all()
    assert not starts(batches)[1].any()
    assert_replayed(policy[0], batches)


def test_a_copy_of_the_environment_is_not_the_collectors() -> None:
    policy = make_policy()
    collector = Collector(
        WalkEnv(), policy, frames_per_batch=30, auto_register_policy_transforms=True
    )
    batches = [next(iter(collector)).clone()]
    transform: Any = collector.env.transform
    copy = TransformedEnv(WalkEnv(), transform.clone())
    data = copy.rollout(3, policy)
    assert "memory_lean_index" not in data.keys()
    assert_close(replay(policy[0], data)["features"], data["features"], **EXACT)
    batches.append(next(iter(collector)).clone())
    collector.shutdown()
    assert_replayed(policy[0], batches)


# how much is stacked


def leaves(data: Any) -> dict[Any, Tensor]:
    return dict(data.items(True, True))


@pytest.mark.parametrize("state", ["lean", "zero"])
def test_no_leaf_holds_a_memory_per_step(state: Any) -> None:
    size, num_steps = 16, 32
    policy = make_policy(make_memory(size, state=state))
    options: dict[str, Any]
    for options in ({}, {"device": "cpu"}, {"storing_device": "cpu"}):
        batches = collect(policy, num_steps=num_steps, num_batches=2, **options)
        for batch in batches:
            for key, leaf in leaves(batch).items():
                assert leaf.shape[:2] == (3, num_steps)
                assert leaf[0, 0].numel() <= size**2 // num_steps, key
                # no view of something larger either
                assert leaf.untyped_storage().nbytes() <= 8 * 3 * size**2, key


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_row() -> None:
    """In a process of its own, whose allocator gives back what is freed."""
    code = """
import resource, sys
import torch
from tests.modules._helpers import WalkEnv, collect, make_memory, make_policy
torch.set_num_threads(1)
num_steps = int(sys.argv[1])
policy = make_policy(make_memory(128))
collect(policy, WalkEnv(16), num_steps=16, num_batches=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
collect(policy, WalkEnv(16), num_steps=num_steps, num_batches=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

    def growth(num_steps: int) -> float:
        command = [sys.executable, "-W", "ignore", "-c", code, str(num_steps)]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        root = Path(__file__).parents[2]
        result = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        return int(result.stdout.split()[-1]) / 1024

    # a memory per step would be 2048 MB, and several times that at the peak
    assert growth(1024) - growth(16) < 300


# what is refused


def test_buffers_are_refused() -> None:
    message = r"use_buffers=True\), which would hold the memory 'memory' of every step; pass use_bu"
    with pytest.raises(RuntimeError, match=message):
        collect(make_policy(), use_buffers=True)
    with pytest.raises(RuntimeError, match=message):
        collect(make_policy(make_memory(state="zero")), use_buffers=True)
    collect(make_policy(make_memory(state="stored")), use_buffers=True)


@pytest.mark.parametrize("batched", [SerialEnv, ParallelEnv])
def test_workers_of_a_batched_environment_are_refused(batched: Any) -> None:
    message = r"cannot live in the workers of a SerialEnv or ParallelEnv.*TransformedEnv\(Parallel"
    with pytest.raises(RuntimeError, match=message):
        batched(2, EnvFactory(policy=make_policy()))


def test_workers_of_a_batched_environment_may_store() -> None:
    policy = make_policy(make_memory(state="stored"))
    for batch in collect(policy, SerialEnv(2, EnvFactory(policy=policy))):
        assert_close(replay(policy[0], batch)["features"], batch["features"], **EXACT)


class Stepper:
    """Something that steps the environment otherwise than row by row."""

    frames_per_batch = 10


def test_other_collectors_are_refused() -> None:
    env = make_env(make_policy())
    stepper = Stepper()
    env.register_collector(stepper)
    with pytest.raises(RuntimeError, match=r"Stepper collects no sequences.*sto"):
        env.rollout(3, make_policy())


@pytest.fixture
def row() -> tuple[Any, Any]:
    """A policy and rows that start in mid-episode."""
    policy = make_policy()
    batch = collect(policy, WalkEnv(endless=True))[1]
    return policy[0], batch


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (
            lambda b: b[:, 3:],
            "3 of 3 sequences start in mid-episode, but their first steps",
        ),
        (
            lambda b: b[:, :6],
            "3 of 3 sequences start in mid-episode, but their first steps",
        ),
        (lambda b: b[:, ::2], "parts of sequences, or joined ones"),
        (lambda b: b.flip(1), "parts of sequences, or joined ones"),
        (
            lambda b: b[:, torch.tensor([0, 1, 2, 4, 3, 5, 6, 7, 8, 9])],
            "parts of sequences, or joined ones",
        ),
        (lambda b: b.reshape(-1), "parts of sequences, or joined ones"),
        (lambda b: torch.cat([b[:1], b[1:2]], 1), "parts of sequences, or joined ones"),
        (lambda b: torch.cat([b, b], 1), "parts of sequences, or joined ones"),
        (lambda b: b.transpose(0, 1), "parts of sequences, or joined ones"),
    ],
    ids=["head", "tail", "strided", "flipped", "shuffled", "flat", "joined", "twice", "time first"],
)
def test_what_are_no_rows(row: tuple[Any, Any], cut: Any, message: str) -> None:
    module, batch = row
    with pytest.raises(ValueError, match=f"{message}.*{ADVICE}"):
        replay(module, cut(batch))


def test_flags_of_slices_are_seen(row: tuple[Any, Any]) -> None:
    """`SliceSampler` sets `is_init` where a slice starts; that is no reset of the memory."""
    module, batch = row
    batch["is_init"][1, 4] = True
    with pytest.raises(ValueError, match=f"parts of sequences, or joined ones.*{ADVICE}"):
        replay(module, batch)


def test_a_cut_that_leaves_the_start_is_served() -> None:
    policy = make_policy(make_memory(2))
    batch = collect(policy, WalkEnv(endless=True))[1]
    assert_replayed(policy[0], [batch[:, :5], batch[:, :4]])


def test_consecutive_rows_of_one_environment_may_be_joined() -> None:
    policy = make_policy()
    batches = collect(policy, num_batches=4)
    assert_replayed(policy[0], [torch.cat(batches[1:], 1)])


def test_rows_that_start_with_a_reset_need_nothing() -> None:
    policy = make_policy()
    batch = collect(policy)[0]
    assert_replayed(policy[0], [batch[:, :3], batch.exclude("memory_lean_index", "memory_lean")])


@pytest.mark.parametrize("key", ["memory_lean", "memory_lean_index"])
def test_a_missing_half(row: tuple[Any, Any], key: str) -> None:
    module, batch = row
    with pytest.raises(KeyError, match="3 of 3 sequences start in mid-episode"):
        replay(module, batch.exclude(key))


def test_a_row_start_of_another_precision(row: tuple[Any, Any]) -> None:
    module, batch = row
    batch["memory_lean"] = batch["memory_lean"].half()
    with pytest.raises(TypeError, match=r"memory is torch\.float16, expected torch\.float64"):
        replay(module, batch)


def test_a_stale_value_does_not_pass_the_reset_at_the_start() -> None:
    policy = make_policy()
    batch = collect(policy)[0]
    batch["memory_lean"] = torch.full_like(batch["memory_lean"], torch.nan)
    assert_replayed(policy[0], [batch])


# the environment


def test_specs_tell_what_is_in_the_data() -> None:
    policy = make_policy()
    env = make_env(policy)
    assert {"memory", "theta_index", "memory_lean"} <= set(env.state_spec.keys())
    assert env.state_spec["memory"].shape == (3, 4, 4)
    fake = env.fake_tensordict()
    assert "memory" not in fake.keys()
    assert "memory" not in fake["next"].keys()


def test_the_environment_can_be_checked() -> None:
    memory = make_memory(state="stored")
    check_env_specs(make_env(make_policy(memory)))


def test_resets_prime_zeros() -> None:
    env = make_env(make_policy())
    data = env.reset()
    assert data["memory"].shape == (3, 4, 4)
    assert not data["memory"].any()
    assert data["is_init"].all()
    assert data["theta_index"].shape == (3,)


def test_rows_of_another_memory_size_are_refused() -> None:
    batch = collect(make_policy(), num_steps=9)[1]
    with pytest.raises(ValueError, match="carry a memory of 16 floats, this module's has 9"):
        rebuild_start(
            batch["memory_lean"], batch["memory_lean_index"], batch["is_init"].squeeze(-1), (3, 3)
        )
