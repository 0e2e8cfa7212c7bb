"""Common parts of the tasks of POPGym: levels, and the observation of its wrappers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchrl.data import Bounded, Categorical, MultiCategorical, TensorSpec, Unbounded

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.envs.contract import State, Transition

Level = Literal["easy", "medium", "hard"]
"""The three difficulties that POPGym defines for every task."""


class POPGymEnv(BatchedEnv):
    """A task of POPGym (`proroklab/popgym`, version 1.0.7) as a batch of tensors.

    The entry `observation`, float32 of shape `[B, D]`, is what POPGym's wrappers
    `Flatten(Antialias(PreviousAction(env)))` return: one-hot blocks of the task's own observation,
    then of the previous action (the first one at reset), then two numbers that are (0, 1) at reset
    and (1, 0) later. Numbers that are not categories stand as they are.

    Args:
        num_envs: number of environments B.
        level: difficulty.
        previous_action: append the previous action, as POPGym's `PreviousAction` does.
        antialias: append whether this is the reset, as POPGym's `Antialias` does.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown.
    """

    policy_keys = ("observation",)
    _tensors = ("_offsets", "_first_row", "_rows")
    _draws_rows = True

    def __init__(
        self,
        num_envs: int,
        level: Level,
        previous_action: bool,
        antialias: bool,
        device: torch.device | str | int,
    ) -> None:
        check_option("level", level, Level)
        super().__init__(num_envs, device)
        self.level: Level = level
        self.previous_action = previous_action
        self.antialias = antialias

    def _specify(
        self,
        *,
        blocks: Sequence[int],
        actions: Sequence[int],
        rewards: tuple[float, float],
        seed: int | None,
        joint: bool = True,
        bound: float | None = None,
        numbers: int = 0,
        expanded: bool = False,
    ) -> None:
        """Declare the specs.

        Args:
            blocks: numbers of categories of which the task's own observation is made.
            actions: sizes of the indices that make up an action; none for a continuous one.
            rewards: smallest and largest reward of a step.
            seed: seed of the generator.
            joint: one index for all that make up an action.
            bound: bound of a continuous action.
            numbers: count of numbers that the task observes instead of categories.
            expanded: the task returns its blocks as zeros and ones, not as categories.
        """
        batch: dict[str, Any] = {"device": self.device}
        action: TensorSpec
        if bound is not None:
            shape = torch.Size((self.num_envs, 1))
            action = Bounded(-bound, bound, shape=shape, dtype=torch.float32, **batch)
            self._sizes: tuple[int, ...] = ()
        else:
            self._sizes = tuple(actions)
            if len(actions) > 1 and not joint:
                shape = torch.Size((self.num_envs, len(actions)))
                action = MultiCategorical(list(actions), shape=shape, dtype=torch.int64, **batch)
            else:
                shape = torch.Size((self.num_envs,))
                action = Categorical(math.prod(actions), shape=shape, dtype=torch.int64, **batch)
        self._joint = joint or len(actions) < 2
        # how many entries of an observation are copied from the task as they are
        self._copied = sum(blocks) if expanded else numbers
        # index at which each block starts
        self._offsets = torch.tensor([0, *blocks]).cumsum(0)[:-1].to(self.device)
        self._make_rows(numbers + sum(blocks))
        shape = torch.Size((self.num_envs, self._rows.shape[1]))
        floats: dict[str, Any] = {**batch, "dtype": torch.float32}
        spec = Unbounded(shape, **floats) if numbers else Bounded(0, 1, shape=shape, **floats)
        self._set_up({"observation": spec}, action, rewards, seed)

    def _make_rows(self, own: int) -> None:
        """Tabulate the part of an observation that follows the task's own.

        Args:
            own: size of the task's own observation.
        """
        sizes = self._sizes
        # one row per action
        index = torch.arange(math.prod(sizes))
        parts = [torch.zeros(len(index), own)]
        if self.previous_action:
            digits = torch.unravel_index(index, sizes) if sizes else ()
            parts += [torch.eye(size)[x] for size, x in zip(sizes, digits, strict=True)]
            parts += [] if sizes else [torch.zeros(1, 1)]
        rows = torch.cat(parts, -1)
        if self.antialias:
            later, first = torch.eye(2).unbind()
            self._rows = torch.cat([rows, later.expand(len(rows), 2)], -1).to(self.device)
            self._first_row = torch.cat([rows[:1], first[None]], -1).to(self.device)
        else:
            self._rows, self._first_row = rows.to(self.device), rows[:1].to(self.device)

    @abstractmethod
    def _begin(self, layout: State) -> State:
        """Make the task's own state at the start."""

    @abstractmethod
    def _play(self, state: State, action: Tensor) -> Transition:
        """Make one step, with a reward of any dtype.

        Args:
            state: also holds `"step"`, the number of steps so far, `[B, 1]`; the caller counts.
            action: the joint index `[B]`, or the continuous action `[B, 1]`.
        """

    @abstractmethod
    def _features(self, state: State) -> Tensor:
        """The task's own observation: categories, int64 `[B, blocks]`, or numbers."""

    def _first_features(self, state: State) -> Tensor:
        """The task's own observation at the start of an episode."""
        return self._features(state)

    def _first_view(self, state: State) -> Tensor:
        """The whole observation at the start of episodes."""
        features = self._first_features(state)
        return self._fill(self._first_row.expand(features.shape[0], -1).clone(), features)

    def _view(self, state: State, action: Tensor) -> Tensor:
        """The whole observation after a step."""
        if self._sizes:
            return self._fill(self._rows.index_select(0, action), self._features(state))
        rows = self._fill(self._rows.expand(self.num_envs, -1).clone(), self._features(state))
        if self.previous_action:
            rows[:, self._copied, None] = action
        return rows

    def _fill(self, rows: Tensor, features: Tensor) -> Tensor:
        if self._copied:
            rows[:, : self._copied] = features
            return rows
        blocks = features if self._offsets.shape[0] == 1 else features + self._offsets
        return rows.scatter_(1, blocks, 1.0)

    def _start(self, layout: State) -> State:
        state = self._begin(layout)
        count = next(iter(layout.values())).shape[0]
        state["step"] = torch.zeros(count, 1, dtype=torch.int64, device=self.device)
        state["observation"] = self._first_view(state)
        return state

    def _advance(self, state: State, action: Tensor) -> Transition:
        if not self._joint:
            action = action[:, 0] * self._sizes[1] + action[:, 1]
        new, reward, terminated, truncated = self._play(state, action)
        new["step"] = state["step"] + 1
        new["observation"] = self._view(new, action)
        return Transition(new, reward.to(torch.float32), terminated, truncated)

    def _observe(self, state: State) -> State:
        return {"observation": state["observation"]}

    def _check_values(self, action: Tensor) -> None:
        if self._joint:
            return super()._check_values(action)
        if bool(((action < 0) | (action >= action.new_tensor(self._sizes))).any()):
            raise ValueError(
                f"actions of {type(self).__name__} are below {self._sizes}, got values from "
                f"{int(action.min())} to {int(action.max())}"
            )
        return None


def level_value(value: Any, by_level: Mapping[str, Any], level: str) -> Any:
    """The given value, or that of the level if it is `None`."""
    return by_level[level] if value is None else value


def level_count(name: str, value: int | None, by_level: Mapping[str, int], level: str) -> int:
    """As `level_value`; raise ValueError unless the number is whole and positive."""
    if value is None:
        return by_level[level]
    check_count(name, value)
    return value
