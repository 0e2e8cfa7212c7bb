"""Draw what tasks look like.

python docs/pictures/tasks.py

writes `key_to_door.png`, `visual_match_rooms.png` and `point_robot.png` beside this file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tensordict.nn import TensorDictModule

from torchrl_shm.envs import KeyToDoorEnv, PointRobotEnv, VisualMatchEnv
from torchrl_shm.figures import plot_trajectories
from torchrl_shm.figures.style import TEXT, new_figure, save

HERE = Path(__file__).parent


def draw_rooms(env: KeyToDoorEnv | VisualMatchEnv, titles: list[str], path: Path) -> None:
    """Draw the board in the middle of each room, of a player who moves at random."""
    torch.manual_seed(0)
    middles = [sum(env.frames[:room]) + 2 for room in range(3)]
    figure = new_figure(1.5)
    panels = list(figure.subplots(1, 3))
    data = env.reset()
    for step in range(sum(env.frames)):
        if step in middles:
            axes = panels[middles.index(step)]
            axes.imshow(env.render(0))
            axes.set_title(titles[middles.index(step)], fontsize=TEXT)
            axes.set_axis_off()
        data = env.step(env.rand_action(data))["next"]
    save(figure, path)


def draw_point_robot(path: Path) -> None:
    """Draw the paths of a player who knows the goal in two tasks."""
    env = PointRobotEnv(split="test", num_test_tasks=2, seed=0)

    policy = TensorDictModule(
        lambda seen: ((env.goal - seen) / 0.1).float(), ["observation"], ["action"]
    )
    plot_trajectories(env, env.rollout(1_000, policy), path, num_paths=2)


if __name__ == "__main__":
    draw_rooms(
        KeyToDoorEnv(1, seed=0), ["find the key", "apples", "the door"], HERE / "key_to_door.png"
    )
    draw_rooms(
        VisualMatchEnv(1, seed=0),
        ["see a color", "apples", "choose the field"],
        HERE / "visual_match_rooms.png",
    )
    draw_point_robot(HERE / "point_robot.png")
