"""Compare `make_gym_env` with TorchRL's own way to batch environments of gymnasium, on one thread.

python -m tests.benchmarks.gym
python -m tests.benchmarks.gym --only CartPole-v1 --json out.json

A step is `step_and_maybe_reset` with actions drawn beforehand, on both sides; the third column is
gymnasium's SyncVectorEnv without TorchRL. First, ours has to show what SyncVectorEnv shows for
equal seeds and actions. Times are of the CPU, taken in turns, and medians.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torchrl.envs import GymEnv, SerialEnv

from tests.benchmarks._measure import table, write_numbers
from tests.benchmarks.envs import stepper
from torchrl_shm.envs import make_gym_env
from torchrl_shm.torchrl_private import following_seed

CASES = ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"]
BATCHES = [1, 16, 64]
SEED = 3


def sync(id: str, batch: int) -> SyncVectorEnv:
    """Gymnasium's own, which starts new episodes in the same step."""
    makes = [lambda: gymnasium.make(id)] * batch
    return SyncVectorEnv(makes, autoreset_mode=AutoresetMode.SAME_STEP)


def check(id: str, batch: int = 3, steps: int = 100) -> None:
    """Refuse to time what is not the same."""
    env: Any = make_gym_env(id, batch, seed=SEED)
    other = sync(id, batch)
    seeds = [SEED]
    while len(seeds) < batch:
        seeds.append(following_seed(seeds[-1]))
    data, _ = env.reset(), other.reset(seed=seeds)  # pyright: ignore[reportArgumentType]
    for _ in range(steps):
        stepped, data = env.step_and_maybe_reset(env.rand_action(data))
        action = env._action.to_env(stepped["action"].numpy())
        _, reward, terminated, truncated, _ = other.step(action)
        ended = torch.from_numpy(terminated | truncated)
        assert torch.equal(stepped["next", "done"][:, 0], ended), id
        expected = torch.from_numpy(np.asarray(reward, np.float32))
        torch.testing.assert_close(stepped["next", "reward"][:, 0], expected)


def plain(id: str, batch: int) -> Callable[[], None]:
    """Step gymnasium's own."""
    env = sync(id, batch)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(16)]
    state = {"t": 0}

    def step() -> None:
        state["t"] += 1
        env.step(actions[state["t"] % 16])

    return step


def measure(id: str, batch: int, seconds: float) -> dict[str, Any]:
    """Microseconds of one step of one environment, of each, and how many times as fast ours is."""
    torchrl = SerialEnv(batch, lambda: GymEnv(id, categorical_action_encoding=True))
    sides = {
        "ours": stepper(make_gym_env(id, batch, seed=0)),
        "torchrl": stepper(torchrl),
        "gymnasium": plain(id, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(9):
        for name, step in sides.items():
            count, begin = 0, time.process_time()
            while (spent := time.process_time() - begin) < seconds / 9:
                step()
                count += 1
            times[name].append(spent / count / batch * 1e6)
    row: dict[str, Any] = {"task": id, "B": batch, **{x: median(y) for x, y in times.items()}}
    return {**row, "ratio": row["torchrl"] / row["ours"]}


def report(rows: list[dict[str, Any]]) -> str:
    """Make the table."""
    header = ["task", "B", "ours, µs", "TorchRL, µs", "gymnasium alone, µs", "times as fast"]
    cells = [
        [
            row["task"],
            str(row["B"]),
            *(f"{row[x]:.0f}" for x in ("ours", "torchrl", "gymnasium")),
            f"{row['ratio']:.1f}",
        ]
        for row in rows
    ]
    return table(header, cells)


def main() -> None:
    """Parse the arguments, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="comma-separated names")
    parser.add_argument("--seconds", type=float, default=2.0, help="per side")
    parser.add_argument("--json", type=Path, help="write the numbers, and the table beside them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # gymnasium's advice to its own authors
    warnings.simplefilter("ignore")
    names = arguments.only.split(",") if arguments.only else CASES
    for name in names:
        check(name)
    rows = [measure(name, batch, arguments.seconds) for name in names for batch in BATCHES]
    text = report(rows)
    print(text)
    write_numbers(arguments.json, rows, text)


if __name__ == "__main__":
    main()
