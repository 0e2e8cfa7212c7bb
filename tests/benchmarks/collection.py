"""Time of a step of collection: by TorchRL's `Collector`, and by `SteppingCollector`.

python -m tests.benchmarks.collection
python -m tests.benchmarks.collection --num-envs 16 --rounds 40

Environment, transforms and policy are those of a recipe; the first row is the environment alone.
First both are compared, entry by entry. Times are CPU time of one thread, medians over rounds in
which all take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, TransformedEnv

from tests.benchmarks._measure import number, table, wait_until_idle
from torchrl_shm import SHMModule
from torchrl_shm.envs.popgym import PositionOnlyCartPoleEnv, RepeatPreviousEnv
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training.finite import FiniteSteps
from torchrl_shm.training.stepping import FiniteRewardSum, SteppingCollector

STEPS = 52
ENVS: dict[str, Callable[..., EnvBase]] = {
    "Repeat Previous, episodes end together": RepeatPreviousEnv,
    "CartPole, episodes end one by one": PositionOnlyCartPoleEnv,
}
KINDS: dict[str, type[Collector]] = {
    "`Collector`": Collector,
    "`SteppingCollector`": SteppingCollector,
}


def bare_rounds(env: EnvBase, num_steps: int) -> Iterator[float]:
    """Microseconds of a step with actions that are drawn in advance, round by round."""
    data = env.reset()
    actions = [env.action_spec.rand() for _ in range(num_steps)]
    while True:
        start = time.process_time()
        for action in actions:
            _, data = env.step_and_maybe_reset(data.set("action", action))
        yield (time.process_time() - start) / num_steps * 1e6


def make_collector(kind: type[Collector], env: EnvBase, num_batches: int) -> Collector:
    """A collector as the recipe's, but of a given environment."""
    torch.manual_seed(0)
    policy: Any = get_behavior(make_actor_critic(env, SHMModule))
    transformed = TransformedEnv(env, FiniteSteps())
    transformed.append_transform(FiniteRewardSum())
    frames = STEPS * env.batch_size[0]
    options: dict[str, Any] = {
        "frames_per_batch": frames,
        "total_frames": num_batches * frames,
        "device": "cpu",
        "track_traj_ids": False,
        "auto_register_policy_transforms": True,
    }
    return kind(transformed, policy, **options)


def collected_rounds(collector: Collector) -> Iterator[float]:
    """Microseconds of a step of collection, round by round."""
    batches = iter(collector)
    while True:
        start = time.process_time()
        next(batches)
        yield (time.process_time() - start) / STEPS * 1e6


def check_same(make_env: Callable[..., EnvBase], num_envs: int) -> None:
    """Raise unless both kinds of collectors give the same data."""
    batches: list[list[TensorDictBase]] = [
        list(make_collector(kind, make_env(num_envs, seed=0), 2)) for kind in KINDS.values()
    ]
    for expected, batch in zip(*batches, strict=True):
        for key in set(expected.keys(True, True)) | set(batch.keys(True, True)):
            if not torch.equal(expected[key], batch[key]):
                raise AssertionError(f"{key} differs")


def main() -> None:
    """Compare, measure and print one table per environment."""
    parser = argparse.ArgumentParser(description="Time of a step of collection.")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, make_env in ENVS.items():
        check_same(make_env, options.num_envs)
        bare = bare_rounds(make_env(options.num_envs, seed=0), STEPS)
        collected = {
            kind: collected_rounds(
                make_collector(cls, make_env(options.num_envs, seed=0), options.rounds + 2)
            )
            for kind, cls in KINDS.items()
        }
        wait_until_idle(10)
        rounds = [
            [next(bare), *(next(times) for times in collected.values())]
            for _ in range(options.rounds + 1)
        ]
        # the first round warms up
        alone, *times = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
        header = ["", "µs", "ratio"]
        rows = [["environment alone", number(alone), ""]]
        rows += [
            [kind, number(step), f"{step / times[0]:.2f}"]
            for kind, step in zip(KINDS, times, strict=True)
        ]
        print(f"\n{name}, {options.num_envs} environments\n\n{table(header, rows)}", flush=True)


if __name__ == "__main__":
    main()
