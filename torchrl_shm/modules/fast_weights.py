"""Fast weight programmers: a slow network writes the weights of a fast, linear one."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchrl_shm.checks import check_option
from torchrl_shm.modules._features import elu_plus_one, input_norm, read_matrix, sum_to_one
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops import delta_scan, gated_scan

Rule = Literal["delta", "additive"]
"""How a fast weight matrix is written; see `FastWeights`."""


class FastWeights(BaseCell):
    """A matrix memory that is programmed by keys and values.

    With `x̂ = LayerNorm(x)`, the feature map `phi(a) = elu(a) + 1`, and a memory that starts at
    zero:

        k = phi(W_k x̂) / sum(phi(W_k x̂));  q likewise;  v = W_v x̂;  beta = sigmoid(W_b x̂)
        M_t = M_{t-1} + beta_t (v_t - M_{t-1} k_t) ⊗ k_t    write, delta rule
        M_t = M_{t-1} + v_t ⊗ k_t                           write, additive rule
        out = W_o (M_t q_t + W_s x̂ + b_s) + b_o             read; W_s is the shortcut

    The delta rule replaces the value of a key, the additive rule adds to it.

    Source: Schlag et al., Linear Transformers Are Secretly Fast Weight Programmers (2021), section
    4.2 (delta rule and sum normalization). Benchmarks mean different things by "FWP": the one of
    `pomdp-baselines/torchkit/fwp.py` in the repository `thaihungle/SHM` has the delta rule, the one
    of `proroklab/popgym`, `popgym/baselines/models/fwp.py`, the additive rule. LayerNorm, shortcut
    and eps are theirs; both take ReLU for the feature map, which can silence a whole key.

    The memory holds `M`: `[memory_size, memory_size]`, value axis first.

    Args:
        input_size: number of input features, `D`, at least 3: of fewer the LayerNorm leaves a sign
            or nothing.
        output_size: number of output features.
        memory_size: side `H` of the memory.
        rule: `"delta"` or `"additive"`, see above. Only the delta rule has a `beta`.
        device: device of the parameters.
        dtype: dtype of the parameters and of the memory.

    Raises:
        ValueError: a size is not positive, `input_size` is below 3, or `rule` is unknown.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import FastWeights
        >>> cell = FastWeights(input_size=5, output_size=3, memory_size=8)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 8, 8]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        memory_size: int = 32,
        rule: Rule = "delta",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (memory_size, memory_size)
        super().__init__(input_size, output_size, shape, memory_size=memory_size)
        check_option("rule", rule, Rule)
        self.memory_size = memory_size
        self.rule: Rule = rule
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = input_norm(input_size, **factory)
        self.key = nn.Linear(input_size, memory_size, bias=False, **factory)
        self.query = nn.Linear(input_size, memory_size, bias=False, **factory)
        self.value = nn.Linear(input_size, memory_size, bias=False, **factory)
        self.beta = nn.Linear(input_size, 1, bias=False, **factory) if rule == "delta" else None
        self.shortcut = nn.Linear(input_size, memory_size, **factory)
        self.out = nn.Linear(memory_size, output_size, **factory)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; see `BaseCell.run_step`."""
        normed, q, k, v = self._project(x)
        if self.beta is not None:
            v = torch.sigmoid(self.beta(normed)) * (v - read_matrix(memory, k))
        memory = memory + v.unsqueeze(-1) * k.unsqueeze(-2)
        return self._read_out(read_matrix(memory, q), normed), memory

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence; see `BaseCell.run_sequence`."""
        normed, q, k, v = self._project(x)
        if self.beta is None:
            read, _, memory = gated_scan(q, k, v, memory=memory, is_init=is_init)
        else:
            beta = torch.sigmoid(self.beta(normed)).squeeze(-1)
            read, memory = delta_scan(q, k, v, beta, memory, is_init)
        return self._read_out(read, normed), memory

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return f"memory_size={self.memory_size}, rule={self.rule!r}"

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normed = self.norm(x)
        q, k = (sum_to_one(elu_plus_one(layer(normed))) for layer in (self.query, self.key))
        return normed, q, k, self.value(normed)

    def _read_out(self, read: Tensor, normed: Tensor) -> Tensor:
        return self.out(read + self.shortcut(normed))
