"""Time of an environment's step: alone, below TorchRL's `TransformedEnv`, and below `SteppingEnv`.

python -m tests.benchmarks.collection
python -m tests.benchmarks.collection --num-envs 16 --rounds 40

The environments have the transforms of a recipe's collector and are stepped by TorchRL's
`Collector`; its own time and that of the policy are not counted, but the last column has them.
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
from torchrl_shm.training.stepping import FiniteRewardSum, SteppingEnv

STEPS = 52
ENVS: dict[str, Callable[..., EnvBase]] = {
    "Repeat Previous, episodes end together": RepeatPreviousEnv,
    "CartPole, episodes end one by one": PositionOnlyCartPoleEnv,
}
KINDS: dict[str, type[TransformedEnv]] = {
    "`TransformedEnv`": TransformedEnv,
    "`SteppingEnv`": SteppingEnv,
}


class Stopwatch:
    """Counts the CPU time of a function's calls.

    Args:
        function: what is timed.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.process_time()
        result = self.function(*args)
        self.seconds += time.process_time() - start
        return result


def bare_rounds(env: EnvBase, num_steps: int) -> Iterator[float]:
    """Microseconds of a step with actions that are drawn in advance, round by round."""
    data = env.reset()
    actions = [env.action_spec.rand() for _ in range(num_steps)]
    while True:
        start = time.process_time()
        for action in actions:
            _, data = env.step_and_maybe_reset(data.set("action", action))
        yield (time.process_time() - start) / num_steps * 1e6


def make_collector(kind: type[TransformedEnv], env: EnvBase, num_batches: int) -> Collector:
    """A collector as the recipe's, but of a given environment."""
    torch.manual_seed(0)
    policy: Any = get_behavior(make_actor_critic(env, SHMModule))
    transformed = kind(env, FiniteSteps())
    transformed.append_transform(FiniteRewardSum())
    frames = STEPS * env.batch_size[0]
    options: dict[str, Any] = {
        "frames_per_batch": frames,
        "total_frames": num_batches * frames,
        "device": "cpu",
        "auto_register_policy_transforms": True,
    }
    return Collector(transformed, policy, **options)


def collected_rounds(collector: Collector) -> Iterator[tuple[float, float]]:
    """Microseconds of a step of the environment, and of all that a step takes, round by round."""
    env: Any = collector.env
    watch = Stopwatch(env.step_and_maybe_reset)
    # found before the method of the class
    env.__dict__["step_and_maybe_reset"] = watch
    batches = iter(collector)
    while True:
        watch.seconds, start = 0.0, time.process_time()
        next(batches)
        whole = time.process_time() - start
        yield watch.seconds / STEPS * 1e6, whole / STEPS * 1e6


def check_same(make_env: Callable[..., EnvBase], num_envs: int) -> None:
    """Raise unless both kinds of environments give the same data."""
    batches: list[list[TensorDictBase]] = [
        list(make_collector(kind, make_env(num_envs, seed=0), 2)) for kind in KINDS.values()
    ]
    for expected, batch in zip(*batches, strict=True):
        for key in set(expected.keys(True, True)) | set(batch.keys(True, True)):
            if not torch.equal(expected[key], batch[key]):
                raise AssertionError(f"{key} differs")


def main() -> None:
    """Compare, measure and print one table per environment."""
    parser = argparse.ArgumentParser(description="Time of an environment's step in a collector.")
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
            [(next(bare), 0.0), *(next(times) for times in collected.values())]
            for _ in range(options.rounds + 1)
        ]
        # the first round warms up
        columns = [list(zip(*column, strict=True)) for column in zip(*rounds[1:], strict=True)]
        times = [[statistics.median(values) for values in column] for column in columns]
        header = ["", "step of the environment, µs", "ratio", "whole step, µs"]
        rows = [
            [
                kind,
                number(step),
                f"{step / times[0][0]:.2f}",
                number(whole) if whole else "",
            ]
            for kind, (step, whole) in zip(["alone", *KINDS], times, strict=True)
        ]
        print(f"\n{name}, {options.num_envs} environments\n\n{table(header, rows)}", flush=True)


if __name__ == "__main__":
    main()
