"""Common parts of tasks in the plane: lists of tasks, moves, and the distance from a goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrl.data import Binary, Bounded, TensorSpec, Unbounded

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.envs._checks import check_size
from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.envs.contract import Split, State

# one list of tasks for all runs, whose seeds only choose among its tasks
_TASK_SEED = 1337
# displacement by an action of 1
_STEP_SIZE = 0.1


class NavigationEnv(BatchedEnv):
    """A point in the plane that has to find a goal, in one of many tasks.

    Attributes and observation entries are documented by the environments. Their states hold
    `position` and `distance` (from the goal), float64, `previous_action` and `success`.

    Args:
        num_envs: number of environments B; `None` is 64, and for tests the number of test tasks.
        split: `"train"` or `"test"`.
        draw_tasks: draws the list of tasks, `[num_tasks, 2]`, from the stream that then shuffles
            it: the first `num_train_tasks` are for training, the last `num_test_tasks` for tests.
        num_tasks: number of tasks that are drawn.
        num_train_tasks: how many of them are for training.
        num_test_tasks: how many of them are for tests.
        goal_radius: largest distance from the goal that is rewarded.
        max_steps: number of steps, as the environment counts them.
        shaping_radii: smallest and largest disc that `shaping` counts; `None` emits no `shaping`.
        mirror: give the task of every training episode the opposite x with a probability of one
            half.
        repeat_failed: probability with which a training episode without success is followed by one
            of the same task instead of a new one.
        seed: seed of the environment's generator.
        device: device of all tensors.
        observation: bounds of further observation entries, float32 of shape `[B, 1]`, by name.

    Raises:
        ValueError: an argument is impossible.
    """

    _tensors = ("train_ids", "train_tasks", "test_ids", "test_tasks", "_one", "_step_size")

    _task: ClassVar[str]
    """Entry of layouts and states that holds the task."""

    def __init__(
        self,
        num_envs: int | None,
        *,
        split: Split,
        draw_tasks: Callable[[np.random.RandomState], NDArray[np.float64]],
        num_tasks: int,
        num_train_tasks: int,
        num_test_tasks: int,
        goal_radius: float,
        max_steps: int,
        shaping_radii: tuple[float, float] | None,
        mirror: bool,
        repeat_failed: float,
        seed: int | None,
        device: torch.device | str | int,
        observation: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        check_option("split", split, Split)
        sizes = {
            "num_tasks": num_tasks,
            "num_train_tasks": num_train_tasks,
            "num_test_tasks": num_test_tasks,
            "max_steps": max_steps,
        }
        if num_envs is None:
            num_envs = 64 if split == "train" else num_test_tasks
        for name, size in sizes.items():
            check_count(name, size)
        if num_train_tasks + num_test_tasks > num_tasks:
            raise ValueError(
                f"num_train_tasks + num_test_tasks = {num_train_tasks} + {num_test_tasks} is more "
                f"than num_tasks = {num_tasks}, so tests would use training tasks; lower one of "
                "the two or raise num_tasks"
            )
        if split == "test" and num_envs != num_test_tasks:
            raise ValueError(
                f'split="test" plays each of the {num_test_tasks} test tasks in its own '
                f"environment, got num_envs={num_envs}; leave num_envs out, or set num_test_tasks"
            )
        check_size("goal_radius", goal_radius)
        if shaping_radii is not None and not (
            len(shaping_radii) == 2 and 0 < shaping_radii[0] < shaping_radii[1] < math.inf
        ):
            raise ValueError(
                "shaping_radii must be a positive smallest and a larger, finite largest radius, "
                f"got {tuple(shaping_radii)}; None emits no shaping"
            )

        if not 0 <= repeat_failed < 1:
            raise ValueError(
                f"repeat_failed must be at least 0 and below 1, got {repeat_failed}; at 1 a task "
                "that cannot be solved would never end"
            )

        super().__init__(num_envs, device)
        self.split = split
        self.num_tasks = num_tasks
        self.num_train_tasks = num_train_tasks
        self.num_test_tasks = num_test_tasks
        self.goal_radius = goal_radius
        self.max_steps = max_steps
        # tests are scored by the reward of the task alone
        self.shaping_radii = shaping_radii if split == "train" else None
        self.mirror = mirror and split == "train"
        self.repeat_failed = repeat_failed if split == "train" else 0.0

        random = np.random.RandomState(_TASK_SEED)
        tasks = torch.from_numpy(draw_tasks(random))
        order = torch.from_numpy(random.permutation(num_tasks).astype(np.int64))
        train_ids, test_ids = order[:num_train_tasks], order[-num_test_tasks:]
        # indexing copies, so the tensors above are not kept
        self.train_tasks = tasks[train_ids].to(self.device)
        self.test_tasks = tasks[test_ids].to(self.device)
        self.train_ids = train_ids.to(self.device)
        self.test_ids = test_ids.to(self.device)
        # bounds are float32 as in the original, and tensors because these are faster than numbers
        self._one = torch.ones((), device=self.device, dtype=torch.float32)
        self._step_size = self._one * _STEP_SIZE

        plane, flag = torch.Size((num_envs, 2)), torch.Size((num_envs, 1))
        kwargs: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        action = Bounded(-1, 1, shape=plane, **kwargs)
        entries: dict[str, TensorSpec] = {
            "observation": Unbounded(plane, **kwargs),
            "previous_action": action.clone(),
            "success": Binary(shape=flag, dtype=torch.bool, device=self.device),
        }
        for name, bounds in (observation or {}).items():
            entries[name] = Bounded(*bounds, shape=flag, **kwargs)
        if self.shaping_radii is not None:
            entries["shaping"] = Bounded(0, 1, shape=flag, **kwargs)
        self._set_up(entries, action, (0, 1), seed)

    def _draw_tasks(self, count: int) -> Tensor:
        """One task per environment, float64 of shape `[count, 2]`."""
        if self.split == "test":
            return self.test_tasks
        options: dict[str, Any] = {"generator": self._generator, "device": self.device}
        tasks = self.train_tasks[torch.randint(self.num_train_tasks, (count,), **options)]
        if self.mirror:
            tasks[:, 0] *= 1 - 2 * torch.randint(2, (count,), **options)
        return tasks

    def _draw_rows(self, rows: Tensor | None) -> State:
        layout = super()._draw_rows(rows)
        if self.repeat_failed and self._state is not None:
            task, success = self._state[self._task], self._state["success"]
            if rows is not None:
                task, success = task[rows], success[rows]
            share = torch.rand(success.shape, generator=self._generator, device=self.device)
            again = ~success & (share < self.repeat_failed)
            layout[self._task] = torch.where(again, task, layout[self._task])
        return layout

    def _move(self, action: Tensor) -> Tensor:
        """Displacement by a clipped action, in the dtype of the action."""
        # low + (a + 1) / 2 * (high - low), rounded as in the original: factors of two are exact,
        # and the result never leaves the bounds, so no second clip
        return (action + self._one) * self._step_size - self._step_size

    def _distance(self, position: Tensor, goal: Tensor) -> Tensor:
        return torch.linalg.vector_norm(position - goal, dim=-1, keepdim=True)

    def _observe(self, state: State) -> State:
        entries = {
            "observation": state["position"].float(),
            "previous_action": state["previous_action"],
            "success": state["success"],
        }
        if self.shaping_radii is not None:
            smallest, largest = self.shaping_radii
            # at the goal itself the logarithm is minus infinity, and the share 1
            closeness = torch.log(state["distance"] / largest)
            share = (closeness / math.log(smallest / largest)).clamp(0, 1)
            entries["shaping"] = share.float()
        return entries
