"""S6, the selective state space model of Mamba, in the block of the same paper."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_shm.modules._features import input_norm
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops import causal_windows, linear_scan


class S6(BaseCell):
    """A matrix memory whose step size, what it writes and what it reads follow from the input.

    With `E` channels, `N` elements of state per channel and two linear maps of LayerNorm(x), the
    input u and the gate z of the block:

        û_t = silu(b_c + sum_j w_j ⊙ u_{t-k+1+j})        causal convolution, channel by channel
        r_t, B_t, C_t = W_x û_t                          [R], [N], [N]
        delta_t = softplus(W_delta r_t + b_delta)        [E]
        h_t = exp(delta_t 1ᵀ ⊙ A) ⊙ h_{t-1} + (delta_t ⊙ û_t) B_tᵀ,    A = -exp(A_log)   [E, N]
        y_t = W_o (x_t + W_y ((h_t C_t + d ⊙ û_t) ⊙ silu(z_t))) + b_o

    Every row of `A_log` starts at `log(1..N)`, d at one, and `b_delta` such that the step sizes
    are spread between `dt_min` and `dt_max`, evenly in their logarithm.

    Source: Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces (2023),
    algorithm 2, sections 3.4 and 3.6, with the discretization of B of the released code,
    repository `state-spaces/mamba`: `mamba_ssm/modules/mamba_simple.py`. The released code of the
    SHM paper, repository `thaihungle/SHM`, drops the state of this memory between steps; here it
    is carried. The kernel of the package `mamba-ssm`, `selective_scan_fn`, is no backend here: it
    takes neither an initial state nor resets, and its final state has no gradient.

    Args:
        input_size: number of input features, `D`, at least 3: of fewer the LayerNorm leaves a sign
            or nothing. Also the width of the block.
        output_size: number of output features.
        memory_size: elements of state per channel, `N`.
        inner_size: number of channels, `E`. Mamba has `2 * D`; a sequence takes memory for
            `T * E * N` floats, several times.
        kernel_size: number of steps `k` that the convolution sees; with 1 only the state remembers.
        dt_rank: number of features `R` from which the step sizes are computed. Mamba has `D / 16`.
        dt_min: smallest step size at initialization.
        dt_max: largest step size at initialization.
        device: device of the parameters.
        dtype: dtype of the parameters and of the memory.

    The memory has shape `(E, N + k - 1)`: per channel the state `h`, then the last `k - 1` inputs
    of the convolution, oldest first.

    Raises:
        ValueError: a size is not positive, `input_size` is below 3, or the step sizes are out of
            order.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import S6
        >>> cell = S6(input_size=5, output_size=3, memory_size=8, inner_size=10)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 10, 11]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        memory_size: int = 16,
        inner_size: int = 64,
        kernel_size: int = 4,
        dt_rank: int = 4,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            (inner_size, memory_size + kernel_size - 1),
            memory_size=memory_size,
            inner_size=inner_size,
            kernel_size=kernel_size,
            dt_rank=dt_rank,
        )
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min={dt_min} and dt_max={dt_max} must be positive and in order")
        self.memory_size = memory_size
        self.inner_size = inner_size
        self.kernel_size = kernel_size
        self.dt_rank = dt_rank
        self.dt_min = dt_min
        self.dt_max = dt_max

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = input_norm(input_size, **factory)
        self.in_proj = nn.Linear(input_size, 2 * inner_size, bias=False, **factory)
        self.conv_weight = nn.Parameter(torch.empty(inner_size, kernel_size, **factory))
        self.conv_bias = nn.Parameter(torch.empty(inner_size, **factory))
        self.x_proj = nn.Linear(inner_size, dt_rank + 2 * memory_size, bias=False, **factory)
        self.dt_proj = nn.Linear(dt_rank, inner_size, **factory)
        self.A_log = nn.Parameter(torch.empty(inner_size, memory_size, **factory))
        self.skip = nn.Parameter(torch.empty(inner_size, **factory))
        self.out_proj = nn.Linear(inner_size, input_size, bias=False, **factory)
        self.out = nn.Linear(input_size, output_size, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as the released code of Mamba does."""
        for module in (self.norm, self.in_proj, self.x_proj, self.out_proj, self.out):
            module.reset_parameters()
        # as torch initializes a depthwise convolution
        bound = self.kernel_size**-0.5
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.uniform_(self.conv_bias, -bound, bound)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        nn.init.ones_(self.skip)
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.bias, math.log(self.dt_min), math.log(self.dt_max))
            dt = torch.exp(self.dt_proj.bias)
            # the inverse of softplus
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            self.A_log.copy_(torch.arange(1, self.memory_size + 1).to(self.A_log).log())

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step, see `BaseCell.run_step`."""
        state, past = memory.split([self.memory_size, self.kernel_size - 1], -1)
        u, z = self.in_proj(self.norm(x)).chunk(2, -1)
        window = torch.cat([past, u.unsqueeze(-1)], -1)
        u, decay, write, read = self._select(window)
        state = decay * state + write
        return self._read_out(x, u, z, state, read), torch.cat([state, window[..., 1:]], -1)

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a sequence in one scan, see `BaseCell.run_sequence`."""
        state, past = memory.split([self.memory_size, self.kernel_size - 1], -1)
        u, z = self.in_proj(self.norm(x)).chunk(2, -1)
        windows, past = causal_windows(u, past.mT, is_init)
        u, decay, write, read = self._select(windows.mT)
        states, state = linear_scan(decay, write, state, is_init)
        return self._read_out(x, u, z, states, read), torch.cat([state, past.mT], -1)

    def _select(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute from the last inputs `[..., E, k]` what the recurrence and its output need.

        Returns:
            The filtered input `[..., E]`, the factor of the state and what is added to it, both
            `[..., E, N]`, and the vector that reads it, `[..., N]`.
        """
        u = F.silu((windows * self.conv_weight).sum(-1) + self.conv_bias)
        sizes = [self.dt_rank, self.memory_size, self.memory_size]
        rank, write, read = self.x_proj(u).split(sizes, -1)
        dt = F.softplus(self.dt_proj(rank)).unsqueeze(-1)
        decay = torch.exp(dt * -torch.exp(self.A_log))
        return u, decay, dt * u.unsqueeze(-1) * write.unsqueeze(-2), read

    def _read_out(self, x: Tensor, u: Tensor, z: Tensor, states: Tensor, read: Tensor) -> Tensor:
        y = (states @ read.unsqueeze(-1)).squeeze(-1) + self.skip * u
        return self.out(x + self.out_proj(y * F.silu(z)))

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return (
            f"memory_size={self.memory_size}, inner_size={self.inner_size}, "
            f"kernel_size={self.kernel_size}, dt_rank={self.dt_rank}, dt_min={self.dt_min}, "
            f"dt_max={self.dt_max}"
        )
