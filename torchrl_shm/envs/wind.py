"""Wind: reach a small goal although a wind that cannot be seen carries the agent away."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Binary, Bounded, Unbounded

from torchrl_shm.envs._base import BatchedEnv, Entry, State, Transition

Split = Literal["train", "test"]

# one list of tasks for all: seeds of runs choose among its tasks, never other tasks
_TASK_SEED = 1337
# what an action of 1 moves
_STEP_SIZE = 0.1


class WindEnv(BatchedEnv):
    """A point in the plane that has to reach a goal and stay there, in a wind it cannot see.

    ## Description

    Every task has its own wind, constant in time, that moves the point at every step. Neither the
    wind nor the task is observed: the agent has to infer the wind from how its own moves turned
    out, and to remember it. All constants together make up the task of the paper on Stable
    Hadamard Memory, as its authors released it (`thaihungle/SHM`,
    `envs/meta/toy_navigation/wind.py`, with the action scaling of `envs/meta/wrappers.py`), step
    by step to the last bit. `WindEnv()` is that task.

    ## Action Space

    `action`: float32 of shape `[B, 2]`, in [-1, 1]. It is clipped to these bounds and moves the
    point by a tenth of it.

    ## Observation Space

    | Entry | Shape | Dtype | Range | Meaning |
    |---|---|---|---|---|
    | `observation` | `[B, 2]` | float32 | unbounded | position (x, y) |
    | `previous_action` | `[B, 2]` | float32 | [-1, 1] | action that led here, clipped; 0 at reset |
    | `success` | `[B, 1]` | bool | | the goal was reached in this episode; for logs, not policies |
    | `shaping` | `[B, 1]` | float32 | [0, 1] | only with `shaping_radii`; for training rewards |

    The position is kept in float64, as in the original, and rounded when it is observed.

    ## Rewards

    1 for every step that ends at a distance of at most `goal_radius` from the goal at (0, 1),
    otherwise 0.

    So small a disc is hardly ever hit by chance. With `shaping_radii=(smallest, largest)` the
    training split also emits `shaping`: the share of the discs around the goal with radii between
    the two, evenly spread on a logarithmic scale, that the point is in. It grows by the same
    amount with every halving of the distance. The reward itself is never changed; a training loop
    adds `shaping` to it if it wants to, and tests never see it.

    ## Starting State

    The point starts at (0, 0). With `split="train"`, every reset draws one of the training tasks,
    uniformly and independently per environment. With `split="test"`, environment `i` always plays
    test task `i`. `reset(TensorDict({"wind": wind}), set_state=True)` takes the winds given,
    of shape `[B, 2]`, for one episode. TorchRL's transforms drop the entry, so below them call
    `base_env.reset` after `reset`: the wind is all that it changes.

    The tasks are winds drawn uniformly from [-`max_wind`, `max_wind`]² with NumPy's seed 1337,
    whatever the seed of the environment, and shuffled from the same stream: the first
    `num_train_tasks` are for training, the last `num_test_tasks` for tests. Some winds are too
    strong to get to the goal in time: 11 of the default 200, 10 of the 150 test tasks.

    Start and goal lie on the axis x = 0, so a task seen in a mirror is a task of the same kind.
    With `mirror`, half of the training episodes are seen so: their wind has the opposite x. It
    doubles what can be learned from the training tasks; tests are never mirrored.

    ## Episode End

    Truncated after `max_steps` steps, never terminated: reaching the goal does not end it.

    Args:
        num_envs: number of environments B; default 64 for training, and for tests always the
            number of test tasks.
        split: `"train"` or `"test"`.
        num_tasks: number of tasks that are drawn.
        num_train_tasks: how many of them are for training.
        num_test_tasks: how many of them are for tests.
        max_wind: bound on each component of the wind, per step.
        goal_radius: distance from the goal that is close enough.
        max_steps: length of an episode.
        shaping_radii: smallest and largest disc that `shaping` counts; `None` emits no `shaping`.
        mirror: mirror every training episode with a probability of one half.
        seed: seed of the environment's own generator, which draws the training tasks; `None`
            draws one from torch's default generator.
        device: device of all tensors, state and generator included.

    Attributes:
        goal: the goal, float64 of shape `[2]`.
        train_ids: indices of the training tasks in the list of all, int64 of shape `[N]`.
        train_tasks: winds of the training tasks, float64 of shape `[N, 2]`.
        test_ids: indices of the test tasks, int64 of shape `[N]`.
        test_tasks: winds of the test tasks, float64 of shape `[N, 2]`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_shm.envs import WindEnv
        >>> env = WindEnv(num_envs=3, seed=0)
        >>> rollout = env.rollout(100)
        >>> rollout.shape
        torch.Size([3, 100])
        >>> rollout["next", "truncated"][:, -1].all(), rollout["next", "terminated"].any()
        (tensor(True), tensor(False))

        A wind of one's own, and an action that does nothing:

        >>> wind = TensorDict({"wind": torch.tensor([[0.0, 0.1]]).expand(3, 2)}, [3])
        >>> data = env.reset(wind, set_state=True)
        >>> data = env.step(data.set("action", torch.zeros(3, 2)))
        >>> data["next", "observation"][0]
        tensor([0.0000, 0.1000])

    ## Version History

    - v0: as released with the paper: radius 0.01, winds up to 0.1, 100 steps, 200 tasks. Its
      ancestor in `pomdp-baselines` has radius 0.03, winds up to 0.08, 75 steps and 60 tasks
      (40 and 20).
    """

    _tensors = (
        "goal", "train_ids", "train_tasks", "test_ids", "test_tasks", "_one", "_step_size",
    )  # fmt: skip

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        split: Split = "train",
        num_tasks: int = 200,
        num_train_tasks: int = 50,
        num_test_tasks: int = 150,
        max_wind: float = 0.1,
        goal_radius: float = 0.01,
        max_steps: int = 100,
        shaping_radii: tuple[float, float] | None = None,
        mirror: bool = False,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
        sizes = {
            "num_tasks": num_tasks,
            "num_train_tasks": num_train_tasks,
            "num_test_tasks": num_test_tasks,
            "max_steps": max_steps,
        }
        if num_envs is None:
            num_envs = 64 if split == "train" else num_test_tasks
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if num_train_tasks + num_test_tasks > num_tasks:
            raise ValueError(
                f"num_train_tasks + num_test_tasks = {num_train_tasks} + {num_test_tasks} is more "
                f"than num_tasks = {num_tasks}, so that tests would meet tasks of training; lower "
                "one of the two or raise num_tasks"
            )
        if split == "test" and num_envs != num_test_tasks:
            raise ValueError(
                f'split="test" plays each of the {num_test_tasks} test tasks in its own '
                f"environment, got num_envs={num_envs}; leave num_envs out, or set num_test_tasks"
            )
        if not 0 <= max_wind < math.inf:
            raise ValueError(f"max_wind must be finite and not negative, got {max_wind}")
        if not 0 < goal_radius < math.inf:
            raise ValueError(f"goal_radius must be finite and positive, got {goal_radius}")
        if shaping_radii is not None and not 0 < shaping_radii[0] < shaping_radii[1] < math.inf:
            raise ValueError(
                "shaping_radii must be a positive smallest and a larger, finite largest radius, "
                f"got {tuple(shaping_radii)}; None emits no shaping"
            )

        super().__init__(num_envs, device)
        self.split: Split = split
        self.num_tasks = num_tasks
        self.num_train_tasks = num_train_tasks
        self.num_test_tasks = num_test_tasks
        self.max_wind = max_wind
        self.goal_radius = goal_radius
        self.max_steps = max_steps
        # tests are scored by the task's own reward alone
        self.shaping_radii = shaping_radii if split == "train" else None
        self.mirror = mirror and split == "train"

        random = np.random.RandomState(_TASK_SEED)
        winds = torch.from_numpy(random.uniform(-max_wind, max_wind, (num_tasks, 2)))
        order = torch.from_numpy(random.permutation(num_tasks).astype(np.int64))
        train_ids, test_ids = order[:num_train_tasks], order[-num_test_tasks:]
        # indexing copies, so nothing refers to the tensors above
        self.train_tasks = winds[train_ids].to(self.device)
        self.test_tasks = winds[test_ids].to(self.device)
        self.train_ids = train_ids.to(self.device)
        self.test_ids = test_ids.to(self.device)
        self.goal = torch.tensor([0.0, 1.0], dtype=torch.float64, device=self.device)
        # bounds are float32 as in the original, and tensors because these are faster than numbers
        self._one = torch.ones((), device=self.device, dtype=torch.float32)
        self._step_size = self._one * _STEP_SIZE

        plane, flag = torch.Size((num_envs, 2)), torch.Size((num_envs, 1))
        kwargs: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        action = Bounded(-1, 1, shape=plane, **kwargs)
        observation: dict[str, Any] = {
            "observation": Unbounded(plane, **kwargs),
            "previous_action": action.clone(),
            "success": Binary(shape=flag, dtype=torch.bool, device=self.device),
        }
        if self.shaping_radii is not None:
            observation["shaping"] = Bounded(0, 1, shape=flag, **kwargs)
        self._set_up(observation, action, (0, 1), seed)

    @property
    def wind(self) -> Tensor:
        """The winds of the running episodes, float64 of shape `[B, 2]`; hidden from the agent."""
        return self._running()["wind"]

    def _layout(self) -> dict[str, Entry]:
        return {"wind": Entry((2,), torch.float64)}

    def _draw(self, count: int) -> State:
        if self.split == "test":
            return {"wind": self.test_tasks}
        options: dict[str, Any] = {"generator": self._generator, "device": self.device}
        wind = self.train_tasks[torch.randint(self.num_train_tasks, (count,), **options)]
        if self.mirror:
            wind[:, 0] *= 1 - 2 * torch.randint(2, (count,), **options)
        return {"wind": wind}

    def _start(self, layout: State) -> State:
        wind = layout["wind"]
        position = torch.zeros_like(wind)
        flag = torch.zeros_like(wind[:, :1], dtype=torch.bool)
        state = {
            "wind": wind,
            "position": position,
            "previous_action": position.float(),
            "success": flag,
            "step_count": flag.to(torch.int64),
        }
        return {**state, "distance": self._distance(position)}

    def _advance(self, state: State, action: Tensor) -> Transition:
        action = action.clamp(-1, 1)
        # low + (a + 1) / 2 * (high - low), in the dtype of the action, rounded as in the original:
        # factors of two are exact, and the result never leaves the bounds, so no second clip
        move = (action + self._one) * self._step_size - self._step_size
        position = state["position"] + move + state["wind"]
        distance = self._distance(position)
        reached = distance <= self.goal_radius
        step_count = state["step_count"] + 1
        new = {
            "wind": state["wind"],
            "position": position,
            "previous_action": action.float(),
            "success": state["success"] | reached,
            "step_count": step_count,
            "distance": distance,
        }
        return Transition(new, reached.float(), None, step_count >= self.max_steps)

    def _distance(self, position: Tensor) -> Tensor:
        return torch.linalg.vector_norm(position - self.goal, dim=-1, keepdim=True)

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
