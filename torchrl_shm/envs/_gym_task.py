"""One environment of gymnasium as one of TorchRL."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, Unbounded
from torchrl.envs import Transform
from torchrl.envs.gym_like import BaseInfoDictReader
from torchrl.envs.libs.gym import GymWrapper

from torchrl_shm.envs._checks import describe_bad_start
from torchrl_shm.envs._gym_spaces import MASK, action_of, is_mask, mask_of, observation_of

# entries of TorchRL, which an observation would overwrite
_TAKEN = {"action", "reward", "done", "terminated", "truncated", "next", "is_init", "collector"}


class GymTask(GymWrapper):
    """`GymWrapper` for the spaces that a policy of this package reads and plays.

    TorchRL's own specs have no place for several indices of equal sizes, starts other than 0, or
    tuples of different parts, and its actions are sent as they are.

    Args:
        env: the environment of gymnasium.
        name: its name, for errors.
        row: its number among those of a batch, for errors.
        mask_in_info: whether its action mask comes in `info`, which no space tells.
        **options: those of TorchRL's wrappers.

    Raises:
        ValueError: a space cannot be played, or an observation has a name that TorchRL writes.
    """

    def __init__(
        self, env: Any, *, name: str, row: int = 0, mask_in_info: bool = False, **options: Any
    ) -> None:
        self._task, self._row = name, row
        self._start = "the first reset, without a seed,"
        super().__init__(env, **options)
        if mask_in_info:
            self.set_info_dict_reader(_MaskReader(self._action.choices))

    def _build_env(self, env: Any, **kwargs: Any) -> Any:
        # without a look whether TorchRL should take it for a picture
        self.batch_size = torch.Size([])
        return env

    def _make_specs(self, env: Any, batch_size: Any = None) -> None:
        self._action = action_of(env.action_space, self._task)
        space, name = env.observation_space, self._task
        self._mask_entry, self._root = None, None
        if isinstance(space, spaces.Dict):
            self._mask_entry = _find_mask(space, self._action.choices, name)
            parts = {key: x for key, x in space.spaces.items() if key != self._mask_entry}
            if clash := sorted(_TAKEN & {str(key) for key in parts}):
                raise ValueError(
                    f"observations of {name} have entries {clash}, which TorchRL writes itself: "
                    "rename them in a gymnasium.ObservationWrapper"
                )
            self._observation = observation_of(spaces.Dict(parts), name)
            observations: Any = self._observation.spec
        else:
            self._observation = observation_of(space, name)
            picture = space.dtype == np.uint8 and len(space.shape or ()) == 3
            # what TorchRL calls a picture
            self._root = "pixels" if picture else "observation"
            observations = Composite({self._root: self._observation.spec})
        if self._mask_entry is not None:
            self._mask = mask_of(self._action.choices)
            observations[MASK] = self._mask.spec
        self.action_spec = self._action.spec
        self.observation_spec = observations
        self.reward_spec = Unbounded(torch.Size((1,)))
        flag = Categorical(2, dtype=torch.bool, shape=torch.Size((1,)))
        self.done_spec = Composite(
            {name: flag.clone() for name in ("done", "terminated", "truncated")}
        )

    def shows_mask(self) -> bool:
        """Whether `info` has an action mask, which no space tells; starts an episode."""
        if not self._action.choices or self._mask_entry is not None:
            return False
        reader = _MaskReader(self._action.choices)
        self.set_info_dict_reader(reader)
        self.reset()
        return reader.found

    def read_action(self, action: Tensor) -> Any:
        """Make what the environment receives, an element of its action space."""
        return self._action.to_env(action.detach().cpu())

    def read_obs(self, observations: Any) -> dict[str, Any]:
        """Read an observation.

        Raises:
            ValueError: it is not in its space.
        """
        seen = self._observation.read(observations)
        entries = dict(seen.items()) if self._root is None else {self._root: seen}
        if self._mask_entry is not None:
            entries[MASK] = self._mask.read(observations[self._mask_entry])
        return entries

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        if kwargs.get("seed") is not None:
            self._start = f"reset(seed={kwargs['seed']})"
        try:
            started = super()._reset(tensordict, **kwargs)
        except Exception as error:
            raise RuntimeError(
                f"environment {self._row} of {self._task}: {self._start} raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if not self._start.startswith("a reset"):
            self._start = f"a reset after {self._start}"
        if bad := describe_bad_start(started.items(True, True), first_row=self._row):
            raise FloatingPointError(f"{self._task}: {bad}; fix the environment")
        return started


def _find_mask(space: Any, choices: int, name: str) -> Any:
    """The entry that is an action mask; `None` where there is none."""
    for key in (MASK, "mask"):
        if choices and key in space.spaces and is_mask(space[key], choices):
            return key
    if MASK in space.spaces:
        raise ValueError(
            f"observations of {name} have an entry {MASK!r}, {space[MASK]}, that is none: it "
            f"needs a flag, 0 or 1, for each of the {choices} choices of the action"
        )
    return None


class _MaskReader(BaseInfoDictReader):
    """Reads the action mask in `info`; where none is given, everything is allowed."""

    def __init__(self, choices: int) -> None:
        self._mask, self._all = mask_of(choices), np.ones(choices, bool)
        self.found = False

    def __call__(self, info_dict: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        """Write the entry."""
        self.found |= MASK in info_dict
        return tensordict.set(MASK, self._mask.read(info_dict.get(MASK, self._all)))

    @property
    def info_spec(self) -> Any:
        """Spec of the entry."""
        return {MASK: self._mask.spec}


class Previous(Transform):
    """Emits the action and the reward that led to an observation.

    Indices are one-hot, one block after the other; numbers are those between the bounds that
    count.

    Args:
        action: whether to emit `previous_action`.
        reward: whether to emit `previous_reward`.
    """

    def __init__(self, action: bool, reward: bool) -> None:
        super().__init__()
        self.action = action
        self.reward = reward

    def transform_observation_spec(self, observation_spec: Any) -> Any:
        """Declare the new entries."""
        for name, size in self._sizes().items():
            shape = torch.Size((*observation_spec.shape, size))
            observation_spec[name] = Unbounded(shape, device=observation_spec.device)
        return observation_spec

    def _sizes(self) -> dict[str, int]:
        action = self._numbers(self._spec.zero())
        return {
            **({"previous_action": action.numel()} if self.action else {}),
            **({"previous_reward": 1} if self.reward else {}),
        }

    @property
    def _spec(self) -> Any:
        parent: Any = self.parent
        return parent.action_spec_unbatched

    def _numbers(self, action: Tensor) -> Tensor:
        """An action as a row of numbers."""
        spec = self._spec
        # bits are a Categorical, too
        if type(spec) in (Categorical, MultiCategorical):
            action = spec.to_one_hot(action)
        elif isinstance(spec, Bounded):
            action = spec.project(action)
        return action.float().flatten()

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if self.action:
            next_tensordict.set("previous_action", self._numbers(tensordict.get("action")))
        if self.reward:
            next_tensordict.set("previous_reward", next_tensordict.get("reward").float())
        return next_tensordict

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        for name, size in self._sizes().items():
            tensordict_reset.set(name, torch.zeros(size, device=tensordict_reset.device))
        return tensordict_reset
