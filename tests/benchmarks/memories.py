"""Time the training pass of every memory beside that of a GRU at equal state.

python -m tests.benchmarks.memories --json docs/results/memories/speed.json
python -m tests.benchmarks.memories --memories shm,lru --steps 128

Forward and backward of a sequence with resets, one thread, medians. First every memory's sequence
is compared with its own steps; a memory that differs is not timed. `gain over its own steps` is the
time of the same pass, one step after the other in Python, divided by that of the sequence form.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from hydra_zen import instantiate
from tensordict import TensorDict
from torchrl.modules import set_recurrent_mode

from tests.benchmarks._measure import milliseconds, number, table, wait_until_idle
from tests.modules._helpers import run_steps
from torchrl_shm.configs import MEMORIES, SIZES
from torchrl_shm.modules import measure_memory

# no memory, and presets that differ in one option
NAMES = [name for name in MEMORIES if name != "mlp" and not name.startswith("shm_")]
FEATURES = 64


def build(name: str) -> Any:
    """The memory at the size at which all have about the same state."""
    make = instantiate(MEMORIES[name], **SIZES["state"].get(name, {}))
    return make(input_size=FEATURES, output_size=FEATURES, in_key="x", out_key="y")


def measure(name: str, batch: int, steps: int, budget: float) -> dict[str, Any]:
    """Check one memory and time it."""
    torch.manual_seed(0)
    module = build(name)
    x = torch.randn(batch, steps, FEATURES)
    is_init = torch.rand(batch, steps) < 0.01
    is_init[:, 0] = True
    data = TensorDict({"x": x, "is_init": is_init.unsqueeze(-1)}, [batch, steps])
    cell = module.cell
    index = None
    empty = x.new_zeros(batch, *cell.memory_shape)
    if cell.num_choices is not None:
        index = torch.randint(cell.num_choices, (batch, steps))
        data["theta_index"] = index

    def sequence() -> None:
        with set_recurrent_mode(True):
            module(data.clone(False))["y"].sum().backward()

    def loop() -> None:
        run_steps(cell, x, empty, is_init, index)[0].sum().backward()

    row: dict[str, Any] = {"memory": name, "batch": batch, "steps": steps}
    row["state"] = measure_memory(module, input_size=FEATURES, in_key="x").state
    few = slice(0, 4)
    with torch.no_grad():
        few_index = None if index is None else index[few]
        found, _, _ = cell(x[few], None, is_init[few], few_index)
        wanted, _ = run_steps(cell, x[few], empty[few], is_init[few], few_index)
    if not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
        raise SystemExit(f"{name}: sequence and steps differ by {(found - wanted).abs().max()}")
    row["train_ms"] = milliseconds(sequence, "cpu", budget)
    row["steps_ms"] = milliseconds(loop, "cpu", budget)
    row["gain"] = row["steps_ms"] / row["train_ms"]
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """The table, as Markdown."""
    lines = [
        [
            f"{row['batch']} x {row['steps']}", f"`{row['memory']}`", f"{row['state']:,}",
            number(row["train_ms"]), number(row["ratio"]),
            number(row["gain"]),
        ]
        for row in rows
    ]  # fmt: skip
    header = ["batch x steps", "memory", "state floats", "ms", "times as fast as `gru`",
              "gain over its own steps"]  # fmt: skip
    return table(header, lines)


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", default=",".join(NAMES))
    parser.add_argument("--steps", default="128,1024")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds per measurement")
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    used = wait_until_idle(arguments.wait)
    print(f"torch {torch.__version__}, 1 thread, others used {used:.0%} of the CPUs\n")
    rows: list[dict[str, Any]] = []
    for steps in map(int, arguments.steps.split(",")):
        names = arguments.memories.split(",")
        # what the others are compared with is measured in the same run
        names = ["gru", *(name for name in names if name != "gru")]
        measured = [measure(name, arguments.batch, steps, arguments.budget) for name in names]
        for row in measured:
            row["ratio"] = measured[0]["train_ms"] / row["train_ms"]
        rows += measured
    print(report(rows))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"torch": torch.__version__, "threads": 1, "others": used, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
