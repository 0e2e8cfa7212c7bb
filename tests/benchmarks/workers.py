"""Frames per second of workers of Ray beside those of processes, in one process, in turns.

python -m tests.benchmarks.workers --json docs/results/scaling/workers.json
python -m tests.benchmarks.workers --from docs/results/scaling/workers.json  # the table alone

Both collect Wind with two workers and the policy of a recipe, and are sent its parameters after
every batch. First both have to give the same data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from tensordict import TensorDictBase

from tests.benchmarks._measure import number, table, wait_until_idle, write_numbers
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import CollectorBackend, RolloutCollector

BACKENDS: tuple[CollectorBackend, ...] = ("multi_sync", "ray")
STEPS = 100


def make_collector(backend: CollectorBackend, num_envs: int) -> RolloutCollector:
    """One as the recipe's; all have the same parameters and seeds."""
    torch.manual_seed(0)
    policy = get_behavior(make_actor_critic(WindEnv(2), SHMModule))
    return RolloutCollector(
        WindEnv, policy, num_envs=num_envs, rollout_length=STEPS, total_frames=10**9,
        backend=backend, num_workers=2, device="cpu",
    )  # fmt: skip


def check_same(one: TensorDictBase, other: TensorDictBase) -> None:
    """Raise unless two batches hold the same data."""
    for key in ("observation", "action", "action_log_prob", ("next", "reward")):
        assert torch.equal(one[key], other[key]), f"{key} differs"


def rounds(collector: RolloutCollector, batches: Iterator[TensorDictBase]) -> Iterator[float]:
    """Frames per second of a batch and of sending parameters, round by round."""
    while True:
        start = time.perf_counter()
        frames = next(batches).numel()
        collector.update_policy()
        yield frames / (time.perf_counter() - start)


def measure(num_envs: int, num_rounds: int) -> dict[str, list[float]]:
    """Frames per second of every round, by backend."""
    collectors = {backend: make_collector(backend, num_envs) for backend in BACKENDS}
    try:
        batches = {backend: iter(collector) for backend, collector in collectors.items()}
        for _ in range(2):
            check_same(*(next(batches[backend]) for backend in BACKENDS))
        timers = {x: rounds(collectors[x], batches[x]) for x in BACKENDS}
        speeds: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
        for _ in range(num_rounds):
            for backend in BACKENDS:
                speeds[backend].append(next(timers[backend]))
    finally:
        for collector in collectors.values():
            collector.close()
    return speeds


def report(found: dict[str, dict[str, list[float]]]) -> str:
    """A row for each number of environments; the ratio is the median of those of the rounds."""
    rows: list[list[str]] = []
    for num_envs, speeds in found.items():
        ratios = [ray / own for own, ray in zip(*(speeds[x] for x in BACKENDS), strict=True)]
        medians = [number(median(speeds[backend])) for backend in BACKENDS]
        rows.append([num_envs, *medians, f"{median(ratios):.2f}"])
    header = ["environments", *(f"`{backend}`, frames per second" for backend in BACKENDS), "ratio"]
    return table(header, rows)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    parser.add_argument("--json", type=Path, help="write the numbers, and the table beside them")
    parser.add_argument("--from", dest="recorded", type=Path, help="numbers to make a table from")
    arguments = parser.parse_args()
    if arguments.recorded:
        path, found = arguments.recorded, json.loads(arguments.recorded.read_text())
    else:
        print(f"others used {wait_until_idle(arguments.wait):.0%}")
        path = arguments.json
        found = {str(envs): measure(envs, arguments.rounds) for envs in arguments.num_envs}
    text = report(found)
    print(text)
    write_numbers(path, found, text)


if __name__ == "__main__":
    main()
