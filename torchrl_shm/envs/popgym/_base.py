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
    _tensors = ("_null", "_time")

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
        size: int,
        actions: Sequence[int],
        rewards: tuple[float, float],
        seed: int | None,
        joint: bool = True,
        bound: float | None = None,
        numbers: bool = False,
    ) -> None:
        """Declare the specs.

        Args:
            size: features of the task's own observation.
            actions: sizes of the indices that make up an action; none for a continuous one.
            rewards: smallest and largest reward of a step.
            seed: seed of the generator.
            joint: one index for all that make up an action.
            bound: bound of a continuous action.
            numbers: whether features may be any number, not 0 or 1 only.
        """
        batch: dict[str, Any] = {"device": self.device}
        action: TensorSpec
        if bound is not None:
            shape = torch.Size((self.num_envs, 1))
            action = Bounded(-bound, bound, shape=shape, dtype=torch.float32, **batch)
            self._sizes: tuple[int, ...] = ()
            self._null = torch.zeros(1, **batch)
        else:
            self._sizes = tuple(actions)
            if len(actions) > 1 and not joint:
                shape = torch.Size((self.num_envs, len(actions)))
                action = MultiCategorical(list(actions), shape=shape, dtype=torch.int64, **batch)
            else:
                count = int(torch.tensor(actions).prod())
                shape = torch.Size((self.num_envs,))
                action = Categorical(count, shape=shape, dtype=torch.int64, **batch)
            # row a: the blocks of action a, for every index by itself
            self._blocks = [torch.eye(n, **batch) for n in actions]
            self._null = torch.cat([block[0] for block in self._blocks])
        self._joint = joint
        size += len(self._null) * self.previous_action + 2 * self.antialias
        shape = torch.Size((self.num_envs, size))
        floats: dict[str, Any] = {**batch, "dtype": torch.float32}
        spec = Unbounded(shape, **floats) if numbers else Bounded(0, 1, shape=shape, **floats)
        # rows: after a step, at reset
        self._time = torch.tensor([[1.0, 0.0], [0.0, 1.0]], **batch)
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
        """The task's own observation, float32 of shape `[B, size]`."""

    def _start(self, layout: State) -> State:
        state = self._begin(layout)
        count = len(next(iter(layout.values())))
        state["step"] = torch.zeros(count, 1, dtype=torch.int64, device=self.device)
        if self.previous_action:
            state["previous"] = self._null.expand(count, -1)
        return state

    def _advance(self, state: State, action: Tensor) -> Transition:
        indices = self._split(action)
        state, reward, terminated, truncated = self._play(state, indices)
        state["step"] = state["step"] + 1
        if self.previous_action:
            if self._sizes:
                blocks = [eye[a] for eye, a in zip(self._blocks, indices, strict=True)]
                state["previous"] = blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)
            else:
                state["previous"] = action.float()
        return Transition(state, reward.to(torch.float32), terminated, truncated)

    def _split(self, action: Tensor) -> list[Tensor]:
        if len(self._sizes) < 2:
            return [action]
        if not self._joint:
            return list(action.unbind(-1))
        rows, columns = self._sizes
        return [action.div(columns, rounding_mode="floor") % rows, action % columns]

    def _observe(self, state: State) -> State:
        parts = [self._features(state)]
        if self.previous_action:
            parts.append(state["previous"])
        if self.antialias:
            parts.append(self._time[(state["step"].squeeze(-1) == 0).long()])
        return {"observation": torch.cat(parts, -1)}

    def _check_action(self, action: Tensor) -> None:
        super()._check_action(action)
        if len(self._sizes) > 1 and not self._joint and action.numel():
            sizes = torch.tensor(self._sizes)
            if bool(((action < 0) | (action >= sizes)).any()):
                raise ValueError(
                    f"actions of {type(self).__name__} are below {self._sizes}, got values from "
                    f"{int(action.min())} to {int(action.max())}"
                )

    def to(self, device: torch.device | str | int) -> Any:
        """Move everything to another device; the generator starts anew there, from its seed."""
        super().to(device)
        if self._sizes:
            self._blocks = [block.to(self.device) for block in self._blocks]
        return self


def level_value(value: Any, by_level: Mapping[str, Any], level: str) -> Any:
    """The value that was given, or that of the level."""
    return by_level[level] if value is None else value
