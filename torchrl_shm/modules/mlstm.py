"""mLSTM: the LSTM whose state is a matrix, with exponential gates."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_shm.checks import check_option
from torchrl_shm.modules._features import input_norm, read_matrix
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops import gated_scan

ForgetGate = Literal["sigmoid", "exp"]
"""The activation of the forget gate; see `MLSTM`."""


class MLSTM(BaseCell):
    """The matrix memory of xLSTM.

    With `x̂ = LayerNorm(x)`, and for each head a matrix `C` and a vector `n` that start at zero:

        q = W_q x̂ + b_q;  k = (W_k x̂ + b_k) / sqrt(H);  v = W_v x̂ + b_v
        i = exp(w_i · x̂ + b_i);  f = sigmoid(w_f · x̂ + b_f);  o = sigmoid(W_o x̂ + b_o)
        C_t = f_t C_{t-1} + i_t v_t ⊗ k_t                write
        n_t = f_t n_{t-1} + i_t k_t                      how much was written
        h_t = o_t ⊙ (C_t q_t) / max(|n_t · q_t|, 1)      read
        out = W (h_t + W_s x̂ + b_s) + b                  W_s is the shortcut

    Exponentials overflow, so `C` and `n` are kept divided by `exp(m)`, where `m_t = max(log f_t +
    m_{t-1}, log i_t)` is the stabilizer; the 1 in the quotient then reads `exp(-m_t)`. No output
    depends on `m`, so no gradient flows through its maximum.

    Source: Beck et al., xLSTM: Extended Long Short-Term Memory (2024), section 2.3, equations 19
    to 27, and equation 15 (stabilizer). The block around the cell is ours.

    Where `n · q` is small compared with its floor, rounding errors are magnified: in float32, steps
    and sequence agree to about 1e-5 over 100 steps without a reset, and to 1e-4 over 300. `"exp"`
    gates above one grow without bound, and so does that difference.

    The memory holds, for each head, `C` and below it `n`, row by row, and at last `m`:
    `[num_heads, (memory_size + 1) * memory_size + 1]`.

    Args:
        input_size: number of input features, `D`, at least 3: of fewer the LayerNorm leaves a sign
            or nothing.
        output_size: number of output features.
        memory_size: side `H` of the matrix of each head.
        num_heads: number of matrices, each with gates, keys, queries and values of its own.
        forget_gate: `"sigmoid"`, as above, whose biases start between 3 and 6, spread over the
            heads, so that they remember for different times; or `"exp"`, whose biases start at 0,
            where it forgets nothing.
        device: device of the parameters.
        dtype: dtype of the parameters and of the memory.

    Raises:
        ValueError: a size is not positive, `input_size` is below 3, or `forget_gate` is unknown.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import MLSTM
        >>> cell = MLSTM(input_size=5, output_size=3, memory_size=8, num_heads=2)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 2, 73]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        memory_size: int = 16,
        num_heads: int = 4,
        forget_gate: ForgetGate = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (num_heads, (memory_size + 1) * memory_size + 1)
        super().__init__(
            input_size, output_size, shape, memory_size=memory_size, num_heads=num_heads
        )
        check_option("forget_gate", forget_gate, ForgetGate)
        self.memory_size = memory_size
        self.num_heads = num_heads
        self.forget_gate: ForgetGate = forget_gate
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width = num_heads * memory_size
        self.norm = input_norm(input_size, **factory)
        self.query = nn.Linear(input_size, width, **factory)
        self.key = nn.Linear(input_size, width, **factory)
        self.value = nn.Linear(input_size, width, **factory)
        self.input = nn.Linear(input_size, num_heads, **factory)
        self.forget = nn.Linear(input_size, num_heads, **factory)
        self.output = nn.Linear(input_size, width, **factory)
        self.shortcut = nn.Linear(input_size, width, **factory)
        self.out = nn.Linear(width, output_size, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as the authors do: gates that at first ignore the input, and remember."""
        for module in self.children():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
        nn.init.zeros_(self.input.weight)
        nn.init.zeros_(self.forget.weight)
        nn.init.normal_(self.input.bias, std=0.1)
        low, high = (3.0, 6.0) if self.forget_gate == "sigmoid" else (0.0, 0.0)
        with torch.no_grad():
            self.forget.bias.copy_(torch.linspace(low, high, self.num_heads))

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; see `BaseCell.run_step`."""
        normed, (q, k, v), log_forget, log_input = self._project(x)
        matrix, m = self._unpack(memory)
        largest = torch.maximum(log_forget + m, log_input).detach()
        forget = torch.exp(log_forget + m - largest)[..., None, None]
        written = (v * torch.exp(log_input - largest).unsqueeze(-1)).unsqueeze(-1) * k.unsqueeze(-2)
        matrix = matrix * forget + written
        return self._read_out(read_matrix(matrix, q), largest, normed), _pack(matrix, largest)

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence; see `BaseCell.run_sequence`."""
        normed, vectors, log_forget, log_input = self._project(x)
        heads = (len(x), self.num_heads)
        # the scan takes heads as further entries of the batch
        q, k, v, decay, gate = (
            z.transpose(1, 2).flatten(0, 1) for z in (*vectors, log_forget, log_input)
        )
        matrix, m = self._unpack(memory.flatten(0, 1))
        resets = None if is_init is None else is_init.repeat_interleave(self.num_heads, 0)
        read, largest, matrix = gated_scan(q, k, v, decay, gate, matrix, m, resets)
        memory = _pack(matrix, largest[:, -1]).unflatten(0, heads)
        read, largest = (z.unflatten(0, heads).transpose(1, 2) for z in (read, largest))
        return self._read_out(read, largest, normed), memory

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return (
            f"memory_size={self.memory_size}, num_heads={self.num_heads}, "
            f"forget_gate={self.forget_gate!r}"
        )

    def _project(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        normed = self.norm(x)
        heads = (self.num_heads, self.memory_size)
        q, k, v = (
            layer(normed).unflatten(-1, heads) for layer in (self.query, self.key, self.value)
        )
        # one more value of 1 adds up the keys themselves, which is n
        vectors = (q, k / math.sqrt(self.memory_size), F.pad(v, (0, 1), value=1.0))
        forget = self.forget(normed)
        log_forget = F.logsigmoid(forget) if self.forget_gate == "sigmoid" else forget
        return normed, vectors, log_forget, self.input(normed)

    def _read_out(self, read: Tensor, m: Tensor, normed: Tensor) -> Tensor:
        written = torch.maximum(read[..., -1].abs(), torch.exp(-m))
        h = (read[..., :-1] / written.unsqueeze(-1)).flatten(-2)
        return self.out(torch.sigmoid(self.output(normed)) * h + self.shortcut(normed))

    def _unpack(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.memory_size + 1, self.memory_size)
        return memory[..., :-1].unflatten(-1, shape), memory[..., -1]


def _pack(matrix: Tensor, m: Tensor) -> Tensor:
    return torch.cat([matrix.flatten(-2), m.unsqueeze(-1)], -1)
