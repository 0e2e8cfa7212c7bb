"""Gather finished runs as raw data, and draw the curves from the raw data alone.

python docs/results/make_results.py docs/results/wind multirun/ppo_shm/<date>/<time>/* ...

Each run folder given is copied to `<memory>_seed<seed>.csv` (its `metrics.csv`) and to a line of
`summary.csv`. Without run folders, only the picture is made anew.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from torchrl_shm.figures.style import SMALL, choose_lines, dress, label_curves, new_figure, save

ORDER = ("shm", "gru", "lstm", "mlp")


def gather(results: Path, runs: list[Path]) -> None:
    """Copy what finished runs left behind."""
    rows = {(row["memory"], row["seed"]): row for row in read(results / "summary.csv")}
    # a pattern for runs also finds the `multirun.yaml` beside them
    for run in filter(Path.is_dir, runs):
        summary = json.loads((run / "summary.json").read_text())
        memory, seed = summary["memory"], str(summary["seed"])
        rows[memory, seed] = {key: str(value) for key, value in summary.items()}
        shutil.copy(run / "metrics.csv", results / f"{memory}_seed{seed}.csv")
    ordered = sorted(rows.values(), key=lambda row: (order(row["memory"]), int(row["seed"])))
    with open(results / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(ordered[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, none if it is missing."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def order(memory: str) -> int:
    """Place of a memory in pictures and tables."""
    return ORDER.index(memory) if memory in ORDER else len(ORDER)


def draw(results: Path) -> None:
    """Training curves, mean and range over seeds, above the final scores of each seed."""
    summary = read(results / "summary.csv")
    memories = sorted({row["memory"] for row in summary}, key=order)
    lines = choose_lines(memories)
    figure = new_figure(6.4)
    curves, success, scores = figure.subplots(3, 1, height_ratios=(2.4, 2.4, 1.3))
    ends: dict[str, dict[str, float]] = {"return": {}, "success": {}}
    for memory in memories:
        runs = [read(path) for path in sorted(results.glob(f"{memory}_seed*.csv"))]
        line = lines[memory]
        for axes, column in ((curves, "return"), (success, "success")):
            frames = np.array([float(row["frames"]) for row in runs[0]]) / 1e6
            values = np.array([[float(row[column]) for row in run] for run in runs])
            # a running mean over ten updates, for the eye
            kernel = np.ones(min(10, len(frames))) / min(10, len(frames))
            smooth = np.array([np.convolve(value, kernel, "valid") for value in values])
            frames = frames[len(kernel) - 1 :]
            mean = smooth.mean(0)
            axes.plot(frames, mean, color=line.color, linewidth=line.width, zorder=line.zorder)
            axes.fill_between(frames, smooth.min(0), smooth.max(0), color=line.color, alpha=0.12)
            ends[column][memory] = float(mean[-1])
        final = [float(row["eval_return"]) for row in summary if row["memory"] == memory]
        place = np.full(len(final), memories.index(memory))
        scores.plot(final, place, "o", color=line.color, alpha=0.7)
    curves.set(title="return in training")
    success.set(title="success in training", ylim=(-0.02, 1.02), xlabel="million steps")
    scores.axvline(81.66, color="black", linewidth=0.8, linestyle="--")
    scores.annotate("knows the wind ", (81.66, 2.5), ha="right", va="center", fontsize=SMALL)
    scores.set(title="return on unseen winds, a dot per seed", xlim=(0, 90))
    counts = {memory: sum(row["memory"] == memory for row in summary) for memory in memories}
    names = [f"{memory} ({count})" for memory, count in counts.items()]
    scores.set_yticks(range(len(memories)), names)
    scores.margins(y=0.2)
    scores.invert_yaxis()
    for axes in (curves, success, scores):
        dress(axes)
    label_curves(curves, ends["return"], lines)
    label_curves(success, ends["success"], lines)
    save(figure, results / "learning_curves.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if sys.argv[2:]:
        gather(folder, [Path(run) for run in sys.argv[2:]])
    draw(folder)
