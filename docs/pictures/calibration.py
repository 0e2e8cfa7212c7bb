"""Measure products of the calibration C over time, at initialization, and draw them.

python docs/pictures/calibration.py

writes `calibration.png` and `calibration.md` beside this file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from torchrl_shm import SHM
from torchrl_shm.figures.style import SHM as STRONG
from torchrl_shm.figures.style import SMALL, dress, new_figure, save

HERE = Path(__file__).parent
SIZE, STEPS, ROWS = 64, 500, 64
QUANTILES = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def products(kind: str, inputs: str, scale: float) -> Tensor:
    """Products of C from step 1 to every step, `[ROWS, STEPS, H, H]`.

    Args:
        kind: `"random"` draws a row of theta at each step, `"fixed"` uses one for all.
        inputs: `"new"` draws an input for each step, `"same"` shows one for the whole episode.
        scale: factor on `theta ⊗ vc`; 1 is the initialization.
    """
    torch.manual_seed(0)
    cell = SHM(SIZE, SIZE, memory_size=24)
    x = torch.randn(ROWS, STEPS if inputs == "new" else 1, SIZE)
    index = torch.randint(len(cell.theta), (ROWS, STEPS if kind == "random" else 1))
    with torch.no_grad():
        z = cell.theta[index].unsqueeze(-1) * cell.vc(cell.norm(x)).unsqueeze(-2)
        steps = torch.log1p(torch.tanh(scale * z)).expand(ROWS, STEPS, -1, -1)
        return steps.double().cumsum(1).exp()


CASES = {
    # name: kind, inputs, scale, panel
    "random theta, new inputs": ("random", "new", 1.0, 0),
    "random theta, the same input": ("random", "same", 1.0, 0),
    "fixed theta, the same input": ("fixed", "same", 1.0, 0),
    "random theta, gates 4 times as large": ("random", "new", 4.0, 1),
    "random theta, gates 16 times as large": ("random", "new", 16.0, 1),
}
# what the package does by default is strong
COLORS = (STRONG, "#5b7fb3", "#7f7f7f", "#7a9e7e", "#b08d57")
TITLES = ("at initialization", "with larger gates")


def main() -> None:
    """Draw all cases, and write them as a table."""
    figure = new_figure(6.4)
    panels = figure.subplots(2, 1, sharex=True)
    lines = [
        "| theta and inputs | median after 100 | after 500 | mean after 500 | below 1 after 500 |",
        "|---|---|---|---|---|",
    ]
    for name, (kind, inputs, scale, panel) in CASES.items():
        value = products(kind, inputs, scale)
        low, middle, high = value.flatten(2).transpose(0, 1).flatten(1).quantile(QUANTILES, dim=1)
        color = COLORS[list(CASES).index(name)]
        (line,) = panels[panel].plot(middle, label=name, color=color)
        panels[panel].fill_between(range(STEPS), low, high, color=line.get_color(), alpha=0.2)
        last = value[:, -1]
        lines.append(
            f"| {name} | {middle[99]:.2g} | {middle[-1]:.2g} | {last.mean():.2g} | "
            f"{100 * (last < 1).double().mean():.0f} % |"
        )
    for axes, title in zip(panels, TITLES, strict=True):
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(yscale="log", ylim=(1e-6, 1e6), title=title, ylabel="product of C")
        axes.legend(fontsize=SMALL, loc="upper left")
        dress(axes)
    panels[-1].set_xlabel("steps")
    save(figure, HERE / "calibration.png")
    (HERE / "calibration.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
