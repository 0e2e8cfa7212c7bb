"""Torch's gated recurrent networks as memories: GRU and LSTM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_shm.modules._recurrent import RecurrentCell

# so large that the sigmoid of it is 1, or 0 for its negative, whatever is added
_SHUT = 1e6


class GRU(RecurrentCell):
    """Gated Recurrent Unit, whose output is its hidden state, or a linear map of it.

    With `h_0 = 0`, and in each further layer the hidden state of the layer below as its input:

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t ⊙ (W_hn h_{t-1} + b_hn))
        h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}
        y_t = h_t of the last layer

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder (EMNLP 2014). The
    parameters, their initialization and the kernels are those of `torch.nn.GRU`, and so are the
    names in `cell.rnn.state_dict()`, which TorchRL's `GRUModule(...).gru` can load, and vice versa.

    The memory holds the hidden state of every layer: `[B, num_layers, hidden_size]`.

    Args:
        input_size: number of input features, `D`.
        output_size: number of output features.
        hidden_size: size of the hidden state. Where it differs from `output_size`, a linear map
            follows. Default: `output_size`.
        num_layers: number of stacked layers.
        device: device of the parameters.
        dtype: dtype of the parameters and the memory.

    Raises:
        ValueError: a size is not positive.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import GRU
        >>> cell = GRU(input_size=5, output_size=3)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 1, 3]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        hidden_size: int | None = None,
        num_layers: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "GRU",
            input_size,
            output_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            device=device,
            dtype=dtype,
        )

    def run_cell(self, x: Tensor, states: tuple[Tensor, ...], weights: Any) -> tuple[Tensor, ...]:
        """Take one step of one layer; see `RecurrentCell.run_cell`."""
        return (torch.gru_cell(x, states[0], *weights),)

    def combine(
        self, from_x: Tensor, from_h: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Take one step of one layer; see `RecurrentCell.combine`."""
        r_x, z_x, n_x = from_x.chunk(3, -1)
        r_h, z_h, n_h = from_h.chunk(3, -1)
        new = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        return (torch.lerp(new, states[0], torch.sigmoid(z_x + z_h)),)

    def run_kernel(self, inputs: Any, states: Any, options: Any) -> tuple[Tensor, ...]:
        """Run all layers over sequences without resets; see `RecurrentCell.run_kernel`."""
        kernel: Any = torch.gru
        return kernel(*inputs, states[0], *options)


class LSTM(RecurrentCell):
    """Long Short-Term Memory, whose output is its hidden state, or a linear map of it.

    With `h_0 = c_0 = 0`, and in each further layer the hidden state of the layer below as its
    input:

        i_t, f_t, o_t = sigmoid(W_i x_t + b_i + W_h h_{t-1} + b_h)     input, forget, output gate
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
        h_t = o_t ⊙ tanh(c_t)
        y_t = h_t of the last layer

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory (Neural Computation 1997), with the
    forget gate of Gers et al., Learning to Forget (Neural Computation 2000). The parameters,
    their initialization and the kernels are those of `torch.nn.LSTM`, and so are the names in
    `cell.rnn.state_dict()`, which TorchRL's `LSTMModule(...).lstm` can load, and vice versa.

    The memory holds the hidden states of all layers, then their cells:
    `[B, 2, num_layers, hidden_size]`.

    Args:
        input_size: number of input features, `D`.
        output_size: number of output features.
        hidden_size: size of the hidden state and of the cells. Where it differs from `output_size`,
            a linear map follows. Default: `output_size`.
        num_layers: number of stacked layers.
        device: device of the parameters.
        dtype: dtype of the parameters and the memory.

    Raises:
        ValueError: a size is not positive.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import LSTM
        >>> cell = LSTM(input_size=5, output_size=3, num_layers=4)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 2, 4, 3]))
    """

    _num_states = 2

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        hidden_size: int | None = None,
        num_layers: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            output_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            device=device,
            dtype=dtype,
        )

    def run_cell(self, x: Tensor, states: tuple[Tensor, ...], weights: Any) -> tuple[Tensor, ...]:
        """Take one step of one layer; see `RecurrentCell.run_cell`."""
        return torch.lstm_cell(x, states, *weights)

    def combine(
        self, from_x: Tensor, from_h: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Take one step of one layer; see `RecurrentCell.combine`."""
        i, f, g, o = (from_x + from_h).chunk(4, -1)
        cell = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell

    def run_kernel(self, inputs: Any, states: Any, options: Any) -> tuple[Tensor, ...]:
        """Run all layers over sequences without resets; see `RecurrentCell.run_kernel`."""
        kernel: Any = torch.lstm
        return kernel(*inputs, states, *options)

    def run_layer(
        self,
        x: Tensor,
        sizes: list[int],
        padding: Tensor,
        states: list[Tensor],
        weights: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one layer over packed parts; see `RecurrentCell.run_layer`."""
        # an input that keeps the cells as they are in padding: input gate 0, forget gate 1
        x = torch.cat([x, padding], 1)
        w_ih, *others = weights
        column = x.new_tensor([-_SHUT, _SHUT, 0, 0]).repeat_interleave(len(w_ih) // 4)
        weights = [torch.cat([w_ih, column.unsqueeze(1)], 1), *others]
        return super().run_layer(x, sizes, padding, states, weights)
