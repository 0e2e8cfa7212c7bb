"""Over how many steps can each memory learn to remember, and what does a clock add?

python -m tests.benchmarks.spans --csv spans.csv
python -m tests.benchmarks.spans --csv docs/results/spans/spans.csv --updates 600 --seeds ""
python -m tests.benchmarks.spans --tasks recall --lengths 100 --memories shm,lru --seeds 0

Supervised, with the networks of the recipes around the memory: `recall`, one of four symbols is
shown for ten steps and asked for after `length` steps of noise; `previous`, at every step the
symbol of `length` steps ago; `recite`, `length` symbols, then the same in reverse. All memories
have about as many parameters (`size=params`); those of SHM's family start for the span
(`span=length`), as released with `--start released`, or with a calibration ten times nearer to one
(`span=100 * length`) with `--start near`.

A run ends when the moving average of the accuracy, 64 new sequences per update, reaches 98 %, or
after `--updates`. Chance is one in four.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from statistics import median

import torch
from hydra_zen import instantiate
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import set_recurrent_mode

from tests.benchmarks._measure import read_rows, table, write_rows
from torchrl_shm.configs import MEMORIES, SIZES
from torchrl_shm.networks import Clock, Encoder, Head, Layer

SYMBOLS, NOISE, WIDTH, BATCH = 4, 8, 64, 64
SHOWN = 10
LENGTHS = {"recall": (50, 100, 250, 500, 1000), "previous": (4, 32, 64), "recite": (13, 52)}
GOAL = 0.98
# spans that SHM is started for, in lengths of the task
STARTS = {"span": 1, "near": 100}


@dataclass(frozen=True)
class Case:
    """What is trained: a memory, with or without a clock, on a task."""

    memory: str
    task: str
    length: int
    time_size: int
    slowest: float
    start: str
    seed: int


def make_batch(task: str, length: int) -> tuple[Tensor, Tensor]:
    """Inputs `[B, T, SYMBOLS + NOISE + 1]`, and the answers to the last steps `[B, n]`."""
    count = {"recall": 1, "previous": 3 * length + 20, "recite": length}[task]
    symbols = torch.randint(SYMBOLS, (BATCH, count))
    shown = F.one_hot(symbols, SYMBOLS).float()
    if task == "previous":
        x, answers = shown, symbols[:, :-length]
    elif task == "recite":
        x, answers = torch.cat([shown, torch.zeros_like(shown)], 1), symbols.flip(1)
    else:
        empty = torch.zeros(BATCH, length, SYMBOLS)
        x, answers = torch.cat([shown.expand(-1, SHOWN, -1), empty], 1), symbols
    asked = torch.zeros(*x.shape[:2], 1)
    asked[:, -answers.shape[1] :] = 1.0
    return torch.cat([x, torch.randn(*x.shape[:2], NOISE), asked], -1), answers


def build(case: Case) -> TensorDictSequential:
    """Clock, embedding, memory and head, as `make_actor_critic` has them."""
    options = SIZES["params"].get(case.memory, {})
    if case.memory.startswith("shm") and case.start != "released":
        options = {**options, "span": case.length * STARTS[case.start]}
    memory = instantiate(MEMORIES[case.memory], **options)(
        input_size=WIDTH, output_size=WIDTH, in_key="embedding", out_key="features"
    )
    shapes = [torch.Size((SYMBOLS + NOISE + 1,))]
    clock = [Clock(case.time_size, slowest=case.slowest)] if case.time_size else []
    shapes += [torch.Size((case.time_size,)) for _ in clock]
    embed = Layer(Encoder(shapes, WIDTH, None), ["x", *(x.out_key for x in clock)], ["embedding"])
    head = Layer(
        Head((WIDTH, 2 * WIDTH, 64, 64, SYMBOLS), 1.0, None), ["features", "embedding"], ["logits"]
    )
    return TensorDictSequential(*clock, embed, memory, head)


def train(case: Case, updates: int) -> dict[str, object]:
    """Train until the task is solved; a row of the file."""
    torch.manual_seed(case.seed)
    model = build(case)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    start, accuracy, update = time.process_time(), 0.0, 0
    while update < updates and accuracy < GOAL:
        x, answers = make_batch(case.task, case.length)
        is_init = torch.zeros(*x.shape[:2], 1, dtype=torch.bool)
        is_init[:, 0] = True
        data = TensorDict({"x": x, "is_init": is_init}, x.shape[:2])
        with set_recurrent_mode(True):
            logits = model(data)["logits"][:, -answers.shape[1] :]
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        right = float((logits.argmax(-1) == answers).double().mean())
        update += 1
        # with the weight of the first updates, which are missing before
        accuracy += (right - accuracy) * max(0.1, 1 / update)
    seconds = round(time.process_time() - start, 1)
    return {**vars(case), "updates": update, "accuracy": round(accuracy, 3), "seconds": seconds}


def summarize(rows: list[dict[str, str]], updates: int) -> str:
    """A line for each kind of memory: the median of the updates, or the accuracy that was left."""
    kinds = list(dict.fromkeys(map(_kind, rows)))
    tasks = list(dict.fromkeys((row["task"], row["length"]) for row in rows))
    lines: list[list[str]] = []
    for kind in kinds:
        line = [f"`{kind[0]}`", *kind[1:]]
        for task in tasks:
            mine = [
                row for row in rows
                if _kind(row) == kind and (row["task"], row["length"]) == task
            ]  # fmt: skip
            solved = [int(row["updates"]) for row in mine if float(row["accuracy"]) >= GOAL]
            if not mine:
                line.append("")
            elif len(solved) * 2 > len(mine):
                missing = [updates] * (len(mine) - len(solved))
                line.append(f"{median(solved + missing):.0f} ({len(solved)}/{len(mine)})")
            else:
                accuracy = median(float(row["accuracy"]) for row in mine)
                line.append(f"{accuracy:.0%} ({len(solved)}/{len(mine)})")
        lines.append(line)
    return table(["memory", "clock", "start", *(f"{x} {n}" for x, n in tasks)], lines)


def _kind(row: dict[str, str]) -> tuple[str, str, str]:
    """Memory, clock and start."""
    clock = f"{row['time_size']}, down to {row['slowest']}" if row["time_size"] != "0" else "none"
    return row["memory"], clock, row["start"]


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """What was asked for, short tasks first."""
    lengths = [int(x) for x in arguments.lengths.split(",") if x]
    seeds = [int(x) for x in arguments.seeds.split(",") if x]
    for task, memory in product(arguments.tasks.split(","), arguments.memories.split(",")):
        for length, seed in product(lengths or LENGTHS[task], seeds):
            clock = (arguments.time_size, arguments.slowest)
            yield Case(memory, task, length, *clock, arguments.start, seed)


def main() -> None:
    """Parse the arguments, train what is missing in the file, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", default="shm,gru,ffm,lru,mlstm")
    parser.add_argument("--tasks", default=",".join(LENGTHS))
    parser.add_argument("--lengths", default="", help="default: those of each task")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--time-size", type=int, default=32, help="of the clock; 0 for none")
    parser.add_argument("--slowest", type=float, default=0.12, help="lowest frequency of the clock")
    parser.add_argument("--start", choices=["released", *STARTS], default="span")
    parser.add_argument("--updates", type=int, default=1_500)
    parser.add_argument("--csv", type=Path, help="rows to go on from; the table is put beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(arguments.csv, 7)
    for case in cases(arguments):
        key = tuple(map(str, astuple(case)))
        if key in rows:
            continue
        rows[key] = {name: str(x) for name, x in train(case, arguments.updates).items()}
        print(*rows[key].values(), sep="\t", file=sys.stderr, flush=True)
        # after each run, so that one that is stopped goes on
        write_rows(arguments.csv, list(rows.values()))
    text = summarize(list(rows.values()), arguments.updates)
    print(text)
    if arguments.csv is not None:
        arguments.csv.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
