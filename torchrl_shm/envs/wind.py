"""Wind: reach a small goal although a wind that cannot be seen carries the agent away."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

Split = Literal["train", "test"]

# one list of tasks for all: seeds of runs choose among its tasks, never other tasks
_TASK_SEED = 1337
# what an action of 1 moves
_STEP_SIZE = 0.1
_TENSORS = ("goal", "train_ids", "train_tasks", "test_ids", "test_tasks", "_one", "_step_size")


class _State(NamedTuple):
    """What an episode is made of; replaced as a whole, never written to."""

    position: Tensor  # [B, 2] float64
    wind: Tensor  # [B, 2] float64
    previous_action: Tensor  # [B, 2] float32
    success: Tensor  # [B, 1] bool
    step_count: Tensor  # [B, 1] int64


class WindEnv(EnvBase):
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

    _supports_set_state = True

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
        for name, size in {"num_envs": num_envs, **sizes}.items():
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

        super().__init__(device=torch.device(device), batch_size=(num_envs,))
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

        self._state: _State | None = None
        self._make_specs()
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        self._set_seed(seed)

    @property
    def wind(self) -> Tensor:
        """The winds of the running episodes, float64 of shape `[B, 2]`; hidden from the agent."""
        return self._running().wind

    def to(self, device: torch.device | str | int) -> WindEnv:
        """Move everything to another device; the generator starts anew there, from its seed."""
        before = self.device
        super().to(device)
        if self.device != before:
            for name in _TENSORS:
                setattr(self, name, getattr(self, name).to(self.device))
            if self._state is not None:
                self._state = _State(*(entry.to(self.device) for entry in self._state))
            # the state of a generator means nothing to a generator of another device
            self._set_seed(self._generator.initial_seed())
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Running episodes and generator, so that `state_dict` is all it takes to go on."""
        state = {} if self._state is None else self._state._asdict()
        return {**state, "generator": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_extra_state` returned, for the same number of environments."""
        entries = dict(state)
        self._generator.set_state(entries.pop("generator").cpu())
        if entries and (found := len(entries["position"])) != self.batch_size[0]:
            raise ValueError(
                f"the saved state is of {found} environments, this is {self.batch_size[0]}; "
                f"build it with num_envs={found}"
            )
        moved = {name: entry.to(self.device) for name, entry in entries.items()}
        self._state = _State(**moved) if moved else None

    def _make_specs(self) -> None:
        batch, device = self.batch_size, self.device
        plane, flag = torch.Size((*batch, 2)), torch.Size((*batch, 1))
        action = Bounded(-1, 1, shape=plane, dtype=torch.float32, device=device)
        self.action_spec = action
        self.observation_spec = Composite(
            observation=Unbounded(plane, dtype=torch.float32, device=device),
            previous_action=action.clone(),
            success=Binary(shape=flag, dtype=torch.bool, device=device),
            shape=batch,
            device=device,
        )
        if self.shaping_radii is not None:
            self.observation_spec["shaping"] = Bounded(
                0, 1, shape=flag, dtype=torch.float32, device=device
            )
        self.reward_spec = Bounded(0, 1, shape=flag, dtype=torch.float32, device=device)
        self.full_done_spec = Composite(
            {
                name: Categorical(2, shape=flag, dtype=torch.bool, device=device)
                for name in ("done", "terminated", "truncated")
            },
            shape=batch,
            device=device,
        )

    def _set_seed(self, seed: int | None) -> None:
        self._generator = torch.Generator(self.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def _running(self) -> _State:
        if self._state is None:
            raise RuntimeError("no episode is running; call reset() first")
        return self._state

    def _draw_winds(self) -> Tensor:
        if self.split == "test":
            return self.test_tasks
        options: dict[str, Any] = {"generator": self._generator, "device": self.device}
        winds = self.train_tasks[torch.randint(self.num_train_tasks, self.batch_size, **options)]
        if self.mirror:
            winds[:, 0] *= 1 - 2 * torch.randint(2, self.batch_size, **options)
        return winds

    def _assert_tensordict_shape(self, tensordict: TensorDictBase) -> None:
        # TensorDict({"wind": wind}), without a batch size, means that of the environment
        if not tensordict.batch_size and tensordict.get("wind", None) is not None:
            self._given_winds(tensordict)
            tensordict.batch_size = self.batch_size  # pyright: ignore[reportAttributeAccessIssue]
        super()._assert_tensordict_shape(tensordict)

    def _given_winds(self, tensordict: TensorDictBase | None) -> Tensor:
        wind = None if tensordict is None else tensordict.get("wind", None)
        shape = (*self.batch_size, 2)
        if wind is None or wind.shape != shape:
            raise ValueError(
                f'set_state=True needs an entry "wind" of shape {shape}, got '
                f"{'none' if wind is None else tuple(wind.shape)}; reset with "
                f'TensorDict({{"wind": wind}}, batch_size={list(self.batch_size)}), below '
                "transforms, which drop the entry, with env.base_env.reset after env.reset"
            )
        return wind.to(self.device, torch.float64)

    def _reset(
        self, tensordict: TensorDictBase | None, *, set_state: bool = False, **kwargs: Any
    ) -> TensorDictBase:
        wind = self._given_winds(tensordict) if set_state else self._draw_winds()
        mask = None if tensordict is None else tensordict.get("_reset", None)
        old = self._state
        if mask is None or old is None:
            zeros = torch.zeros_like(wind)
            flag = torch.zeros((*self.batch_size, 1), dtype=torch.bool, device=self.device)
            start = zeros.to(torch.float32)
            self._state = _State(zeros, wind, start, flag, flag.to(torch.int64))
        else:
            mask = mask.reshape(*self.batch_size, 1)
            self._state = _State(
                position=old.position.masked_fill(mask, 0.0),
                wind=torch.where(mask, wind, old.wind),
                previous_action=old.previous_action.masked_fill(mask, 0.0),
                success=old.success & ~mask,
                step_count=old.step_count.masked_fill(mask, 0),
            )
        return self._emit(self._state)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        old = self._running()
        # no gradient: it would tie all steps that follow to the policy
        action = tensordict.get("action").detach().clamp(-1, 1)
        # low + (a + 1) / 2 * (high - low), in the dtype of the action, rounded as in the original:
        # factors of two are exact, and the result never leaves the bounds, so no second clip
        move = (action + self._one) * self._step_size - self._step_size
        position = old.position + move + old.wind
        reached = self._distance(position) <= self.goal_radius
        new = _State(
            position=position,
            wind=old.wind,
            previous_action=action.float(),
            success=old.success | reached,
            step_count=old.step_count + 1,
        )
        # torchrl's way to let some environments wait
        if (mask := tensordict.get("_step", None)) is not None:
            mask = mask.reshape(*self.batch_size, 1)
            reached = reached & mask
            new = _State(*(torch.where(mask, *pair) for pair in zip(new, old, strict=True)))
        self._state = new
        return self._emit(new, reached.float())

    def _distance(self, position: Tensor) -> Tensor:
        return torch.linalg.vector_norm(position - self.goal, dim=-1, keepdim=True)

    def _shaping(self, position: Tensor, smallest: float, largest: float) -> Tensor:
        # at the goal itself the logarithm is minus infinity, and the share 1
        closeness = torch.log(self._distance(position) / largest)
        return (closeness / math.log(smallest / largest)).clamp(0, 1).float()

    def _emit(self, state: _State, reward: Tensor | None = None) -> TensorDictBase:
        truncated = state.step_count >= self.max_steps
        entries = {
            "observation": state.position.float(),
            "previous_action": state.previous_action,
            "success": state.success,
            # each flag is a tensor of its own: what others do to one must not reach another
            "done": truncated.clone(),
            "terminated": torch.zeros_like(truncated),
            "truncated": truncated,
        }
        if self.shaping_radii is not None:
            entries["shaping"] = self._shaping(state.position, *self.shaping_radii)
        if reward is not None:
            entries["reward"] = reward
        # as torchrl's own envs do: checking what is known would cost as much as six operations
        return TensorDict._new_unsafe(  # pyright: ignore[reportPrivateUsage]
            entries, batch_size=self.batch_size, device=self.device
        )
