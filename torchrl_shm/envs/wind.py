"""Wind: reach a small goal although a wind that cannot be seen carries the agent away."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs._checks import check_size
from torchrl_shm.envs._navigation import NavigationEnv
from torchrl_shm.envs.contract import Entry, Plane, Split, State, Transition


class WindEnv(NavigationEnv):
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

    Such a small disc is hardly ever hit by chance. With `shaping_radii=(smallest, largest)` the
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
    doubles what can be learned from the training tasks; tests are never mirrored. With
    `repeat_failed` winds in which the goal was missed come more often: an environment plays the
    same wind again with that probability.

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
        goal_radius: largest distance from the goal that is rewarded.
        max_steps: length of an episode.
        shaping_radii: smallest and largest disc that `shaping` counts; `None` emits no `shaping`.
        mirror: mirror every training episode with a probability of one half.
        repeat_failed: probability with which a training episode without success is followed by one
            with the same wind.
        seed: seed of the environment's own generator, which draws the training tasks; `None`
            draws one from torch's default generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: a number is not positive or not finite, `split` is unknown, the tasks are fewer
            than those of training and test together, or `num_envs` is not that of the test tasks.

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

    _tensors = (*NavigationEnv._tensors, "goal")
    _task = "wind"

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
        repeat_failed: float = 0.0,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        check_size("max_wind", max_wind, zero=True)
        super().__init__(
            num_envs,
            split=split,
            draw_tasks=lambda random: random.uniform(-max_wind, max_wind, (num_tasks, 2)),
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
        )
        self.max_wind = max_wind
        self.goal = torch.tensor([0.0, 1.0], dtype=torch.float64, device=self.device)

    @property
    def wind(self) -> Tensor:
        """The winds of the running episodes, float64 of shape `[B, 2]`; hidden from the agent."""
        return self._running()["wind"]

    def plane(self) -> Plane:
        """The goal and the winds of the running episodes."""
        goal = self.goal.expand(self.num_envs, 2)
        return Plane(goal, self.goal_radius, self.max_steps, drift=self.wind)

    def _layout(self) -> dict[str, Entry]:
        return {"wind": Entry((2,), torch.float64)}

    def _draw(self, count: int) -> State:
        return {"wind": self._draw_tasks(count)}

    def _start(self, layout: State) -> State:
        wind = layout["wind"]
        position = torch.zeros_like(wind)
        flag = torch.zeros_like(wind[:, :1], dtype=torch.bool)
        return {
            "wind": wind,
            "position": position,
            "distance": self._distance(position, self.goal),
            "previous_action": position.float(),
            "success": flag,
            "step_count": flag.to(torch.int64),
        }

    def _advance(self, state: State, action: Tensor) -> Transition:
        action = action.clamp(-1, 1)
        position = state["position"] + self._move(action) + state["wind"]
        distance = self._distance(position, self.goal)
        reached = distance <= self.goal_radius
        step_count = state["step_count"] + 1
        new = {
            "wind": state["wind"],
            "position": position,
            "distance": distance,
            "previous_action": action.float(),
            "success": state["success"] | reached,
            "step_count": step_count,
        }
        return Transition(new, reached.float(), None, step_count >= self.max_steps)
