"""Point Robot: find a goal that cannot be seen, remember it, and find it again."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrl_shm.checks import check_count
from torchrl_shm.envs._navigation import NavigationEnv
from torchrl_shm.envs.contract import Entry, Plane, Split, State, Transition

# the rectangle that episodes start in: a corner and the way to the opposite one
_CORNER = (-1.5, -0.5)
_EXTENT = (3.0, 2.0)


class PointRobotEnv(NavigationEnv):
    """A point in the plane that has to find a hidden goal, and again from a new start.

    ## Description

    Every task has its own goal on the upper half of the unit circle. It is never observed: the
    agent only notices, by a reward, that it is there. The same task is played for `num_episodes`
    episodes of `max_steps` steps, each from another start, and what is remembered of the first
    saves the search in the second. To TorchRL all of them are one episode, which is why memories
    are kept across them.

    All constants together make up the task of the paper on Stable Hadamard Memory, as its authors
    released it (`thaihungle/SHM`, `envs/meta/toy_navigation/point_robot.py`, `SparsePointEnv`, in
    the `VariBadWrapper` of `envs/meta/wrappers.py`), step by step to the last bit.
    `PointRobotEnv()` is that task. What differs:

    - The third number of the original's observation is an entry of its own, `inner_done`.
    - Tasks and splits are the original's, but starts come from the environment's generator.
    - `success` is judged where the reward is. The original asks for it after the restart between
      two episodes, and so judges the last step of all but the last by the new start.

    ## Action Space

    `action`: float32 of shape `[B, 2]`, in [-1, 1]. It is clipped to these bounds and moves the
    point by a tenth of it.

    ## Observation Space

    | Entry | Shape | Dtype | Range | Meaning |
    |---|---|---|---|---|
    | `observation` | `[B, 2]` | float32 | unbounded | position (x, y) |
    | `inner_done` | `[B, 1]` | float32 | 0 or 1 | 1 at the last position of each episode |
    | `previous_action` | `[B, 2]` | float32 | [-1, 1] | action that led here, clipped; 0 at reset |
    | `previous_reward` | `[B, 1]` | float32 | 0 or 1 | reward that came with it; 0 at reset |
    | `success` | `[B, 1]` | bool | | the goal was reached since reset; for logs, not policies |
    | `shaping` | `[B, 1]` | float32 | [0, 1] | only with `shaping_radii`; for training rewards |

    The step that ends an episode but the last shows where it ended, with `inner_done` 1. The point
    is then moved to the start of the next one, which is never shown: the next observation is that
    start plus the move of the next action. The position is kept in float64, as in the original,
    and rounded when it is observed.

    ## Rewards

    1 for every step that ends at a distance of at most `goal_radius` from the goal, otherwise 0.

    With `shaping_radii=(smallest, largest)` the training split also emits `shaping`: the share of
    the discs around the goal with radii between the two, evenly spread on a logarithmic scale,
    that the point is in. The reward itself is never changed, and tests never see `shaping`.

    ## Starting State

    Every episode starts uniformly in [-1.5, 1.5] x [-0.5, 1.5]. With `split="train"`, every reset
    draws one of the training tasks, uniformly and independently per environment. With
    `split="test"`, environment `i` always plays test task `i`, from starts that are drawn.
    `reset(TensorDict({"goal": goal, "start": start}), set_state=True)` takes the goals, of shape
    `[B, 2]`, and the starts of all episodes, of shape `[B, num_episodes, 2]`, that are given.

    The half circle and the rectangle of the starts are the same in a mirror. With `mirror`, half of
    the training episodes have a goal with the opposite x: twice as many goals to learn from, which
    leave fewer gaps between them. Tests are never mirrored. With `repeat_failed` goals that are
    not found come more often: an environment plays the same goal again with that probability.

    The tasks are points (cos a, sin a) with a drawn uniformly from [0, pi] with NumPy's seed 1337,
    whatever the seed of the environment, and shuffled from the same stream: the first
    `num_train_tasks` are for training, the last `num_test_tasks` for tests.

    ## Episode End

    Truncated after `num_episodes` times `max_steps` steps, never terminated: neither the goal nor
    the end of another episode than the last ends it.

    Args:
        num_envs: number of environments B; default 64 for training, and for tests always the
            number of test tasks.
        split: `"train"` or `"test"`.
        num_tasks: number of tasks that are drawn.
        num_train_tasks: how many of them are for training.
        num_test_tasks: how many of them are for tests.
        goal_radius: largest distance from the goal that is rewarded.
        max_steps: length of each of the episodes.
        num_episodes: how many episodes a task is played for.
        shaping_radii: smallest and largest disc that `shaping` counts; `None` emits no `shaping`.
        mirror: mirror the goal of every training episode with a probability of one half.
        repeat_failed: probability with which a training episode in which the goal was not found is
            followed by one with the same goal.
        seed: seed of the environment's own generator, which draws training tasks and starts;
            `None` draws one from torch's default generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: a number is not positive or not finite, `split` is unknown, the tasks are fewer
            than those of training and test together, or `num_envs` is not that of the test tasks.

    Attributes:
        train_ids: indices of the training tasks in the list of all, int64 of shape `[N]`.
        train_tasks: goals of the training tasks, float64 of shape `[N, 2]`.
        test_ids: indices of the test tasks, int64 of shape `[N]`.
        test_tasks: goals of the test tasks, float64 of shape `[N, 2]`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_shm.envs import PointRobotEnv
        >>> env = PointRobotEnv(num_envs=3, seed=0)
        >>> rollout = env.rollout(200)
        >>> rollout["next", "inner_done"][0, :, 0].nonzero()[:, 0]
        tensor([ 99, 199])
        >>> rollout["next", "truncated"][0, :, 0].nonzero()[:, 0]
        tensor([199])

        A goal and starts of one's own:

        >>> goal = torch.tensor([[0.0, 1.0]]).expand(3, 2)
        >>> layout = TensorDict({"goal": goal, "start": torch.zeros(3, 2, 2)}, [3])
        >>> data = env.reset(layout, set_state=True)
        >>> data = env.step(data.set("action", goal))
        >>> data["next", "observation"][0]
        tensor([0.0000, 0.1000])

    ## Version History

    - v0: as released with the paper: radius 0.05, two episodes of 100 steps, 200 tasks. Its
      ancestor in `pomdp-baselines` has radius 0.2, 60 steps and 100 tasks (80 and 20); it draws
      another list of tasks in every run, from the run's seed, where here it is the list that the
      released code would draw with 100 tasks.
    """

    policy_keys = ("observation", "inner_done", "previous_action", "previous_reward")

    _tensors = (*NavigationEnv._tensors, "_corner", "_extent")
    _task = "goal"

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        split: Split = "train",
        num_tasks: int = 200,
        num_train_tasks: int = 50,
        num_test_tasks: int = 150,
        goal_radius: float = 0.05,
        max_steps: int = 100,
        num_episodes: int = 2,
        shaping_radii: tuple[float, float] | None = None,
        mirror: bool = False,
        repeat_failed: float = 0.0,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        check_count("num_episodes", num_episodes)
        super().__init__(
            num_envs,
            split=split,
            draw_tasks=lambda random: _draw_goals(random, num_tasks),
            num_tasks=num_tasks,
            num_train_tasks=num_train_tasks,
            num_test_tasks=num_test_tasks,
            goal_radius=goal_radius,
            max_steps=max_steps,
            shaping_radii=shaping_radii,
            mirror=mirror,
            repeat_failed=repeat_failed,
            seed=seed,
            device=device,
            observation={"inner_done": (0, 1), "previous_reward": (0, 1)},
        )
        self.num_episodes = num_episodes
        self._corner = torch.tensor(_CORNER, dtype=torch.float64, device=self.device)
        self._extent = torch.tensor(_EXTENT, dtype=torch.float64, device=self.device)

    @property
    def goal(self) -> Tensor:
        """The goals of the running tasks, float64 of shape `[B, 2]`; hidden from the agent."""
        return self._running()["goal"]

    @property
    def start(self) -> Tensor:
        """Where their episodes start, float64 of shape `[B, num_episodes, 2]`."""
        return self._running()["start"]

    def plane(self) -> Plane:
        """The goals of the running tasks."""
        return Plane(self.goal, self.goal_radius, self.max_steps)

    def _layout(self) -> dict[str, Entry]:
        return {
            "goal": Entry((2,), torch.float64),
            "start": Entry((self.num_episodes, 2), torch.float64),
        }

    def _draw(self, count: int) -> State:
        goal = self._draw_tasks(count)
        share = torch.rand(
            (count, self.num_episodes, 2),
            generator=self._generator,
            dtype=torch.float64,
            device=self.device,
        )
        return {"goal": goal, "start": self._corner + share * self._extent}

    def _start(self, layout: State) -> State:
        position = layout["start"][:, 0].clone()
        flag = torch.zeros_like(position[:, :1], dtype=torch.bool)
        return {
            **layout,
            "position": position,
            # where the next move begins: the position, or the start of the next episode
            "origin": position,
            "distance": self._distance(position, layout["goal"]),
            "previous_action": torch.zeros_like(position, dtype=torch.float32),
            "previous_reward": flag.float(),
            "inner_done": flag.float(),
            "success": flag,
            "step_count": flag.to(torch.int64),
        }

    def _advance(self, state: State, action: Tensor) -> Transition:
        action = action.clamp(-1, 1)
        position = state["origin"] + self._move(action)
        distance = self._distance(position, state["goal"])
        reached = distance <= self.goal_radius
        reward = reached.float()
        step_count = state["step_count"] + 1
        inner_done = step_count % self.max_steps == 0
        # beyond the end, where only rows that wait for others go, the last start is used again
        episode = (step_count // self.max_steps).clamp(max=self.num_episodes - 1)
        start = state["start"].take_along_dim(episode.unsqueeze(-1), dim=1).squeeze(1)
        new = {
            "goal": state["goal"],
            "start": state["start"],
            "position": position,
            "origin": torch.where(inner_done, start, position),
            "distance": distance,
            "previous_action": action.float(),
            "previous_reward": reward,
            "inner_done": inner_done.float(),
            "success": state["success"] | reached,
            "step_count": step_count,
        }
        # a tensor of its own: what a training loop does to rewards must not reach the state
        truncated = step_count >= self.max_steps * self.num_episodes
        return Transition(new, reward.clone(), None, truncated)

    def _observe(self, state: State) -> State:
        return {
            **super()._observe(state),
            "inner_done": state["inner_done"],
            "previous_reward": state["previous_reward"],
        }


def _draw_goals(random: np.random.RandomState, num_tasks: int) -> NDArray[np.float64]:
    """Draw the list of goals, with all else that the original draws before and after."""
    # goals in the square, which its base class makes, and a reset
    random.uniform(size=2 * num_tasks + 2)
    angles = random.uniform(0, np.pi, num_tasks)
    goals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    random.shuffle(goals)
    # another reset
    random.uniform(size=2)
    return goals
