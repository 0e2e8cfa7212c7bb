"""An environment of gymnasium with any spaces, which refuses what is not in them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Probe(gymnasium.Env[Any, Any]):
    """Shows samples of its space, and keeps what it receives."""

    def __init__(
        self,
        action: Any,
        observation: Any = None,
        *,
        length: int = 5,
        first: Any = None,
        mask: Any = None,
        fail_at: int | None = None,
        break_at: int | None = None,
        reward: Any = None,
    ) -> None:
        self.action_space = action
        default = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = default if observation is None else observation
        self.length, self.first, self.mask, self.fail_at = length, first, mask, fail_at
        self.break_at, self.reward = break_at, reward
        self.received: list[Any] = []
        self.resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.resets += 1
        if self.resets == self.fail_at:
            raise OSError("the robot is not on")
        self.t = 0
        shown = self.observation_space.sample() if self.first is None else self.first
        return shown, self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert is_in(self.action_space, action), f"{action!r} is not in {self.action_space}"
        if len(self.received) == self.break_at:
            raise OSError("the robot\nis off")
        self.received.append(action)
        self.t += 1
        shown = self.observation_space.sample()
        reward = float(self.t) if self.reward is None else self.reward
        return shown, reward, self.t >= self.length, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {} if self.mask is None else {"action_mask": self.mask}


def is_in(space: Any, action: Any) -> bool:
    """Whether an action is in a space as a sample would be: with its type and shape, too."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return isinstance(action, space.dtype.type) and space.contains(action)
    return (
        isinstance(action, np.ndarray)
        and action.dtype == space.dtype
        and action.shape == space.shape
        and space.contains(action)
    )
