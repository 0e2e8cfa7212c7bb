"""How long an agent takes to act: one step of one agent, in a Python loop and in onnxruntime.

python -m tests.benchmarks.latency
python -m tests.benchmarks.latency --memories shm,gru --json docs/results/memories/latency.json

Networks are those of the recipes on Wind, on one thread. Both first have to give the same numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra_zen import instantiate
from torch import Tensor
from torch.testing import assert_close

from tests.benchmarks._measure import number, table, wait_until_idle, write_numbers
from torchrl_shm import WindEnv
from torchrl_shm.configs import MEMORIES
from torchrl_shm.networks import EnvSpecs, make_actor_critic
from torchrl_shm.sharing import PlainPolicy, PolicyStep, write_onnx

STEPS = 3_000
COLUMNS = ("python", "onnx")


def make_policy(memory: str) -> PlainPolicy:
    """A policy with the sizes of the recipes."""
    torch.manual_seed(0)
    specs = EnvSpecs.of(WindEnv(1))
    operator = make_actor_critic(specs, instantiate(MEMORIES[memory]), encoder="fourier")
    return PlainPolicy(operator.get_policy_operator(), specs)


def times(act: Callable[[], object]) -> dict[str, float]:
    """Median and 99th percentile of a step, in microseconds."""
    spent: list[float] = []
    for _ in range(STEPS):
        start = time.perf_counter()
        act()
        spent.append(1e6 * (time.perf_counter() - start))
    # the first ones find their code and their memory
    spent = spent[STEPS // 10 :]
    return {"median": statistics.median(spent), "p99": statistics.quantiles(spent, n=100)[-1]}


def zeros(policy: PlainPolicy) -> dict[Any, Tensor]:
    """What one agent sees."""
    entries = policy.specs.observation_spec_unbatched.zero()
    return {key: entries[key].unsqueeze(0) for key in policy.specs.policy_keys}


def in_python(policy: PlainPolicy) -> dict[str, float]:
    """Steps of `PlainPolicy`, each with the memory of the one before."""
    carried = [policy.initial_memory(1)]
    observation = zeros(policy)

    def act() -> None:
        _, carried[0] = policy(observation, carried[0])

    return times(act)


def in_onnxruntime(policy: PlainPolicy) -> dict[str, float] | None:
    """Steps of the exported policy; `None` where the memory cannot be exported."""
    import onnxruntime

    step = PolicyStep(policy)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.onnx"
        try:
            write_onnx(policy, path)
        except ValueError:
            return None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session: Any = onnxruntime.InferenceSession(path, options)
    state, choices = step.initial_state(1), [torch.zeros(1, dtype=torch.int64)] * len(step.choices)
    seen = list(zeros(policy).values())
    inputs: list[Tensor] = [*seen, *state, *choices]
    feed = {name: x.numpy() for name, x in zip(step.input_names, inputs, strict=True)}
    found = session.run(None, feed)
    for one, other in zip(found, step(*inputs), strict=True):
        assert_close(torch.from_numpy(one), other.detach(), atol=1e-5, rtol=1e-5)
    first = len(found) - len(state)
    names = step.input_names[len(seen) : len(seen) + len(state)]

    def act() -> None:
        feed.update(zip(names, session.run(None, feed)[first:], strict=True))

    return times(act)


def report(rows: list[dict[str, Any]]) -> str:
    """The table of the results."""
    lines = [
        [f"`{row['memory']}`"]
        + [
            number(row[column][key]) if row[column] else "-"
            for column in COLUMNS
            for key in ("median", "p99")
        ]
        for row in sorted(rows, key=lambda row: row["python"]["median"])
    ]
    header = ["memory", "Python loop, µs", "99 % within", "onnxruntime, µs", "99 % within"]
    return table(header, lines)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--memories", default=",".join(sorted(MEMORIES)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"others use {wait_until_idle(60):.0%} of the CPUs")
    rows: list[dict[str, Any]] = []
    for memory in options.memories.split(","):
        policy = make_policy(memory)
        rows.append({"memory": memory, "python": in_python(policy), "onnx": in_onnxruntime(policy)})
    print(report(rows))
    write_numbers(options.json, rows, report(rows))


if __name__ == "__main__":
    main()
