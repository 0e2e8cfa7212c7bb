"""What the tasks of POPGym share: levels, and the observation of its wrappers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchrl.data import Bounded, Categorical, MultiCategorical, TensorSpec, Unbounded

from torchrl_shm.envs._base import BatchedEnv, State, Transition

Level = Literal["easy", "medium", "hard"]
"""The three difficulties that POPGym defines for every task."""


class Outcome(NamedTuple):
    """What a move leads to; see `torchrl_shm.envs._base.Transition`."""

    state: State
    reward: Tensor
    terminated: Tensor | None = None
    truncated: Tensor | None = None


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
    _tensors = ("_offsets",)
    _draws_rows = True

    def __init__(
        self,
        num_envs: int,
        level: Level,
        previous_action: bool,
        antialias: bool,
        device: torch.device | str | int,
    ) -> None:
        if level not in get_args(Level):
            raise ValueError(f"level must be one of {get_args(Level)}, got {level!r}")
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
    ) -> None:
        """Declare the specs.

        Args:
            blocks: numbers of categories of which the task's own observation is made.
            actions: sizes of the indices that make up an action; none for a continuous one.
            rewards: smallest and largest reward of a step.
            seed: seed of the generator.
            joint: one index for all that make up an action.
            bound: bound of a continuous action.
            numbers: how many numbers stand in front of the blocks, or in their place.
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
                count = int(torch.tensor(actions).prod())
                shape = torch.Size((self.num_envs,))
                action = Categorical(count, shape=shape, dtype=torch.int64, **batch)
        self._joint = joint
        self._numbers = numbers
        if self.previous_action and bound is not None:
            numbers += 1
        # every block has its one at an index of its own, beyond the blocks before it
        blocks = [
            *blocks,
            *(self._sizes if self.previous_action else ()),
            *((2,) if self.antialias else ()),
        ]
        ends = torch.tensor([numbers, *blocks]).cumsum(0)
        self._offsets = ends[:-1].to(self.device)
        shape = torch.Size((self.num_envs, int(ends[-1])))
        floats: dict[str, Any] = {**batch, "dtype": torch.float32}
        spec = Unbounded(shape, **floats) if numbers else Bounded(0, 1, shape=shape, **floats)
        self._set_up({"observation": spec}, action, rewards, seed)

    @abstractmethod
    def _begin(self, layout: State) -> State:
        """Make the task's own state at the start."""

    @abstractmethod
    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        """Make one step.

        Args:
            state: also has `"step"`, the steps so far, `[B, 1]`; the caller counts.
            action: one tensor `[B]` per index, or the continuous action.
        """

    @abstractmethod
    def _features(self, state: State) -> Tensor:
        """The task's own observation: categories, int64 `[B, blocks]`, or float32 numbers."""

    def _start(self, layout: State) -> State:
        state = self._begin(layout)
        count = len(next(iter(layout.values())))
        state["step"] = torch.zeros(count, 1, dtype=torch.int64, device=self.device)
        if self.previous_action:
            width, dtype = len(self._sizes), torch.int64
            if not width:
                width, dtype = 1, torch.float32
            state["previous"] = torch.zeros(count, width, dtype=dtype, device=self.device)
        return state

    def _advance(self, state: State, action: Tensor) -> Transition:
        indices = self._split(action)
        state, reward, terminated, truncated = self._play(state, indices)
        state["step"] = state["step"] + 1
        if self.previous_action:
            state["previous"] = torch.stack(indices, -1) if self._sizes else action.float()
        return Transition(state, reward.to(torch.float32), terminated, truncated)

    def _split(self, action: Tensor) -> list[Tensor]:
        if len(self._sizes) < 2:
            return [action]
        if not self._joint:
            return list(action.unbind(-1))
        rows, columns = self._sizes
        return [action.div(columns, rounding_mode="floor") % rows, action % columns]

    def _observe(self, state: State) -> State:
        shape = self.observation_spec["observation"].shape
        observation = torch.zeros(shape, dtype=torch.float32, device=self.device)
        codes: list[Tensor] = []
        features = self._features(state)
        if self._numbers:
            observation[:, : self._numbers] = features
        else:
            codes.append(features)
        if self.previous_action:
            if self._sizes:
                codes.append(state["previous"])
            else:
                observation[:, self._numbers, None] = state["previous"]
        if self.antialias:
            codes.append((state["step"] == 0).long())
        if codes:
            observation.scatter_(1, torch.cat(codes, -1) + self._offsets, 1.0)
        return {"observation": observation}

    def _check_action(self, action: Tensor) -> None:
        super()._check_action(action)
        if len(self._sizes) > 1 and not self._joint and action.numel():
            sizes = torch.tensor(self._sizes)
            if bool(((action < 0) | (action >= sizes)).any()):
                raise ValueError(
                    f"actions of {type(self).__name__} are below {self._sizes}, got values from "
                    f"{int(action.min())} to {int(action.max())}"
                )


def level_value(value: Any, by_level: Mapping[str, Any], level: str) -> Any:
    """The value that was given, or that of the level."""
    return by_level[level] if value is None else value
