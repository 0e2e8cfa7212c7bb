"""Linear attention: a memory that adds up outer products of values and keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_shm.modules._features import elu_plus_one, input_norm, read_matrix
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops import gated_scan


class LinearAttention(BaseCell):
    """Attention to the whole past at a constant cost per step.

    With `x̂ = LayerNorm(x)`, the feature map `phi(a) = (elu(a) + 1) / sqrt(H)`, and a memory that
    starts at zero:

        k, q = phi(W_k x̂), phi(W_q x̂);  v = W_v x̂
        M_t = M_{t-1} + v_t ⊗ k_t             write
        z_t = z_{t-1} + k_t                   how much was written
        y_t = M_t q_t / (z_t · q_t)           read: a weighted mean of all values so far
        out = W_o (y_t + W_s x̂ + b_s) + b_o   W_s is the shortcut

    Nothing is ever forgotten or replaced. The factor `1 / sqrt(H)` keeps `k · q` of the same size
    for every `H`; it cancels in the quotient.

    Source: Katharopoulos et al., Transformers are RNNs (2020), equation 7 (feature map) and
    equations 16 to 20 (recurrence). The paper's feed-forward network is left out.

    The memory holds `M` and, where it is normalized, `z` as one more row:
    `[memory_size + 1, memory_size]`, value axis first.

    Args:
        input_size: number of input features, `D`, at least 3: of fewer the LayerNorm leaves a sign
            or nothing.
        output_size: number of output features.
        memory_size: side `H` of the memory, the number of features of keys, queries and values.
        normalized: divide by `z_t · q_t`. If false, `y_t = M_t q_t`, there is no `z`, and outputs
            grow with the length of the episode: the plain additive memory.
        device: device of the parameters.
        dtype: dtype of the parameters and of the memory.

    Raises:
        ValueError: a size is not positive, or `input_size` is below 3.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import LinearAttention
        >>> cell = LinearAttention(input_size=5, output_size=3, memory_size=8)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 9, 8]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        memory_size: int = 32,
        normalized: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (memory_size + normalized, memory_size)
        super().__init__(input_size, output_size, shape, memory_size=memory_size)
        self.memory_size = memory_size
        self.normalized = normalized
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = input_norm(input_size, **factory)
        self.key = nn.Linear(input_size, memory_size, bias=False, **factory)
        self.query = nn.Linear(input_size, memory_size, bias=False, **factory)
        self.value = nn.Linear(input_size, memory_size, bias=False, **factory)
        self.shortcut = nn.Linear(input_size, memory_size, **factory)
        self.out = nn.Linear(memory_size, output_size, **factory)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; see `BaseCell.run_step`."""
        normed, q, k, v = self._project(x)
        memory = memory + v.unsqueeze(-1) * k.unsqueeze(-2)
        return self._read_out(read_matrix(memory, q), normed), memory

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence; see `BaseCell.run_sequence`."""
        normed, q, k, v = self._project(x)
        read, _, memory = gated_scan(q, k, v, memory=memory, is_init=is_init)
        return self._read_out(read, normed), memory

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return f"memory_size={self.memory_size}, normalized={self.normalized}"

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normed = self.norm(x)
        q, k = (self._feature_map(layer(normed)) for layer in (self.query, self.key))
        v = self.value(normed)
        # the row of ones adds up the keys themselves, which is the normalizer
        return normed, q, k, F.pad(v, (0, 1), value=1.0) if self.normalized else v

    def _feature_map(self, x: Tensor) -> Tensor:
        return elu_plus_one(x) / math.sqrt(self.memory_size)

    def _read_out(self, read: Tensor, normed: Tensor) -> Tensor:
        if self.normalized:
            # all weights are positive, but their sum can round to zero
            total = read[..., -1:].clamp(min=torch.finfo(read.dtype).tiny)
            read = read[..., :-1] / total
        return self.out(read + self.shortcut(normed))
