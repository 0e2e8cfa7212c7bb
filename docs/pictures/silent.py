"""Draw how RepeatPrevious is learned with and without gradients of silent keys and queries.

PYTHONPATH=. python docs/pictures/silent.py

reads the raw data of the suite `ablation`, and writes `silent.png` beside this
file. With the folder of a finished run of the ablation,

PYTHONPATH=. python docs/pictures/silent.py runs/ablation/<run>

first plays 256 episodes and writes, for every step of the episode, two shares of them to
`docs/results/ablation/silent.csv`: where the answer is right, and where its query is silent, or the
key under which the card was written that it is about.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.modules import set_recurrent_mode

from torchrl_shm import SHM as Cell
from torchrl_shm.configs import instantiate_saved
from torchrl_shm.figures.comparison import read_metrics, smooth
from torchrl_shm.figures.style import SHM, SMALL, Line, dress, label_curves, new_figure, save
from torchrl_shm.networks import get_behavior
from torchrl_shm.training import RolloutCollector, RunFolder

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
STEPS = RESULTS / "ablation" / "silent.csv"
NAME = "popgym_repeat_previous_easy-shm"
OTHER = "#5b7fb3"
CURVES = {
    "shm": (RESULTS / "ablation", f"{NAME}-sum-seed*.csv", Line(SHM, 2.2, 4, True)),
    "revive=False": (
        RESULTS / "ablation", f"{NAME}-not_revived-seed*.csv", Line(OTHER, 1.4, 3, True),
    ),
}  # fmt: skip
EPISODES, LENGTH = 256, 51
# the first question is about the first card, and all are about the card of as many steps before
FIRST = 3


def measure(folder: Path) -> None:
    """Play episodes with the agent of a run; count right answers, silent queries and keys."""
    torch.manual_seed(0)
    parts: Any = instantiate_saved(folder)
    operator = parts["network"](parts["env"](num_envs=1), parts["memory"])
    operator.load_state_dict(RunFolder(folder).checkpoints.load("latest")["operator"])
    collector = RolloutCollector(
        parts["env"], get_behavior(operator), num_envs=EPISODES, rollout_length=LENGTH,
        total_frames=EPISODES * LENGTH, seed=0,
    )  # fmt: skip
    (batch,) = collector
    right = (batch["next", "reward"] > 0).squeeze(-1)
    (cell,) = (module for module in operator.modules() if isinstance(module, Cell))
    with torch.no_grad(), set_recurrent_mode(True):
        embedding = operator.get_policy_operator()(batch)["embedding"]
        normed = cell.norm(embedding)
        key, query = ((layer(normed) <= 0).all(-1) for layer in (cell.key, cell.query))
    # of the answer, or of what is asked for
    silent = query | key.roll(FIRST, 1)
    with open(STEPS, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "step", "right", "silent"])
        for step in range(FIRST, LENGTH):
            row = [f"{float(x[:, step].double().mean()):.4f}" for x in (right, silent)]
            writer.writerow([parts["experiment"].seed, step, *row])


def draw_training(axes: Any) -> dict[str, float]:
    """Every seed and the mean; returns the ends."""
    ends: dict[str, float] = {}
    for name, (folder, pattern, line) in CURVES.items():
        runs = [read_metrics(path) for path in sorted(folder.glob(pattern))]
        frames = runs[0]["frames"] / 1e6
        values = np.stack([smooth(run["return"]) for run in runs])
        for seed in values:
            axes.plot(frames, seed, color=line.color, linewidth=0.7, alpha=0.45)
        axes.plot(frames, values.mean(0), color=line.color, linewidth=line.width)
        ends[name] = float(values[:, -1].mean())
    axes.set(title="return", xlabel="million environment steps", ylim=(-0.6, 1.05))
    return ends


def draw_steps(axes: Any) -> None:
    """Right answers, and silent queries or keys, over the step of the episode."""
    columns = read_metrics(STEPS)
    steps = columns["step"]
    axes.bar(steps, columns["right"], color=OTHER, width=0.8, label="right answers")
    axes.plot(steps, columns["silent"], "x", color=SHM, label="silent")
    axes.set(
        title="revive=False, one agent", xlabel="step of the episode", ylabel="share",
        ylim=(0, 1.3), yticks=(0, 0.5, 1),
    )  # fmt: skip
    axes.legend(fontsize=SMALL, ncols=2, loc="upper center", frameon=False)


def main() -> None:
    """Measure the run that is given, and draw."""
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    figure = new_figure(5.0)
    training, steps = figure.subplots(2, 1, height_ratios=(3, 2))
    ends = draw_training(training)
    draw_steps(steps)
    for axes in (training, steps):
        dress(axes)
    label_curves(training, ends, {name: line for name, (_, _, line) in CURVES.items()})
    save(figure, HERE / "silent.png")


if __name__ == "__main__":
    main()
