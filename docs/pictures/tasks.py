"""Draw what tasks look like.

python docs/pictures/tasks.py

writes `key_to_door.png`, `visual_match_rooms.png` and `point_robot.png` beside this file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from torchrl_shm.envs import KeyToDoorEnv, PointRobotEnv, VisualMatchEnv
from torchrl_shm.figures import plot_trajectories

HERE = Path(__file__).parent


def draw_rooms(env: KeyToDoorEnv | VisualMatchEnv, titles: list[str], path: Path) -> None:
    """Draw the board in the middle of each room, of a player who goes at random."""
    torch.manual_seed(0)
    middles = [sum(env.frames[:room]) + 2 for room in range(3)]
    figure = Figure(figsize=(5, 1.5), layout="constrained")
    panels = list(figure.subplots(1, 3))
    data = env.reset()
    for step in range(sum(env.frames)):
        if step in middles:
            axes = panels[middles.index(step)]
            axes.imshow(env.render(0))
            axes.set_title(titles[middles.index(step)], fontsize=9)
            axes.set_axis_off()
        data = env.step(env.rand_action(data))["next"]
    figure.savefig(path, dpi=150)


def draw_point_robot(path: Path) -> None:
    """Draw two episodes of a player who knows the goal."""
    env = PointRobotEnv(split="test", seed=0)
    data = env.reset()
    seen, total = [data["observation"]], torch.zeros(env.batch_size)
    for _ in range(env.num_episodes * env.max_steps):
        data["action"] = ((env.goal - data["observation"]) / 0.1).float()
        data = env.step(data)["next"]
        seen.append(data["observation"])
        total += data["reward"].squeeze(-1)
    picked = [0, 1]
    plot_trajectories(
        torch.stack(seen, 1)[picked],
        path,
        goals=env.test_tasks[picked],
        goal_radius=env.goal_radius,
        returns=total[picked],
        labels=[f"test task {i}" for i in picked],
        num_episodes=env.num_episodes,
    )


if __name__ == "__main__":
    draw_rooms(
        KeyToDoorEnv(1, seed=0), ["find the key", "apples", "the door"], HERE / "key_to_door.png"
    )
    draw_rooms(
        VisualMatchEnv(1, seed=0),
        ["see a colour", "apples", "choose the field"],
        HERE / "visual_match_rooms.png",
    )
    draw_point_robot(HERE / "point_robot.png")
