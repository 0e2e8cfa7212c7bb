"""Lean rollouts: sequences carry the memory they started with, and none is stacked per step."""

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
from torchrl.envs import ParallelEnv, SerialEnv, StepCounter, TransformedEnv, check_env_specs

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

ADVICE = r"whole sequences as the collector made them.*state='stored' \(exact.*state='zero'"


def assert_replayed(module: Any, batches: list[Any]) -> None:
    """Recurrent mode repeats what was collected, without a memory per step."""
    for batch in batches:
        keys = set(batch.keys(True, True))
        assert not keys & {"memory", ("next", "memory")}
        features = batch["features"]
        tolerance = EXACT if features.dtype == torch.float64 else STEP
        assert_close(replay(module, batch)["features"], features, **tolerance)


def starts(batches: list[Any]) -> Tensor:
    """Whether sequences start with a reset."""
    return torch.stack([batch["is_init"][..., 0, 0] for batch in batches])


# collectors


@pytest.mark.parametrize(
    ("options", "env_device"),
    [
        ({}, "cpu"),
        ({"device": "cpu"}, None),
        ({"device": "cpu"}, "cpu"),
        ({}, None),
        ({"storing_device": "cpu"}, None),
        ({"policy_device": "cpu"}, None),
        ({"env_device": "cpu"}, None),
        ({"use_buffers": False}, "cpu"),
        ({"compact_obs": True}, "cpu"),
        ({"return_same_td": True}, "cpu"),
        ({"track_traj_ids": False}, "cpu"),
    ],
    ids=str,
)
def test_collector(options: dict[str, Any], env_device: str | None) -> None:
    policy = make_policy()
    batches = collect(policy, WalkEnv(device=env_device), **options)
    assert starts(batches).sum(1).tolist() == [3, 1, 0]
    assert_replayed(policy[0], batches)


def test_what_carries_the_start() -> None:
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
    # sequences of one environment follow each other, those of others are far away
    assert torch.equal(
        second["memory_lean_index"][:, 0, 0], first["memory_lean_index"][:, -1, 0] + 1
    )
    assert clock.diff(dim=0).min() > 2**32


@pytest.mark.parametrize(
    ("memory_size", "num_steps"), [(3, 30), (5, 10), (4, 16), (4, 7), (7, 1), (1, 6)], ids=str
)
def test_any_size_of_memory_and_sequence(memory_size: int, num_steps: int) -> None:
    policy = make_policy(make_memory(memory_size))
    batches = collect(policy, num_steps=num_steps, num_batches=5)
    width = math.ceil(memory_size**2 / num_steps)
    assert batches[0]["memory_lean"].shape == (3, num_steps, width)
    assert not starts(batches).all()
    assert_replayed(policy[0], batches)


@pytest.mark.parametrize(
    ("env", "shape"),
    [
        (WalkEnv(None), (10,)),
        (WalkEnv(1), (1, 10)),
        (SerialEnv(2, EnvFactory(num_envs=None)), (2, 10)),
        (SerialEnv(2, EnvFactory(num_envs=3)), (2, 3, 10)),
    ],
    ids=["one", "batch of one", "serial", "serial of batches"],
)
def test_batches_of_environments(env: Any, shape: tuple[int, ...]) -> None:
    policy = make_policy()
    batches = collect(policy, env, num_batches=5)
    assert batches[0].shape == shape
    assert not starts(batches).all()
    assert_replayed(policy[0], batches)
    # any order, and any number of batch dimensions
    flat = torch.cat([batch.reshape(-1, 10) for batch in batches])
    assert_replayed(policy[0], [flat[torch.randperm(len(flat))]])


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


def test_a_second_collector_starts_its_sequences_afresh() -> None:
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


def test_resets_of_the_collector() -> None:
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
    """Without a collector sequences start with a reset, so nothing needs to be carried."""
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
@pytest.mark.parametrize(
    ("of", "env_device"), [("collector", "cpu"), ("collector", None), ("environment", "cpu")]
)
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
def test_peak_memory_does_not_grow_with_the_sequence() -> None:
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
    """Something that steps the environment but collects no sequences."""

    frames_per_batch = 10


def test_other_collectors_are_refused() -> None:
    env = make_env(make_policy())
    stepper = Stepper()
    env.register_collector(stepper)
    with pytest.raises(RuntimeError, match=r"Stepper collects no sequences.*sto"):
        env.rollout(3, make_policy())


@pytest.fixture
def collected() -> tuple[Any, Any]:
    """A memory, and sequences that start in mid-episode."""
    policy = make_policy()
    return policy[0], collect(policy, WalkEnv(endless=True))[1]


