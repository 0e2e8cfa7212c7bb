"""Control with part of the state hidden, for the control tasks of POPGym."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from torchrl_shm.envs._checks import check_range, check_size
from torchrl_shm.envs.contract import Entry, State
from torchrl_shm.envs.popgym._base import POPGymEnv, level_count, level_value


class ControlEnv(POPGymEnv):
    """A task that observes numbers instead of categories, with noise if there is any."""

    _STEPS: ClassVar[dict[str, int]]
    _NOISE: ClassVar[dict[str, float]] = {"easy": 0.0, "medium": 0.0, "hard": 0.0}
    _STATE_SIZE: ClassVar[int]
    _tensors = (*POPGymEnv._tensors, "_low", "_high", "_spread")

    def _prepare(
        self,
        max_steps: int | None,
        noise: float | None,
        bound: Sequence[float],
        spread: Sequence[float],
    ) -> None:
        self.max_steps = level_count("max_steps", max_steps, self._STEPS, self.level)
        self.noise: float = level_value(noise, self._NOISE, self.level)
        check_size("noise", self.noise, zero=True)
        # bounds of what is seen, if there is noise on it
        self._high = torch.tensor(bound, device=self.device)
        self._low = -self._high
        self._spread = torch.tensor(spread, dtype=torch.float64, device=self.device)

    def _layout(self) -> dict[str, Entry]:
        return {"state": Entry((self._STATE_SIZE,), torch.float64)}

    def _check_layout(self, layout: State) -> None:
        # far beyond what these bodies can reach, but their equations stay finite
        check_range("state", layout["state"], -1000, 1000)

    def _draw(self, count: int) -> State:
        numbers = torch.rand(
            count, self._STATE_SIZE, dtype=torch.float64, generator=self._generator,
            device=self.device,
        )  # fmt: skip
        return {"state": numbers.mul_(2).sub_(1).mul_(self._spread)}

    def _normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, float64."""
        return torch.randn(
            like.shape, dtype=torch.float64, generator=self._generator, device=self.device
        )

    def _see(self, seen: Tensor) -> Tensor:
        """Observe numbers `[B, 2]`, with noise if there is any."""
        if not self.noise:
            return seen
        noise = self._normal(seen).mul_(self.noise).float()
        return noise.add_(seen.float()).clamp_(self._low, self._high)
