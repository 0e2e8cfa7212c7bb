"""The step of the episode, as features that any memory can read."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import recurrent_mode

from torchrl_shm.modules._resets import reset


class Clock(TensorDictModuleBase):
    """Counts the steps of an episode and writes them as sines and cosines.

    `sin(w_i t)` and `cos(w_i t)` of the step `t`, with frequencies `w_i` spread evenly, on a
    logarithmic scale, by default from 2.5 down to 0.12 radians per step: periods of 2.5 to 52
    steps. The fastest tells neighboring steps apart, and more than pi would alias. Slow ones say
    the same of all steps that are close to each other, and make their keys alike. A memory that is
    addressed by content reads with them what was `k` steps ago, or what an episode started with.

    The count is carried from step to step as a memory is: `make_tensordict_primer` starts it, and
    sequences in recurrent mode count on from their first step.

    Source: Vaswani et al., Attention Is All You Need (NeurIPS 2017), section 3.5.

    Args:
        size: number of features, an even number.
        fastest: the highest frequency, in radians per step.
        slowest: the lowest.
        out_key: key of the features, float32.
        step_key: key of the count, int64, 0 at the first step of an episode.
        is_init_key: key of the reset flags, written by `torchrl.envs.InitTracker`.
        device: device of the frequencies.

    Raises:
        ValueError: `size` is not a positive even number, or the frequencies are not positive and
            in order.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_shm.networks import Clock
        >>> data = TensorDict({"is_init": torch.ones(3, 1, dtype=torch.bool)}, [3])
        >>> data = Clock(16)(data)
        >>> data["time"].shape, data["next", "episode_step"].flatten()
        (torch.Size([3, 16]), tensor([1, 1, 1]))
    """

    frequencies: Tensor

    def __init__(
        self,
        size: int,
        *,
        fastest: float = 2.5,
        slowest: float = 0.12,
        out_key: str = "time",
        step_key: str = "episode_step",
        is_init_key: NestedKey = "is_init",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(f"size={size} must be a positive even number: sines and cosines")
        if not fastest >= slowest > 0:
            raise ValueError(f"fastest={fastest} must be at least slowest={slowest}, above 0")
        self.out_key, self.step_key, self.is_init_key = out_key, step_key, is_init_key
        self.in_keys: Any = [is_init_key, step_key]
        self.out_keys: Any = [out_key, ("next", step_key)]
        exponents = torch.linspace(log(fastest), log(slowest), size // 2, device=device)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """Make the environment transform that starts the count at zero on every reset.

        Returns:
            The transform; collectors with `auto_register_policy_transforms=True` append it.
        """
        spec = Unbounded(torch.Size((1,)), dtype=torch.int64)
        return TensorDictPrimer({self.step_key: spec}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the features of one step or, in recurrent mode, of whole sequences.

        Args:
            tensordict: data of shape `[...]` in step mode, `[..., T]` in recurrent mode.

        Returns:
            The same TensorDict.

        Raises:
            KeyError: the reset flags are missing, or the count is where no episode starts.
        """
        self.run(tensordict)
        return tensordict

    def run(self, tensordict: Any) -> None:
        """Do the same with anything that has `get`, `set` and `shape`.

        Args:
            tensordict: entries by key; see `forward`, also for what it raises.
        """
        is_init, step = self._read(tensordict)
        if recurrent_mode():
            # a sequence, and each part of it from a reset on, counts from what is stored there
            time = torch.arange(is_init.shape[-1], device=is_init.device)
            start = torch.where(is_init, time, 0).cummax(-1).values
            step = step.gather(-1, start) + time - start
            tensordict.set(self.out_key, self._embed(step))
            return
        step = reset(step, is_init)
        tensordict.set(self.out_key, self._embed(step))
        step = step.unsqueeze(-1)
        # what is stored is right where an episode starts, too
        tensordict.set(self.step_key, step)
        tensordict.set(("next", self.step_key), step + 1)

    def _read(self, tensordict: Any) -> tuple[Tensor, Tensor]:
        """Reset flags and count, of the shape of the data."""
        is_init = tensordict.get(self.is_init_key, None)
        if is_init is None:
            raise KeyError(
                f"reset flags {self.is_init_key!r} are missing: append "
                "torchrl.envs.InitTracker() to the environment, or pass "
                "auto_register_policy_transforms=True to the collector"
            )
        is_init = is_init.reshape(tensordict.shape)
        step = tensordict.get(self.step_key, None)
        if step is not None:
            return is_init, step.reshape(tensordict.shape)
        first = is_init[..., 0] if recurrent_mode() else is_init
        if not bool(first.all()):
            raise KeyError(
                f"{self.step_key!r} is missing in the middle of an episode, so nobody knows the "
                "time: pass auto_register_policy_transforms=True to the collector, or append "
                "module.make_tensordict_primer() to the environment"
            )
        return is_init, torch.zeros_like(is_init, dtype=torch.int64)

    def _embed(self, step: Tensor) -> Tensor:
        angle = step.unsqueeze(-1) * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], -1)
