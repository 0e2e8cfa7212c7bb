"""What all environments share: state in tensors, partial resets, layouts that can be given."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec
from torchrl.envs import EnvBase

from torchrl_shm.checks import check_count
from torchrl_shm.envs._checks import check_finite, check_indices, exact
from torchrl_shm.envs.contract import Entry, Plane, Split, State, Transition
from torchrl_shm.torchrl_private import pack


class BatchedEnv(EnvBase):
    """A batch of environments whose whole state is tensors on one device.

    ## What others ask of an environment

    All of it is optional, and asked for with `ask_env`: any other environment may have it, too.

    | Attribute or entry | Who asks, and why | Without it |
    |---|---|---|
    | `policy_keys` | `make_actor_critic`: the entries that a policy reads | `("observation",)` |
    | `split` | `make_test_env`: whether there is a list of test tasks | episodes are drawn |
    | `group_size` | `RolloutCollector`: rows that play the same layout | groups are refused |
    | observation entry `success` | `evaluate` and the logs: the task's goal was met | no rate |
    | observation entry `shaping` | recipes: help in [0, 1] for training rewards | no help |
    | `render(index)` | `record_episode`: a picture of one environment | numbers are drawn |
    | `plane()` | `record_episode`, `plot_trajectories`: a path can be drawn | no path |

    ## How to write one

    A layout is what is drawn when an episode starts (a wind, a deck, a maze). A subclass defines
    the entries of a layout (`_layout`), how layouts are drawn (`_draw`), how an episode starts from
    them (`_start`), the result of a step (`_advance`) and the observation (`_observe`). All of
    these are pure functions of tensors and never make the host wait for a device. The constructor
    calls `_set_up` at its end.

    Args:
        num_envs: number of environments B.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `num_envs` is not a whole number, or not positive.

    Examples:
        >>> from torchrl_shm.envs import BatchedEnv, TMazeEnv
        >>> env = TMazeEnv(2)
        >>> isinstance(env, BatchedEnv), env.policy_keys, env.split
        (True, ('observation', 'previous_action', 'previous_reward'), None)
    """

    policy_keys: tuple[str, ...] = ("observation", "previous_action")
    """Observation entries that a policy is meant to read."""

    split: Split | None = None
    """The list of tasks that is played; with `"test"`, environment i plays test task i."""

    _supports_set_state = True
    # attributes that `to` moves besides the state
    _tensors: tuple[str, ...] = ()
    # on devices where reading a value is cheap, draw and start only the rows that start
    _draws_rows = False

    def __init__(self, num_envs: int, device: torch.device | str | int) -> None:
        check_count("num_envs", num_envs)
        super().__init__(device=torch.device(device), batch_size=(num_envs,))
        self._state: State | None = None
        self._group_size = 1
        # whether values may be read: on other devices the host would have to wait
        self._looks = self.device.type == "cpu"

    def _set_up(
        self,
        observation: dict[str, TensorSpec],
        action: TensorSpec,
        reward: tuple[float, float],
        seed: int | None,
    ) -> None:
        """Declare the specs and seed the generator.

        Args:
            observation: specs of shape `[B, ...]` by name.
            action: spec of shape `[B]` or `[B, A]`.
            reward: smallest and largest reward of a step.
            seed: seed of the environment's generator; `None` draws one from torch's default one.
        """
        batch, device = self.batch_size, self.device
        flag = torch.Size((*batch, 1))
        self.action_spec = action
        # several indices are a subclass with bounds of their own
        self._num_actions = int(action.n) if type(action) is Categorical else None
        self._action_shape = action.shape
        self._action_dtype = action.dtype
        self._emitted = {*observation, "done", "terminated", "truncated"}
        self.observation_spec = Composite(observation, shape=batch, device=device)
        self.reward_spec = Bounded(*reward, shape=flag, dtype=torch.float32, device=device)
        self.full_done_spec = Composite(
            {
                name: Categorical(2, shape=flag, dtype=torch.bool, device=device)
                for name in ("done", "terminated", "truncated")
            },
            shape=batch,
            device=device,
        )
        self._set_seed(int(torch.randint(2**63 - 1, ())) if seed is None else seed)

    @abstractmethod
    def _layout(self) -> dict[str, Entry]:
        """Entries of a layout by name, which are also those that `set_state=True` needs."""

    @abstractmethod
    def _draw(self, count: int) -> State:
        """Draw layouts `[count, ...]` from the environment's generator."""

    @abstractmethod
    def _start(self, layout: State) -> State:
        """Make the state at the start of episodes with the given layouts."""

    @abstractmethod
    def _advance(self, state: State, action: Tensor) -> Transition:
        """Make one step."""

    @abstractmethod
    def _observe(self, state: State) -> State:
        """Emit the observation entries."""

    def _check_layout(self, layout: State) -> None:
        """Raise ValueError if a given layout cannot be played."""

    def render(self, index: int = 0) -> Tensor | None:
        """Draw one environment.

        Args:
            index: which of the environments.

        Returns:
            uint8 of shape `[H, W, 3]`, on the CPU; `None` if there is no picture.
        """
        return None

    def plane(self) -> Plane | None:
        """Tasks of the running episodes in the plane; `None` for all other environments."""
        return None

    @property
    def num_envs(self) -> int:
        """Number of environments B."""
        return self.batch_size[0]

    @property
    def group_size(self) -> int:
        """Number of rows G that play the same layout, 1 at first.

        Rows kG to (k + 1)G - 1 are a group: those of them that start an episode in the same step
        get the same layout. What is drawn later in an episode still differs from row to row, as
        noise does, and layouts that are given (`set_state=True`) are taken as they are.

        Raises:
            ValueError: it is set to what is not a positive whole number or does not divide
                `num_envs`, or to more than 1 where every row plays a task of its own
                (`split="test"`).
        """
        return self._group_size

    @group_size.setter
    def group_size(self, value: int) -> None:
        check_count("group_size", value)
        if self.num_envs % value:
            raise ValueError(f"group_size={value} must divide num_envs={self.num_envs}")
        if value > 1 and self.split == "test":
            raise ValueError(
                f'group_size={value} is for layouts that are drawn, and split="test" plays every '
                "test task once; use 1"
            )
        self._group_size = value

    def to(self, device: torch.device | str | int) -> Self:
        """Move everything to another device; the generator starts anew there, from its seed."""
        before = self.device
        super().to(device)
        self._looks = self.device.type == "cpu"
        if self.device != before:
            for name in self._tensors:
                setattr(self, name, getattr(self, name).to(self.device))
            if self._state is not None:
                self._state = {name: x.to(self.device) for name, x in self._state.items()}
            # the state of a generator means nothing to a generator of another device
            self._set_seed(self._generator.initial_seed())
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Running episodes and generator: `state_dict` is all that is needed to continue."""
        return {**(self._state or {}), "generator": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from the result of `get_extra_state` of as many environments."""
        entries = dict(state)
        generator = entries.pop("generator")
        found = {len(entry) for entry in entries.values()}
        if found - {self.num_envs}:
            raise ValueError(
                f"the saved state is of {max(found)} environments, this is {self.num_envs}; "
                f"build it with num_envs={max(found)}"
            )
        self._generator.set_state(generator.cpu())
        moved = {name: entry.to(self.device) for name, entry in entries.items()}
        self._state = moved or None

    def _set_seed(self, seed: int | None) -> None:
        self._generator = torch.Generator(self.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def _keep(self, state: State) -> None:
        # setting an attribute of a module costs as much as several operations
        vars(self)["_state"] = state

    def _running(self) -> State:
        if self._state is None:
            raise RuntimeError("no episode is running; call reset() first")
        return self._state

    def _assert_tensordict_shape(self, tensordict: TensorDictBase) -> None:
        # TensorDict({"wind": wind}), without a batch size, means that of the environment
        if not tensordict.batch_size and self._layout().keys() & set(tensordict.keys()):
            self._given(tensordict)
            tensordict.batch_size = self.batch_size  # pyright: ignore[reportAttributeAccessIssue]
        super()._assert_tensordict_shape(tensordict)

    def _given(self, tensordict: TensorDictBase | None) -> State:
        """Check and convert the layout that is passed with `set_state=True`."""
        entries = self._layout()
        layout: State = {}
        for name, entry in entries.items():
            value = None if tensordict is None else tensordict.get(name, None)
            shape = (*self.batch_size, *entry.shape)
            if value is None or value.shape != shape:
                example = ", ".join(f'"{key}": {key}' for key in entries)
                raise ValueError(
                    f'set_state=True needs an entry "{name}" of shape {shape}, got '
                    f"{'none' if value is None else tuple(value.shape)}; reset with "
                    f"TensorDict({{{example}}}, batch_size={list(self.batch_size)}), below "
                    "transforms, which drop the entries, with env.base_env.reset after env.reset"
                )
            layout[name] = exact(name, value, entry.dtype).to(self.device)
        self._check_layout(layout)
        return layout

    def _reset(
        self, tensordict: TensorDictBase | None, *, set_state: bool = False, **kwargs: Any
    ) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if self._state is None or mask is None:
            layout = self._given(tensordict) if set_state else self._draw_layouts()
            self._keep(self._begin_episodes(layout))
        elif self._draws_rows and self._looks and not set_state:
            rows = mask.nonzero()[:, 0]
            if rows.shape[0]:
                self._restart(rows, ~mask.reshape(-1, 1))
        else:
            layout = self._given(tensordict) if set_state else self._draw_layouts()
            started = self._begin_episodes(layout)
            self._keep(_where(mask.reshape(self.batch_size), started, self._state))
        return self._pack(self._emit(self._running()))

    def _draw_layouts(self, rows: Tensor | None = None) -> State:
        """Draw the layouts of rows `[R]` in ascending order; of all rows if they are not given."""
        layout = self._draw_rows(rows)
        if self._group_size == 1:
            return layout
        rows = torch.arange(self.num_envs, device=self.device) if rows is None else rows
        group = rows // self._group_size
        # of each group that of its first row: less would be drawn only if a value were read
        first = torch.searchsorted(group, group)
        return {name: entry[first] for name, entry in layout.items()}

    def _draw_rows(self, rows: Tensor | None) -> State:
        """Draw one layout for each of the rows `[R]`, or of all."""
        return self._draw(self.num_envs if rows is None else rows.shape[0])

    def _restart(self, rows: Tensor, going_on: Tensor) -> State:
        """Draw and start episodes in some environments only.

        Args:
            rows: indices of these environments, `[R]`, at least one.
            going_on: bool of shape `[B, 1]`, false in these environments.

        Returns:
            Their new state without flags, tensors `[R, ...]`.
        """
        old, started = self._running(), self._start(self._draw_layouts(rows))
        new = {name: old[name].index_copy(0, rows, value) for name, value in started.items()}
        new["terminated"] = old["terminated"] & going_on
        new["truncated"] = old["truncated"] & going_on
        self._keep(new)
        return started

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Start new episodes where `done` is true, as TorchRL does.

        Where only the rows that start are drawn, only these are written. TorchRL's own method
        passes, checks and copies the whole batch several times, which costs more than a step.
        """
        entries: dict[str, Any] = dict(tensordict.items())
        entries.pop("_reset", None)
        if not (
            self.starts_rows
            and self._emitted <= entries.keys()
            and all(isinstance(entry, Tensor) for entry in entries.values())
        ):
            return super().maybe_reset(tensordict)
        done = entries["done"]
        if not bool(done.any()):
            return tensordict
        started = self.start_rows(entries)
        if bool(done.all()):
            # TorchRL leaves entries of others as they are where all rows start
            started.update((key, entries[key]) for key in entries.keys() - self._emitted)
        return self._pack(started)

    @property
    def starts_rows(self) -> bool:
        """Whether `start_rows` can be called."""
        return self._draws_rows and self._looks

    def start_rows(self, entries: State) -> State:
        """Start new episodes where `done` is true, and write these rows only.

        Args:
            entries: tensors `[B, ...]`, all that the environment emits except for the reward, and
                any others.

        Returns:
            New tensors with the observations and flags of the new episodes in these rows, and
            zeros in those of other entries, as TorchRL has it.
        """
        done, old = entries["done"], self._running()
        rows, going_on = done.nonzero()[:, 0], ~done
        seen = self._observe(self._restart(rows, going_on))
        new, started = self._running(), dict(entries)
        for name, entry in entries.items():
            if entry is old.get(name):
                # a tensor of the state, whose replacement has the new rows already
                started[name] = new[name]
            elif name in seen:
                started[name] = entry.index_copy(0, rows, seen[name])
            elif name in self._emitted:
                started[name] = entry & going_on
            else:
                started[name] = entry.index_fill(0, rows, 0)
        return started

    def _begin_episodes(self, layout: State) -> State:
        state = self._start(layout)
        count = next(iter(state.values())).shape[0]
        never = torch.zeros((count, 1), dtype=torch.bool, device=self.device)
        return {**state, "terminated": never, "truncated": never}

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        # torchrl marks environments that wait with `_step`
        waiting = tensordict.get("_step", None)
        return self._pack(self.advance(tensordict.get("action"), waiting))

    def advance(self, action: Tensor, mask: Tensor | None = None) -> State:
        """Make a step, without the TensorDicts around it.

        Args:
            action: as in `action_spec`, `[B]` or `[B, A]`.
            mask: bool `[B]` or `[B, 1]`, false in environments that wait; `None` if none does.

        Returns:
            Observations, reward and flags by name.

        Raises:
            ValueError: `action` is none.
            RuntimeError: no episode is running.
        """
        old = self._running()
        # no gradient: it would connect all later steps to the policy
        action = action.detach()
        self._check_action(action)
        state, reward, terminated, truncated = self._advance(old, action)
        new = {
            **state,
            "terminated": torch.zeros_like(old["terminated"]) if terminated is None else terminated,
            "truncated": torch.zeros_like(old["truncated"]) if truncated is None else truncated,
        }
        if mask is not None:
            mask = mask.reshape(self.batch_size)
            new = _where(mask, new, old)
            reward = reward * mask.unsqueeze(-1)
        self._keep(new)
        return {**self._emit(new), "reward": reward}

    def _step_proc_data(self, next_tensordict_out: TensorDictBase) -> TensorDictBase:
        # `_emit` gives all entries their shapes, which TorchRL would check at every step
        if self.run_type_checks:
            return super()._step_proc_data(next_tensordict_out)
        return next_tensordict_out

    def _check_action(self, action: Tensor) -> None:
        """Raise ValueError for anything but an action; numbers out of bounds are clipped later."""
        kind = self._action_dtype
        fits = action.is_floating_point() if kind.is_floating_point else action.dtype == kind
        if not fits or action.shape != self._action_shape:
            raise ValueError(
                f"actions of {type(self).__name__} are {kind} of shape "
                f"{tuple(self._action_shape)}, got {action.dtype} of shape {tuple(action.shape)}"
            )
        if self._looks and not torch.compiler.is_compiling():
            self._check_values(action)

    def _check_values(self, action: Tensor) -> None:
        """Raise ValueError for an index out of range and for numbers that are not finite."""
        name = f"actions of {type(self).__name__}"
        if self._num_actions is None:
            check_finite(name, action)
        else:
            check_indices(name, action, self._num_actions)

    def _emit(self, state: State) -> State:
        terminated, truncated = state["terminated"], state["truncated"]
        # copies: a caller may write to them, and the state must not change
        return {
            **self._observe(state),
            "done": terminated | truncated,
            "terminated": terminated.clone(),
            "truncated": truncated.clone(),
        }

    def _pack(self, entries: State) -> TensorDictBase:
        return pack(entries, self.batch_size, self.device)


def _where(mask: Tensor, new: State, old: State) -> State:
    """Take the rows of `new` where `mask` of shape `[B]` is true."""
    return {
        name: torch.where(mask.view(-1, *(1,) * (x.ndim - 1)), new[name], x)
        for name, x in old.items()
    }
