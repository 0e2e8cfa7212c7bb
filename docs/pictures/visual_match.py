"""Draw memory and calibration of a trained agent over an episode of Visual Match.

python docs/pictures/visual_match.py docs/results/policies/visual_match_100

writes `visual_match.png` beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from torchrl_shm.figures import record_episode
from torchrl_shm.figures.style import SHM as STRONG
from torchrl_shm.figures.style import SMALL, TEXT, dress, new_figure, save
from torchrl_shm.sharing import load_policy, load_task
from torchrl_shm.training import make_test_env

HERE = Path(__file__).parent
# the step whose picture is shown, and what the agent is doing then
MOMENTS = {5: "step 5: sees the color", 65: "step 65: eats apples", 116: "step 116: at the door"}
NUM_EPISODES = 64


def main(policy_folder: str) -> None:
    """Draw three moments of the episode, and the product of C since the color was seen."""
    env = make_test_env(load_task(policy_folder), num_episodes=NUM_EPISODES)
    episode = record_episode(load_policy(policy_folder).module, env)
    assert episode.memories is not None
    assert episode.calibrations is not None
    # what a step sees, and what it makes of the memory
    boards, memories = episode.frames[:-1], episode.memories[1:]
    calibrations = episode.calibrations[1:]
    figure = new_figure(7.8)
    rows = figure.subfigures(2, 1, height_ratios=(3, 1.3))
    grid = rows[0].subplots(3, len(MOMENTS), height_ratios=(1.3, 2, 2))
    bound = float(memories.abs().quantile(0.99))
    gap = float((calibrations - 1).abs().quantile(0.99))
    for column, (step, title) in enumerate(MOMENTS.items()):
        grid[0, column].imshow(boards[step])
        grid[0, column].set_title(title.replace(": ", "\n"), fontsize=SMALL)
        matrix = grid[1, column].imshow(memories[step], cmap="RdBu", vmin=-bound, vmax=bound)
        gates = grid[2, column].imshow(calibrations[step], cmap="PuOr", vmin=1 - gap, vmax=1 + gap)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for row, name in enumerate(("board", "memory M", "calibration C")):
        grid[row, 0].set_ylabel(name, fontsize=TEXT)
    for image, row in ((matrix, grid[1]), (gates, grid[2])):
        rows[0].colorbar(image, ax=row).ax.tick_params(labelsize=SMALL)
    # how much of what was written in the first room is still there
    product = calibrations[15:].log().cumsum(0).exp().flatten(1)
    low, middle, high = product.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1)
    axes, steps = rows[1].subplots(), range(15, 15 + len(product))
    axes.plot(steps, middle, color=STRONG, label="median over elements")
    axes.fill_between(steps, low, high, color=STRONG, alpha=0.2, label="10 % to 90 %")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", xlabel="step", ylabel="product of C\nsince the color")
    # a few plain numbers, and none between them
    axes.set_yticks([0.3, 0.5, 1, 2], ["0.3", "0.5", "1", "2"])
    axes.set_yticks([], minor=True)
    axes.legend(fontsize=SMALL)
    dress(axes)
    save(figure, HERE / "visual_match.png")
    print({q: round(float(x[-1]), 3) for q, x in (("10%", low), ("50%", middle), ("90%", high))})


if __name__ == "__main__":
    main(sys.argv[1])