def flag(batch: Any) -> Any:
    """`SliceSampler` sets `is_init` at the start of each slice; the memory was not reset there."""
    batch["is_init"][1, 4] = True
    return batch


CUTS: dict[str, Any] = {
    "head": lambda b: b[:, 3:],
    "tail": lambda b: b[:, :6],
    "strided": lambda b: b[:, ::2],
    "flipped": lambda b: b.flip(1),
    "shuffled": lambda b: b[:, torch.tensor([0, 1, 2, 4, 3, 5, 6, 7, 8, 9])],
    "flat": lambda b: b.reshape(-1),
    "joined": lambda b: torch.cat([b[:1], b[1:2]], 1),
    "twice": lambda b: torch.cat([b, b], 1),
    "time first": lambda b: b.transpose(0, 1),
    "flagged": flag,
}


@pytest.mark.parametrize("name", CUTS)
def test_parts_of_sequences_are_refused(collected: tuple[Any, Any], name: str) -> None:
    module, batch = collected
    message = "parts of sequences, or joined ones"
    if name in ("head", "tail"):
        message = "3 of 3 sequences start in mid-episode, but their first steps"
    with pytest.raises(ValueError, match=f"{message}.*{ADVICE}"):
        replay(module, CUTS[name](batch))


def test_parts_and_joined_sequences_that_are_served() -> None:
    # what is cut off holds no share of the memory
    policy = make_policy(make_memory(2))
    batch = collect(policy, WalkEnv(endless=True))[1]
    assert_replayed(policy[0], [batch[:, :5], batch[:, :4]])
    # consecutive sequences of one environment
    policy = make_policy()
    first, *others = collect(policy, num_batches=4)
    assert_replayed(policy[0], [torch.cat(others, 1)])
    # a reset at the start, past which no value comes either
    bare = first.exclude("memory_lean_index", "memory_lean")
    stale = first.clone().set("memory_lean", torch.full_like(first["memory_lean"], torch.nan))
    assert_replayed(policy[0], [first[:, :3], bare, stale])


def test_two_memories_of_one_key_are_refused() -> None:
    """Layers with the names of the defaults would read and write one state."""
    memory = make_memory()
    env = TransformedEnv(WalkEnv())
    for key in ("memory", "second"):
        env.append_transform(make_memory(memory_key=key).make_tensordict_primer())
    assert {"memory_role", "second_role"} <= set(env.observation_spec.keys())
    env.append_transform(memory.make_tensordict_primer())
    with pytest.raises(ValueError, match=r"has an entry 'memory' already: give .*memory_key"):
        env.reset()


@pytest.mark.parametrize("calibration", ["random", "neural"])
def test_a_memory_that_a_policy_runs_twice(calibration: Any) -> None:
    """Both runs start from the same memory, and are equal where nothing is drawn."""
    module = make_memory(calibration=calibration)
    env: Any = TransformedEnv(WalkEnv())
    for _ in range(2):
        env.append_transform(module.make_tensordict_primer())
    if calibration == "neural":
        assert not env.reset()["memory"].any()
    else:
        with pytest.raises(ValueError, match="runs twice in each step of the policy"):
            env.reset()


def test_entries_that_do_not_fit(collected: tuple[Any, Any]) -> None:
    module, batch = collected
    for key in ("memory_lean", "memory_lean_index"):
        with pytest.raises(KeyError, match="3 of 3 sequences start in mid-episode"):
            replay(module, batch.exclude(key))
    with pytest.raises(
        ValueError, match="carry a memory of another size than this module's 9 floats"
    ):
        replay(make_memory(3), batch)
    with pytest.raises(TypeError, match=r"memory is torch\.float16, expected torch\.float64"):
        replay(module, batch.set("memory_lean", batch["memory_lean"].half()))


# the environment


def test_specs_and_resets_tell_what_is_in_the_data() -> None:
    env = make_env(make_policy())
    assert {"memory", "theta_index", "memory_lean"} <= set(env.state_spec.keys())
    assert env.state_spec["memory"].shape == (3, 4, 4)
    fake = env.fake_tensordict()
    assert "memory" not in set(fake.keys()) | set(fake["next"].keys())
    data = env.reset()
    assert data["memory"].shape == (3, 4, 4)
    assert not data["memory"].any()
    assert data["is_init"].all()
    assert data["theta_index"].shape == (3,)


def test_the_environment_can_be_checked() -> None:
    memory = make_memory(state="stored")
    check_env_specs(make_env(make_policy(memory)))
