"""Fast and Forgetful Memory: traces that fade and rotate, each at its own rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_shm.modules._complex import real_step
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops import linear_scan


class FFM(BaseCell):
    """A complex memory with `m` rates of decay times `c` frequencies, the same at every step.

    With four linear maps of the input, a value, a skip and two gates:

        x̃_t = value_t ⊙ sigmoid(gate_in_t)                             [m]
        S_t = exp(-|alpha|) exp(i omega)ᵀ ⊙ S_{t-1} + x̃_t 1ᵀ          [m, c]
        z_t = W_z [Re S_t, Im S_t] + b_z
        y_t = LayerNorm(z_t) ⊙ sigmoid(gate_out_t) + skip_t ⊙ (1 - sigmoid(gate_out_t))

    The LayerNorm has no parameters. `alpha` starts evenly spaced between `max_decay` and the decay
    that leaves `forgotten_at` after `max_period` steps, the periods `2 pi / omega` evenly spaced
    between `min_period` and `max_period`; both are learned.

    Source: Morad et al., Reinforcement Learning with Fast and Forgetful Memory (NeurIPS 2023),
    section 4, and the released code, repository `proroklab/ffm`: `standalone/ffm/ffm.py` and
    `ffa.py`. Parameters of the released module fit: `pre` and `mix` as they are, `alpha = -a`,
    `omega = b`. The released code clips `a` in place in every forward pass, from above so that it
    decays and from below so that its parallel form does not overflow; `|alpha|` does the first, and
    the scan here does not need the second.

    Args:
        input_size: number of input features, `D`.
        output_size: number of output features.
        memory_size: number of decays, `m`.
        context_size: number of frequencies, `c`.
        min_period: shortest period in steps at initialization.
        max_period: longest period in steps at initialization.
        max_decay: fastest decay at initialization. The released code takes about `log(2) - 0.02`,
            the fastest that does not overflow float64 over 1024 steps.
        forgotten_at: fraction of an input that the slowest decay leaves after `max_period` steps.
        device: device of the parameters.
        dtype: dtype of the parameters and of the memory.

    The memory has shape `(m, c, 2)`: real and imaginary part of `S` stand last.

    Raises:
        ValueError: a size is not positive, or a period, decay or fraction is out of range.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import FFM
        >>> cell = FFM(input_size=5, output_size=3, memory_size=8)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 8, 4, 2]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        memory_size: int = 128,
        context_size: int = 4,
        min_period: float = 1.0,
        max_period: float = 1024.0,
        max_decay: float = math.log(2) - 0.02,
        forgotten_at: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (memory_size, context_size, 2)
        sizes = {"memory_size": memory_size, "context_size": context_size}
        super().__init__(input_size, output_size, shape, **sizes)
        if not 0 < min_period <= max_period:
            raise ValueError(
                f"min_period={min_period} and max_period={max_period} must be positive and in order"
            )
        if not max_decay > 0:
            raise ValueError(f"max_decay={max_decay} must be positive, so that the memory fades")
        if not 0 < forgotten_at < 1:
            raise ValueError(f"forgotten_at={forgotten_at} must lie between 0 and 1")
        self.memory_size = memory_size
        self.context_size = context_size
        self.min_period = min_period
        self.max_period = max_period
        self.max_decay = max_decay
        self.forgotten_at = forgotten_at

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        # value, skip, gate of the input, gate of the output
        self.pre = nn.Linear(input_size, 2 * memory_size + 2 * output_size, **factory)
        self.alpha = nn.Parameter(torch.empty(memory_size, **factory))
        self.omega = nn.Parameter(torch.empty(context_size, **factory))
        self.mix = nn.Linear(2 * memory_size * context_size, output_size, **factory)
        self.norm = nn.LayerNorm(output_size, elementwise_affine=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as the released code does: spaced decays and periods, torch's defaults."""
        self.pre.reset_parameters()
        self.mix.reset_parameters()
        min_decay = min(-math.log(self.forgotten_at) / self.max_period, self.max_decay)
        options: Any = {"device": self.alpha.device, "dtype": self.alpha.dtype}
        periods = torch.linspace(self.min_period, self.max_period, self.context_size, **options)
        decays = torch.linspace(self.max_decay, min_decay, self.memory_size, **options)
        with torch.no_grad():
            self.alpha.copy_(decays)
            self.omega.copy_(2 * math.pi / periods)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step, see `BaseCell.run_step`."""
        heard, skip, gate = self._project(x)
        if torch.compiler.is_exporting():
            decay = -self.alpha.abs().unsqueeze(-1)
            added = torch.stack([heard, torch.zeros_like(heard)], -1)
            memory = real_step(decay, self.omega, memory, added)
        else:
            state = torch.complex(memory[..., 0], memory[..., 1])
            memory = torch.view_as_real(self._factor() * state + _as_complex(heard))
        return self._read(memory, skip, gate), memory

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a sequence in one scan, see `BaseCell.run_sequence`."""
        heard, skip, gate = self._project(x)
        state = torch.complex(memory[..., 0], memory[..., 1])
        factor = self._factor().expand(1, 1, -1, -1)
        states, state = linear_scan(factor, _as_complex(heard), state, is_init)
        return self._read(torch.view_as_real(states), skip, gate), torch.view_as_real(state)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is added to the state `[..., m, c]`, skip and output gate `[..., O]`."""
        sizes = [self.memory_size, self.output_size]
        value, skip, gates = self.pre(x).split([*sizes, sum(sizes)], -1)
        gate_in, gate_out = torch.sigmoid(gates).split(sizes, -1)
        # every frequency gets the same input
        heard = (value * gate_in).unsqueeze(-1).expand(*value.shape, self.context_size)
        return heard, skip, gate_out

    def _factor(self) -> Tensor:
        """The factor of the state at every step, `[m, c]`."""
        decay, angle = torch.broadcast_tensors(-self.alpha.abs().unsqueeze(-1), self.omega)
        return torch.exp(torch.complex(decay, angle))

    def _read(self, states: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
        z = self.norm(self.mix(states.flatten(-3)))
        return z * gate + skip * (1 - gate)

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return (
            f"memory_size={self.memory_size}, context_size={self.context_size}, "
            f"min_period={self.min_period}, max_period={self.max_period}, "
            f"max_decay={self.max_decay:.4g}, forgotten_at={self.forgotten_at}"
        )


def _as_complex(x: Tensor) -> Tensor:
    return torch.complex(x, torch.zeros_like(x))
