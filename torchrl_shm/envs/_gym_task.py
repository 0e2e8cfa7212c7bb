"""Environments of gymnasium as one environment of TorchRL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import (
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    TensorSpec,
    Unbounded,
)
from torchrl.envs import EnvBase

from torchrl_shm.checks import ACTION_MASK, TAKEN_KEYS
from torchrl_shm.envs._checks import check_finite, describe_bad_start
from torchrl_shm.envs._gym_rows import Row, Rows
from torchrl_shm.envs._gym_spaces import action_of, is_mask, mask_of, observation_of, stack
from torchrl_shm.torchrl_private import following_seed

# a reward is a float32
_LARGEST = float(np.finfo(np.float32).max)


class GymTask(EnvBase):
    """Environments of gymnasium, with the spaces that a policy of this package reads and plays.

    TorchRL's `GymWrapper` has no place for several indices of equal sizes, starts other than 0, or
    tuples of different parts, and sends actions as they are. A `SerialEnv` of such wrappers costs
    ten times what a small environment does.

    Args:
        rows: the environments, which are B. The first of them starts an episode here: that shows
            whether there is an action mask in `info`, which no space tells.
        name: their name, for errors.
        previous_action: whether to emit `previous_action`. Indices are one-hot, one block after
            the other; numbers are those between the bounds that count.
        previous_reward: whether to emit `previous_reward`.
        device: device of the tensors.

    Raises:
        ValueError: a space cannot be played, an observation has a name that is taken, or is not in
            its space.
        FloatingPointError: an episode starts with a number that is not finite, or a number is
            beyond float32.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        name: str,
        previous_action: bool = False,
        previous_reward: bool = False,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=torch.Size([rows.num_envs]))
        self._rows, self._name = rows, name
        self._previous = (previous_action, previous_reward)
        self._seeds: list[int | None] = [None] * rows.num_envs
        self._action = action_of(rows.action_space, name)
        (first,) = rows.reset([0], [None])
        entries = _entries_of(
            rows.observation_space, self._action.choices, name, first.mask is not None
        )
        self._read = entries.read
        specs: dict[str, Any] = dict(entries.specs)
        self.action_spec = self._for_all(self._action.spec)
        previous = self._before(self.action_spec.zero(), self._zeros())
        self._nothing = {key: torch.zeros_like(value) for key, value in previous.items()}
        if clash := sorted(specs.keys() & previous.keys()):
            raise ValueError(f"{name} emits {clash} itself: leave out env.{clash[0]}=true")
        specs |= {key: Unbounded(value.shape[1:]) for key, value in previous.items()}
        self.observation_spec = self._for_all(Composite(specs))
        self.reward_spec = self._for_all(Unbounded(torch.Size((1,))))
        flag = Categorical(2, dtype=torch.bool, shape=torch.Size((1,)))
        flags: Any = {key: flag.clone() for key in ("done", "terminated", "truncated")}
        self.done_spec = self._for_all(Composite(flags))
        # whether every row was terminated or truncated, and what it showed last: a row that has
        # ended and is not stepped goes on to show it, with a reward of 0
        self._ends = np.zeros((2, rows.num_envs, 1), np.bool_)
        self._shown: TensorDictBase = self.observation_spec.zero()
        self._show([0], [self._read(first)], self._nothing, started=True)

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """Seed the next reset of every row; each has a seed that follows from the one before."""
        for row in range(self._rows.num_envs):
            self._seeds[row] = seed
            if seed is not None and not static_seed:
                seed = following_seed(seed)
        return seed

    def _set_seed(self, seed: int | None) -> None:
        self.set_seed(seed)

    def _reset(
        self, tensordict: TensorDictBase | None = None, *, seed: int | None = None, **_: Any
    ) -> TensorDictBase:
        if seed is not None:
            self.set_seed(seed)
        rows = self._marked(None if tensordict is None else tensordict.get("_reset", None))
        seeds = [self._seeds[row] for row in rows]
        seen = [self._read(row) for row in self._rows.reset(rows, seeds)]
        for row in rows:
            self._seeds[row] = None
        self._ends[:, rows] = False
        return self._show(rows, seen, self._nothing, started=True)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action: Tensor = tensordict.get("action").detach()
        if action.is_floating_point():
            check_finite("actions", action)
        if action.dtype == torch.bfloat16:
            # numpy has none
            action = action.float()
        rows = self._marked(tensordict.get("_step", None))
        sent = self._action.to_env(action.cpu().numpy())
        seen, reward = [], np.zeros((self._rows.num_envs, 1), np.float32)
        for i, row in zip(rows, self._rows.step(rows, sent), strict=True):
            seen.append(self._read(row))
            reward[i] = _number(row.reward, self._name)
            self._ends[:, i, 0] = row.terminated, row.truncated
        terminated, truncated = torch.from_numpy(self._ends.copy()).to(self.device)
        ends = {"reward": torch.from_numpy(reward).to(self.device), "done": terminated | truncated}
        shown = self._show(rows, seen, self._before(action, ends["reward"]))
        return shown.update({**ends, "terminated": terminated, "truncated": truncated})

    def render(self, index: int = 0) -> Tensor | None:
        """Picture of a row, uint8 `[H, W, 3]`, of environments made with `render_mode="rgb_array"`.

        Args:
            index: number of the row.

        Returns:
            The picture; `None` where the environments draw none.
        """
        picture = self._rows.render(index)
        return None if picture is None else torch.from_numpy(np.array(picture, np.uint8))

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close all environments."""
        if not self.is_closed:
            self._rows.close()
        super().close(raise_if_closed=raise_if_closed)

    def _show(
        self, rows: list[int], seen: list[Any], previous: dict[str, Tensor], started: bool = False
    ) -> TensorDictBase:
        """Write what some rows show, and give what all show."""
        new = stack(seen).to(self.device)
        new.update({key: value[rows] for key, value in previous.items()})
        if started and (bad := describe_bad_start(new.items(True, True), 1, rows)):
            raise FloatingPointError(f"{self._name}: {bad}; fix the environment")
        if len(rows) < self._rows.num_envs:
            # what was given before is not written to
            everything = self._shown.clone()
            everything[rows] = new
            new = everything
        self._shown = new
        return new.copy()

    def _before(self, action: Tensor, reward: Tensor) -> dict[str, Tensor]:
        """The action and the reward that led to an observation, as rows of numbers."""
        entries = {}
        if self._previous[0]:
            spec = self.action_spec
            # bits are a Categorical, too
            if type(spec) in (Categorical, MultiCategorical):
                action = spec.to_one_hot(action)  # pyright: ignore[reportAttributeAccessIssue]
            elif isinstance(spec, Bounded):
                action = spec.project(action)
            entries["previous_action"] = action.float().flatten(1)
        if self._previous[1]:
            entries["previous_reward"] = reward
        return entries

    def _marked(self, mask: Tensor | None) -> list[int]:
        """Numbers of the rows that a mask names; of all without one."""
        if mask is None:
            return list(range(self._rows.num_envs))
        return mask.reshape(self._rows.num_envs).nonzero()[:, 0].tolist()

    def _for_all(self, spec: Any) -> Any:
        return spec.expand(self._rows.num_envs, *spec.shape).to(self.device)

    def _zeros(self) -> Tensor:
        return torch.zeros(self._rows.num_envs, 1, device=self.device)


class _Entries(NamedTuple):
    """The entries of an observation: their specs, and how they are read of what a row shows."""

    specs: dict[str, TensorSpec]
    read: Callable[[Row], dict[str, Any]]


def _entries_of(space: Any, choices: Sequence[int], name: str, mask_in_info: bool) -> _Entries:
    """Look up what a policy reads of a row.

    Args:
        space: space of the observation.
        choices: number of choices of each index of the action.
        name: name of the environment, for errors.
        mask_in_info: whether `info` has an action mask.

    Returns:
        The entries by name.

    Raises:
        ValueError: a space cannot be read, or an entry has a name that is taken.
    """
    mask_entry, root = None, None
    _refuse_nested_mask(space, name)
    if isinstance(space, spaces.Dict):
        mask_entry = _find_mask(space, sum(choices), name)
        parts = {key: x for key, x in space.spaces.items() if key != mask_entry}
        names = {str(key) for key in parts}
        if clash := sorted((names & TAKEN_KEYS) | {x for x in names if x.startswith("_")}):
            raise ValueError(
                f"observations of {name} have entries {clash}, names that TorchRL or this package "
                "uses itself: rename them in a gymnasium.ObservationWrapper"
            )
        observation = observation_of(spaces.Dict(parts), name)
        specs: dict[str, Any] = dict(observation.spec.items())  # pyright: ignore
    else:
        observation = observation_of(space, name)
        picture = observation.spec.dtype == torch.uint8 and len(observation.spec.shape) == 3
        # what TorchRL calls a picture
        root = "pixels" if picture else "observation"
        specs = {root: observation.spec}
    masked = bool(choices) and (mask_entry is not None or mask_in_info)
    mask, everything = mask_of(choices), np.ones(sum(choices), np.bool_)
    if masked:
        specs[ACTION_MASK] = mask.spec

    def read(row: Row) -> dict[str, Any]:
        seen = observation.read(row.observation)
        entries = seen if root is None else {root: seen}
        if masked:
            given = row.mask if mask_entry is None else row.observation[mask_entry]
            # where none is given, everything is allowed
            entries[ACTION_MASK] = mask.read(everything if given is None else given)
        elif row.mask is not None and choices:
            raise ValueError(
                f"{name} has info[{ACTION_MASK!r}] after a step, and had none after its first "
                "reset; give it in both"
            )
        return entries

    return _Entries(specs, read)


def _find_mask(space: Any, choices: int, name: str) -> Any:
    """The entry that is an action mask; `None` where there is none."""
    for key in (ACTION_MASK, "mask"):
        if choices and key in space.spaces and is_mask(space[key], choices):
            return key
    if ACTION_MASK in space.spaces and not choices:
        raise ValueError(
            f"observations of {name} have an entry {ACTION_MASK!r}, and its actions are no "
            "indices, of which some could be forbidden: rename it in a gymnasium.ObservationWrapper"
        )
    if ACTION_MASK in space.spaces:
        raise ValueError(
            f"observations of {name} have an entry {ACTION_MASK!r}, {space[ACTION_MASK]}, that is "
            f"none: it needs a flag, 0 or 1, for each of the {choices} choices of the action"
        )
    return None


def _refuse_nested_mask(space: Any, name: str) -> None:
    for part in _children(space):
        if isinstance(part, spaces.Dict) and ACTION_MASK in part.spaces:
            raise ValueError(
                f"observations of {name} have an entry {ACTION_MASK!r} inside of another one, "
                "which is not read; put it beside the others in a gymnasium.ObservationWrapper"
            )
        _refuse_nested_mask(part, name)


def _children(space: Any) -> list[Any]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.values())
    return list(space.spaces) if isinstance(space, spaces.Tuple) else []


def _number(reward: Any, name: str) -> float:
    # numpy reads None as nan
    numbers = np.asarray([] if reward is None else reward, np.float64)
    if numbers.size != 1:
        raise ValueError(f"a reward of {name} is {reward}; it must be one number")
    number = float(numbers.item())
    if _LARGEST < abs(number) < np.inf:
        raise FloatingPointError(
            f"a reward of {name} is beyond float32, {number:g}; scale it in a "
            "gymnasium.RewardWrapper"
        )
    return number
