"""Learning curves, and paths in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_shm.envs.contract import Plane, ask_env
from torchrl_shm.figures.style import SHM, SMALL, TEXT, dress, new_figure, save

_SUCCESS = "#5b7fb3"
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
    figure = new_figure(3.2)
    axes = figure.subplots()
    frames = [row["frames"] for row in metrics]
    axes.plot(frames, [row["return"] for row in metrics], color=SHM)
    axes.set(xlabel="environment steps", title=title)
    axes.set_ylabel("return (training)", color=SHM)
    dress(axes)
    if metrics and "success" in metrics[0]:
        right = axes.twinx()
        right.plot(frames, [row["success"] for row in metrics], color=_SUCCESS)
        right.set_ylabel("success rate (training)", color=_SUCCESS, fontsize=TEXT)
        right.tick_params(labelsize=SMALL)
        right.set_ylim(-0.02, 1.02)
    save(figure, path)


def plot_trajectories(
    env: EnvBase, rollout: TensorDictBase, path: str | Path, *, num_paths: int = 8
) -> bool:
    """Draw paths of tasks in the plane, from the worst return to the best.

    Args:
        env: the environment that was played, in whose running episodes the tasks still are.
        rollout: one episode per environment of shape `[B, T]`, as `Evaluation.rollout`.
        path: file to write; its ending chooses the format.
        num_paths: number of paths, evenly spread over the ranks of the returns.

    Returns:
        Whether a picture was drawn: false for environments that are in no plane, see `BatchedEnv`.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.envs import PointRobotEnv
        >>> from torchrl_shm.figures import plot_trajectories
        >>> env = PointRobotEnv(3, max_steps=20)
        >>> plot_trajectories(env, env.rollout(40), mkdtemp() + "/paths.png", num_paths=2)
        True
    """
    plane: Plane | None = ask_env(env, "plane", lambda: None)()
    if plane is None:
        return False
    from matplotlib.patches import Circle

    returns = rollout["next", "reward"].squeeze(-1).double().sum(-1).cpu()
    picked = returns.argsort()[torch.linspace(0, len(returns) - 1, num_paths).long()]
    first, later = rollout["observation"][:, :1], rollout["next", "observation"]
    positions = torch.cat([first, later], dim=1).cpu()[picked]
    name = "test task" if ask_env(env, "split") == "test" else "environment"

    columns = min(2, num_paths)
    rows = -(-num_paths // columns)
    # no taller than the paths need
    width, height = (positions.amax((0, 1)) - positions.amin((0, 1))).clamp(min=1e-3).tolist()
    figure = new_figure(min(2.7, 0.7 + 2.1 * height / width) * rows + 0.4)
    # the same scale everywhere: distances compare
    grid: Any = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[num_paths:]:
        axes.axis("off")
    num_steps = positions.shape[1] - 1
    # the start is seen of the first episode only
    firsts = [0, *range(plane.max_steps + 1, num_steps + 1, plane.max_steps)]
    for axes, xy, i in zip(grid, positions.numpy(), picked.tolist(), strict=False):
        goal = plane.goal[i].cpu().numpy()
        # below the path, whose end it would hide
        axes.plot(*goal, "*", color="tab:orange", markersize=12, zorder=1)
        axes.add_patch(Circle(tuple(goal), plane.goal_radius, fill=False, color="tab:orange"))
        for episode, first in enumerate(firsts):
            part = xy[first : (episode + 1) * plane.max_steps + 1]
            color = _EPISODE_COLORS[episode % len(_EPISODE_COLORS)]
            axes.plot(*part.T, ".-", color=color, linewidth=0.8, markersize=2)
            axes.plot(*part[0], "o", color="black", markersize=4)
        if plane.drift is not None:
            tip = xy[0] + 5 * plane.drift[i].cpu().numpy()
            arrow = {"arrowstyle": "->", "color": "tab:green"}
            axes.annotate("", xy=tip, xytext=xy[0], arrowprops=arrow)
            # arrows neither count for the limits nor are drawn beyond them
            axes.update_datalim([tip])
        axes.autoscale_view()
        axes.set_title(f"{name} {i}:\nreturn {returns[i]:.0f}")
        axes.set_aspect("equal", adjustable="box")
        dress(axes)
    legend = "black: start, star: goal"
    if plane.drift is not None:
        legend += ", green: five steps of drift"
    if plane.goal_radius < 0.05:
        legend += f"\nthe circle around the goal, radius {plane.goal_radius:g}, is drawn to scale"
    if len(firsts) > 1:
        colors = [color.removeprefix("tab:") for color in _EPISODE_COLORS[: len(firsts)]]
        legend += "\nepisodes: " + ", ".join(colors)
    figure.suptitle(legend, fontsize=TEXT)
    save(figure, path)
    return True
