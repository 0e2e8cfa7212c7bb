"""Draw how RepeatPrevious is learned with and without gradients of silent keys and queries.

PYTHONPATH=. python docs/pictures/silent.py

reads the raw data of the suites `paper_popgym` and `ablation`, and writes `silent.png` beside this
file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchrl_shm.figures.comparison import read_metrics, smooth
from torchrl_shm.figures.style import SHM, Line, dress, label_curves, new_figure, save

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
NAME = "popgym_repeat_previous_easy-shm"
CURVES = {
    "shm": (RESULTS / "paper_popgym", f"{NAME}-seed*.csv", Line(SHM, 2.2, 4, True)),
    "revive=False": (
        RESULTS / "ablation", f"{NAME}-not_revived-seed*.csv", Line("#5b7fb3", 1.4, 3, True),
    ),
}  # fmt: skip


def main() -> None:
    """Draw the mean of each and every seed."""
    figure = new_figure(2.9)
    axes = figure.subplots()
    ends: dict[str, float] = {}
    for name, (folder, pattern, line) in CURVES.items():
        runs = [read_metrics(path) for path in sorted(folder.glob(pattern))]
        frames = runs[0]["frames"] / 1e6
        values = np.stack([smooth(run["return"]) for run in runs])
        for seed in values:
            axes.plot(frames, seed, color=line.color, linewidth=0.7, alpha=0.45)
        axes.plot(frames, values.mean(0), color=line.color, linewidth=line.width)
        ends[name] = float(values[:, -1].mean())
    axes.set(
        title="popgym_repeat_previous_easy\nreturn", xlabel="million environment steps",
        ylim=(-0.6, 1.05),
    )  # fmt: skip
    dress(axes)
    label_curves(axes, ends, {name: line for name, (_, _, line) in CURVES.items()})
    save(figure, HERE / "silent.png")


if __name__ == "__main__":
    main()
