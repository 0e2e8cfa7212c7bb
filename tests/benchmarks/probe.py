"""Can each memory learn to remember? Two small supervised tasks, a minute or two each on one core.

python -m tests.benchmarks.probe --csv docs/results/memories/probe.csv
python -m tests.benchmarks.probe --csv docs/results/memories/probe.csv --seeds ""  # table alone
python -m tests.benchmarks.probe --memories gru,shm --seeds 0

`recall`: one of four symbols is shown at the first step; after 15 steps of noise it is asked for.
`copy`: four symbols are shown one after the other, each with its place; after five steps of noise
the places are asked for in turn. Chance is one in four.

Training on `recall` draws a delay for every batch, up to the full one of the test.

Every memory stands between the same embedding and the same head, with the sizes of its preset, and
gets the same batches. Training ends when 512 new sequences are answered right to 99 % twice in a
row, or after `--updates`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from hydra_zen import instantiate
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import set_recurrent_mode

from tests.benchmarks._measure import read_rows, table, write_rows
from torchrl_shm.configs import MEMORIES

SYMBOLS, PLACES = 4, 4
# symbol, place, whether an answer is wanted, noise
FEATURES = SYMBOLS + PLACES + 1 + 2
# steps of noise in tests, and the fewest in training
DELAYS, SHORTEST = {"recall": 15, "copy": 5}, {"recall": 1, "copy": 5}
# ablations of SHM and variants that differ in one option are left out
NAMES = [name for name in MEMORIES if not name.startswith("shm_")]


def make_batch(
    task: str, size: int, generator: torch.Generator, *, delay: int | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs `[B, T, FEATURES]` and the answers to the last steps `[B, n]`."""
    if delay is None:
        delay = int(torch.randint(SHORTEST[task], DELAYS[task] + 1, (), generator=generator))
    count = 1 if task == "recall" else PLACES
    answers = torch.randint(SYMBOLS, (size, count), generator=generator)
    x = torch.zeros(size, count + delay + count, FEATURES)
    x[..., -2:] = torch.randn(*x.shape[:2], 2, generator=generator)
    x[:, :count, :SYMBOLS] = F.one_hot(answers, SYMBOLS).float()
    places = torch.eye(PLACES)[:count]
    x[:, :count, SYMBOLS : SYMBOLS + PLACES] = places
    x[:, -count:, SYMBOLS : SYMBOLS + PLACES] = places
    x[:, -count:, SYMBOLS + PLACES] = 1.0
    return x, answers


def build(name: str) -> TensorDictSequential:
    """Embedding, memory and head, of the sizes that the recipes use."""
    memory = instantiate(MEMORIES[name])(
        input_size=64, output_size=64, in_key="embedding", out_key="features"
    )
    embed = nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh())
    head = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, SYMBOLS))
    return TensorDictSequential(
        TensorDictModule(embed, ["x"], ["embedding"]),
        memory,
        TensorDictModule(head, ["features"], ["logits"]),
    )


def answer(model: nn.Module, x: Tensor, count: int) -> Tensor:
    """Logits of the last `count` steps."""
    is_init = torch.zeros(*x.shape[:2], 1, dtype=torch.bool)
    is_init[:, 0] = True
    data = TensorDict({"x": x, "is_init": is_init}, x.shape[:2])
    with set_recurrent_mode(True):
        return model(data)["logits"][:, -count:]


def train(name: str, task: str, seed: int, updates: int, batch_size: int = 64) -> dict[str, object]:
    """Train until the task is solved; one row of the table."""
    torch.manual_seed(seed)
    data, test_data = (torch.Generator().manual_seed(s) for s in (seed, 10_000 + seed))
    model = build(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start, solved, accuracy, update = time.perf_counter(), 0, 0.0, 0
    while update < updates and solved < 2:
        x, answers = make_batch(task, batch_size, data)
        loss = F.cross_entropy(answer(model, x, answers.shape[1]).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update += 1
        if update % 20 == 0 or update == updates:
            x, answers = make_batch(task, 512, test_data, delay=DELAYS[task])
            with torch.no_grad():
                right = answer(model, x, answers.shape[1]).argmax(-1) == answers
            accuracy = float(right.double().mean())
            solved = solved + 1 if accuracy >= 0.99 else 0
    return {
        "memory": name,
        "task": task,
        "seed": seed,
        "updates": update,
        "accuracy": round(accuracy, 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def summarize(rows: list[dict[str, str]]) -> str:
    """One line per memory: the worst and the mean accuracy over seeds, and what it took."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines: list[list[str]] = []
    for name in dict.fromkeys(row["memory"] for row in rows):
        line = [f"`{name}`"]
        for task in tasks:
            mine = [row for row in rows if (row["memory"], row["task"]) == (name, task)]
            accuracy = [100 * float(row["accuracy"]) for row in mine]
            updates, seconds = (
                mean(float(row[key]) for row in mine) for key in ("updates", "seconds")
            )
            line += [
                f"{min(accuracy):.1f} %",
                f"{mean(accuracy):.1f} %",
                f"{updates:.0f}, {seconds:.0f} s",
            ]
        lines.append(line)
    header = [
        f"{task}: {what}" for task in tasks for what in ("worst seed", "mean", "updates, time")
    ]
    return table(["memory", *header], lines)


def main() -> None:
    """Parse the arguments, train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", default=",".join(NAMES))
    parser.add_argument("--tasks", default=",".join(DELAYS))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--updates", type=int, default=4_000)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(arguments.csv, 3)
    for name in arguments.memories.split(","):
        for task in arguments.tasks.split(","):
            for seed in filter(None, arguments.seeds.split(",")):
                row = train(name, task, int(seed), arguments.updates)
                rows[name, task, seed] = {key: str(value) for key, value in row.items()}
                print(*row.values(), sep="\t", file=sys.stderr)
    # in the order of the group, whatever was run when
    names, tasks = list(MEMORIES), list(DELAYS)
    ordered = sorted(rows, key=lambda key: (names.index(key[0]), tasks.index(key[1]), int(key[2])))
    table_rows = [rows[key] for key in ordered]
    print(summarize(table_rows))
    write_rows(arguments.csv, table_rows)


if __name__ == "__main__":
    main()
