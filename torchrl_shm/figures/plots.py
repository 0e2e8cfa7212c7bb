"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

_EPISODE_COLORS = ("tab:blue", "tab:purple", "tab:red", "tab:brown", "tab:pink", "tab:gray")


def plot_learning_curve(
    metrics: Sequence[Mapping[str, float]], path: str | Path, *, title: str = ""
) -> None:
    """Draw return and success of training over frames.

    Args:
        metrics: rows with `frames`, `return` and, if the task has one, `success` in [0, 1].
        path: file to write; its ending chooses the format.
        title: above the axes.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.figures import plot_learning_curve
        >>> rows = [{"frames": 1, "return": 0.0}, {"frames": 2, "return": 1.0}]
        >>> plot_learning_curve(rows, mkdtemp() + "/curve.png")
    """
    # the object interface: pyplot would keep global state and look for a display
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    frames = [row["frames"] for row in metrics]
    axes.plot(frames, [row["return"] for row in metrics], color="tab:blue")
    axes.set(xlabel="environment steps", title=title)
    axes.set_ylabel("return (training)", color="tab:blue")
    axes.grid(alpha=0.3)
    if metrics and "success" in metrics[0]:
        right = axes.twinx()
        right.plot(frames, [row["success"] for row in metrics], color="tab:orange")
        right.set_ylabel("success rate (training)", color="tab:orange")
        right.set_ylim(-0.02, 1.02)
    figure.savefig(path, dpi=150)


def plot_trajectories(
    positions: Tensor,
    path: str | Path,
    *,
    goals: Tensor,
    goal_radius: float,
    returns: Tensor,
    labels: Sequence[str],
    winds: Tensor | None = None,
    num_episodes: int = 1,
) -> None:
    """Draw the paths of several tasks of a two-dimensional navigation environment.

    Args:
        positions: path of each task, `[N, T + 1, 2]`.
        path: file to write; its ending chooses the format.
        goals: centre of the goal of each task, `[N, 2]`.
        goal_radius: radius of the goals.
        returns: return of each task, `[N]`.
        labels: name of each task.
        winds: displacement per step of each task, `[N, 2]`, drawn as an arrow of five steps.
        num_episodes: number of episodes, equally long, that the T steps are made of; each path
            is drawn from the first position that was seen of its episode.

    Examples:
        >>> import torch
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.figures import plot_trajectories
        >>> path = torch.linspace(0, 1, 20)[None, :, None].expand(1, 20, 2)
        >>> plot_trajectories(
        ...     path, mkdtemp() + "/paths.png", goals=torch.ones(1, 2), goal_radius=0.01,
        ...     returns=torch.ones(1), labels=["task 0"],
        ... )
    """
    columns = min(4, len(positions))
    rows = -(-len(positions) // columns)
    figure = Figure(figsize=(2.6 * columns, 3.0 * rows), layout="constrained")
    grid: Any = np.atleast_1d(np.array(figure.subplots(rows, columns), dtype=object)).ravel()
    for axes in grid[len(positions) :]:
        axes.axis("off")
    max_steps = (positions.shape[1] - 1) // num_episodes
    # the start is seen of the first episode only
    firsts = [0, *(episode * max_steps + 1 for episode in range(1, num_episodes))]
    for i, (axes, xy, goal, total, label) in enumerate(
        zip(grid, positions.numpy(), goals.numpy(), returns.tolist(), labels, strict=False)
    ):
        # below the path, whose end it would hide
        axes.plot(*goal, "*", color="tab:orange", markersize=12, zorder=1)
        axes.add_patch(_circle(goal, goal_radius))
        for episode, first in enumerate(firsts):
            part = xy[first : (episode + 1) * max_steps + 1]
            color = _EPISODE_COLORS[episode % len(_EPISODE_COLORS)]
            axes.plot(*part.T, ".-", color=color, linewidth=0.8, markersize=2)
            axes.plot(*part[0], "o", color="black", markersize=4)
        if winds is not None:
            tip = xy[0] + 5 * winds[i].numpy()
            axes.annotate(
                "", xy=tip, xytext=xy[0], arrowprops={"arrowstyle": "->", "color": "tab:green"}
            )
            # arrows neither count for the limits nor are drawn beyond them
            axes.update_datalim([tip])
        axes.autoscale_view()
        axes.set_title(f"{label}: return {total:.0f}", fontsize=9)
        axes.set_aspect("equal", adjustable="datalim")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    legend = "black: start, star: goal"
    if winds is not None:
        legend += ", green: five steps of wind"
    if num_episodes > 1:
        colors = [color.removeprefix("tab:") for color in _EPISODE_COLORS[:num_episodes]]
        legend += ", episodes: " + ", ".join(colors)
    figure.suptitle(legend, fontsize=9)
    figure.savefig(path, dpi=150)


def _circle(center: Any, radius: float) -> Any:
    from matplotlib.patches import Circle

    return Circle(tuple(center), radius, fill=False, color="tab:orange")
