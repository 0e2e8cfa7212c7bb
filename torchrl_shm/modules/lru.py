"""Linear Recurrent Unit: a diagonal complex recurrence that cannot explode, in a gated block."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_shm.modules._complex import real_step
from torchrl_shm.modules._features import input_norm
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops import linear_scan

# keeps the random moduli and phases off the ends of their ranges, whose logarithm is infinite
_EPS = 1e-6


class LRU(BaseCell):
    """A vector of `N` complex numbers, each of which shrinks and turns by a learned factor.

    With `u = LayerNorm(x)`, complex matrices B and C and a real vector d:

        lambda = exp(-exp(nu_log) + i exp(theta_log))      |lambda| < 1 for any parameters
        s_t = lambda ⊙ s_{t-1} + exp(gamma_log) ⊙ (B u_t)
        o_t = Re(C s_t) + d ⊙ u_t
        y_t = W_o (x_t + GLU(GELU(o_t))) + b_o

    where `GLU(o) = (W_1 o + b_1) ⊙ sigmoid(W_2 o + b_2)`. `lambda` starts uniformly spread over the
    part of a ring, between the radii `r_min` and `r_max`, whose phase is at most `max_phase`;
    `exp(gamma_log)` starts at `sqrt(1 - |lambda|^2)`, which makes all elements of the state equally
    large on white noise. Both are learned. For long memories choose `r_min` and `r_max` close to 1
    and `max_phase` small (section 3.3 and 3.4 of the paper).

    Source: Orvieto et al., Resurrecting Recurrent Neural Networks for Long Sequences (ICML 2023):
    equations in section 3, initialization in appendix A, block (norm, recurrence, GLU, skip) in
    figure 1.

    Args:
        input_size: number of input features, `D`, at least 3: of fewer the LayerNorm leaves a sign
            or nothing. Also the width of the block.
        output_size: number of output features.
        memory_size: number of complex elements of the state, `N`.
        r_min: inner radius of the ring at initialization.
        r_max: outer radius of the ring at initialization.
        max_phase: largest phase in radians at initialization.
        device: device of the parameters.
        dtype: dtype of the parameters and of the memory.

    The memory has shape `(N, 2)`: real and imaginary part of `s` stand last.

    Raises:
        ValueError: a size is not positive, `input_size` is below 3, or radii and phase do not
            describe a ring.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import LRU
        >>> cell = LRU(input_size=5, output_size=3, memory_size=8, r_min=0.9, r_max=0.999)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 8, 2]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        memory_size: int = 128,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, output_size, (memory_size, 2), memory_size=memory_size)
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(f"r_min={r_min} and r_max={r_max} must be 0 <= r_min < r_max <= 1")
        if not 0 < max_phase < math.inf:
            raise ValueError(
                f"max_phase={max_phase} must be positive and finite; 2 * pi is the whole ring"
            )
        self.memory_size = memory_size
        self.r_min = r_min
        self.r_max = r_max
        self.max_phase = max_phase

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = input_norm(input_size, **factory)
        self.nu_log = nn.Parameter(torch.empty(memory_size, **factory))
        self.theta_log = nn.Parameter(torch.empty(memory_size, **factory))
        self.gamma_log = nn.Parameter(torch.empty(memory_size, **factory))
        # complex matrices as real ones on alternating real and imaginary parts: rows of `write`
        # are Re B and Im B in turn, columns of `read` are Re C and -Im C in turn
        self.write = nn.Linear(input_size, 2 * memory_size, bias=False, **factory)
        self.read = nn.Linear(2 * memory_size, input_size, bias=False, **factory)
        self.skip = nn.Parameter(torch.empty(input_size, **factory))
        self.glu = nn.Linear(input_size, 2 * input_size, **factory)
        self.out = nn.Linear(input_size, output_size, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as appendix A of the paper does, and torch's defaults around it."""
        for module in (self.norm, self.glu, self.out):
            module.reset_parameters()
        nn.init.normal_(self.write.weight, std=(2 * self.input_size) ** -0.5)
        nn.init.normal_(self.read.weight, std=self.memory_size**-0.5)
        nn.init.normal_(self.skip)
        with torch.no_grad():
            # uniform over the area of the ring: the square of the modulus is uniform
            share = torch.rand_like(self.nu_log).clamp(_EPS, 1 - _EPS)
            squared = self.r_min**2 + share * (self.r_max**2 - self.r_min**2)
            self.nu_log.copy_(torch.log(-0.5 * torch.log(squared)))
            phase = self.max_phase * torch.rand_like(self.theta_log).clamp_min(_EPS)
            self.theta_log.copy_(torch.log(phase))
            self.gamma_log.copy_(0.5 * torch.log1p(-squared))

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step, see `BaseCell.run_step`."""
        u = self.norm(x)
        if torch.compiler.is_exporting():
            decay, angle = -torch.exp(self.nu_log), torch.exp(self.theta_log)
            memory = real_step(decay, angle, memory, self._written(u))
        else:
            state = torch.complex(memory[..., 0], memory[..., 1])
            memory = torch.view_as_real(self._factor() * state + self._drive(u))
        return self._read_out(x, u, memory), memory

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a sequence in one scan, see `BaseCell.run_sequence`."""
        u = self.norm(x)
        state = torch.complex(memory[..., 0], memory[..., 1])
        states, state = linear_scan(self._factor().expand(1, 1, -1), self._drive(u), state, is_init)
        return self._read_out(x, u, torch.view_as_real(states)), torch.view_as_real(state)

    def _factor(self) -> Tensor:
        return torch.exp(torch.complex(-torch.exp(self.nu_log), torch.exp(self.theta_log)))

    def _written(self, u: Tensor) -> Tensor:
        """What is added to the state, in real and imaginary parts."""
        written = self.write(u).unflatten(-1, (self.memory_size, 2))
        return written * torch.exp(self.gamma_log).unsqueeze(-1)

    def _drive(self, u: Tensor) -> Tensor:
        written = self._written(u)
        return torch.complex(written[..., 0], written[..., 1])

    def _read_out(self, x: Tensor, u: Tensor, states: Tensor) -> Tensor:
        o = self.read(states.flatten(-2)) + self.skip * u
        return self.out(x + F.glu(self.glu(F.gelu(o))))

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return (
            f"memory_size={self.memory_size}, r_min={self.r_min}, r_max={self.r_max}, "
            f"max_phase={self.max_phase:.4g}"
        )
