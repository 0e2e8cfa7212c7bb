"""How training with several processes scales: measured with one and two, a model for more.

python -m tests.benchmarks.ranks --json docs/results/scaling/ranks.json
python -m tests.benchmarks.ranks --from docs/results/scaling/ranks.json  # the tables alone

A process is started as `torchrun` would, and runs `recipes/ppo_shm.py env=wind`; frames per second
are those of its `metrics.csv`, the median over updates behind the first two. With one process and
with two, in turns: as many environments and as large a part of a minibatch on every process (weak),
as many altogether (strong), and two runs that know nothing of each other (apart), which is what the
machine gives at best.
First, the first update of two processes has to have a probability ratio of 1. Then two processes
average as many gradients as the recipe has, which gives the time of a message.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import OmegaConf

from tests.benchmarks._measure import table, wait_until_idle, write_numbers
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.configs import PPO
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import LeanClipPPOLoss
from torchrl_shm.training.ranks import average_gradients, join, leave, rank

ROOT = Path(__file__).parents[2]
ENVS = 128
# of a minibatch, as in the recipe
SEQUENCES = PPO().sequences_per_minibatch
RANKS = [1, 2, 8, 64, 1024]
# of a network between machines, for the model: seconds of a message, bytes per second
LATENCY, BANDWIDTH = 50e-6, 10e9 / 8
ROUNDS = 5


def torchrun(processes: int, *command: str) -> str:
    """Run a script on so many processes; returns what it printed."""
    found = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc_per_node={processes}", *command,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    return found.stdout


def run(processes: int, envs: int, sequences: int, updates: int) -> dict[str, Any]:
    """Train; returns frames per second, and seconds of every update but the first two."""
    frames = envs * WindEnv(1).max_steps
    with TemporaryDirectory() as folder:
        torchrun(
            processes, "recipes/ppo_shm.py", "env=wind", f"experiment.num_envs={envs}",
            f"experiment.total_frames={updates * frames}", "experiment.checkpoint_interval=1000",
            f"algo.sequences_per_minibatch={sequences}",
            "experiment.num_test_episodes=2", f"hydra.run.dir={folder}/run",
        )  # fmt: skip
        config = OmegaConf.load(f"{folder}/run/config.yaml").algo
        lines = (Path(folder) / "run" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]]
    assert abs(rows[0]["max_ratio"] - 1) < 1e-4, "what acted is not what learns"
    speeds = [row["frames_per_second"] for row in rows[2:]]
    return {
        "speed": median(speeds),
        "seconds": [frames / speed for speed in speeds],
        "steps": config.epochs * math.ceil(envs / sequences),
    }


def message(count: int) -> None:
    """Two processes time a message with so many gradients; the first one prints the seconds."""
    join()
    parameter = torch.nn.Parameter(torch.zeros(count))
    times: list[float] = []
    for _ in range(200):
        parameter.grad = torch.ones(count)
        begin = time.perf_counter()
        average_gradients([parameter])
        times.append(time.perf_counter() - begin)
    if rank() == 0:
        print(median(times[20:]))
    leave()


def measure(updates: int) -> dict[str, Any]:
    """All numbers, sides in turns."""
    sides = {
        "one": (1, ENVS, SEQUENCES),
        "weak": (2, 2 * ENVS, 2 * SEQUENCES),
        "strong": (2, ENVS, SEQUENCES),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*sides, "apart")}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            runs[name].append(run(*side, updates))
            print(name, round(runs[name][-1]["speed"]), flush=True)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: run(*sides["one"], updates)["speed"], range(2)))
        runs["apart"].append({"speed": sum(both)})
        print("apart", round(sum(both)), flush=True)
    speeds = {name: median(x["speed"] for x in found) for name, found in runs.items()}
    seconds = [x for found in runs["one"] for x in found["seconds"]]
    operator = make_actor_critic(WindEnv(2), SHMModule)
    loss = LeanClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
    count = sum(parameter.numel() for parameter in loss.parameters())
    script = ("tests/benchmarks/ranks.py", "--message")
    return {
        "speeds": speeds,
        "rounds": {name: [x["speed"] for x in found] for name, found in runs.items()},
        "seconds": mean(seconds),
        "spread": stdev(seconds),
        "gradients": count,
        "message": float(torchrun(2, *script, str(count)).split()[-1]),
        "latency": float(torchrun(2, *script, "1").split()[-1]),
        # gradient steps of an update
        "messages": runs["one"][0]["steps"],
    }


def model(numbers: dict[str, Any], ranks: int) -> dict[str, float]:
    """Seconds of an update with so many processes, each with its environments, and its parts.

    Each update waits for the slowest process, and each gradient step for a message that is added up
    by halving and doubling: 2 log2(n) times the latency, and twice the bytes.
    """
    steps = numbers["messages"]
    # of the two processes here, the message is measured
    if ranks <= 2:
        send = (ranks - 1) * numbers["message"]
    else:
        size = 4 * numbers["gradients"]
        send = 2 * math.log2(ranks) * LATENCY + 2 * size * (ranks - 1) / ranks / BANDWIDTH
    # the largest of n numbers with a normal distribution
    wait = numbers["spread"] * math.sqrt(2 * math.log(ranks)) if ranks > 1 else 0.0
    total = numbers["seconds"] + steps * send + wait
    return {
        "seconds": total,
        "messages": steps * send / total,
        "waiting": wait / total,
        "efficiency": numbers["seconds"] / total,
    }


def report(numbers: dict[str, Any]) -> str:
    """Make both tables."""
    speeds = numbers["speeds"]
    rounds = numbers["rounds"]
    rows = [["1", str(ENVS), str(SEQUENCES), f"{speeds['one']:,.0f}", "1", ""]]
    for name, processes, envs, sequences in (
        ("weak", "2", 2 * ENVS, str(2 * SEQUENCES)),
        ("strong", "2", ENVS, str(SEQUENCES)),
        ("apart", "2, apart", 2 * ENVS, f"twice {SEQUENCES}"),
    ):
        ratios = [x / one for x, one in zip(rounds[name], rounds["one"], strict=True)]
        times, spread = speeds[name] / speeds["one"], f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append(
            [processes, str(envs), sequences, f"{speeds[name]:,.0f}", f"{times:.2f}", spread]
        )
    header = [
        "processes", "environments", "sequences per minibatch", "frames per second",
        "times one process", f"lowest to highest of {len(rounds['one'])} rounds",
    ]  # fmt: skip
    measured = table(header, rows)
    rows = []
    for ranks in RANKS:
        found = model(numbers, ranks)
        # beside two runs apart, which share the machine as well
        real = {1: 1.0, 2: speeds["weak"] / speeds["apart"]}.get(ranks)
        rows.append(
            [
                f"{ranks:,}",
                f"{ranks * found['efficiency']:,.1f}",
                f"{found['efficiency']:.0%}",
                "" if real is None else f"{real:.0%}",
                f"{found['messages']:.1%}",
                f"{found['waiting']:.1%}",
            ]
        )
    header = [
        "processes", "times one process", "of ideal", "measured", "in messages", "in waiting",
    ]  # fmt: skip
    return f"{measured}\n\n{table(header, rows)}"


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    parser.add_argument("--message", type=int, help="what the two processes are started with")
    parser.add_argument("--json", type=Path, help="write the numbers, and the tables beside them")
    parser.add_argument("--from", dest="recorded", type=Path, help="numbers to make tables from")
    arguments = parser.parse_args()
    if arguments.message:
        message(arguments.message)
        return
    if arguments.recorded:
        path, numbers = arguments.recorded, json.loads(arguments.recorded.read_text())
    else:
        print(f"others used {wait_until_idle(arguments.wait):.0%}")
        path, numbers = arguments.json, measure(arguments.updates)
    text = report(numbers)
    print(text)
    write_numbers(path, numbers, text)


if __name__ == "__main__":
    main()
