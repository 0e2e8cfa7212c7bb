"""Elman's network: the plain recurrent network, with torch's own kernel."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from torchrl_shm.checks import check_option
from torchrl_shm.modules._recurrent import RecurrentCell

Nonlinearity = Literal["tanh", "relu"]
"""The function of the hidden state; see `Elman`."""


class Elman(RecurrentCell):
    """The simple recurrent network, whose output is its hidden state, or a linear map of it.

    With `h_0 = 0`, and in each further layer the hidden state of the layer below as its input:

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        y_t = h_t of the last layer

    Source: Elman, Finding Structure in Time (Cognitive Science 1990); a baseline of Morad et al.,
    POPGym (ICLR 2023). The parameters, their initialization and the sequence kernel are those of
    `torch.nn.RNN`, and so are the names in `cell.rnn.state_dict()`.

    The memory holds the hidden state of every layer: `[B, num_layers, hidden_size]`.

    Args:
        input_size: number of input features, `D`.
        output_size: number of output features.
        hidden_size: size of the hidden state. Where it differs from `output_size`, a linear map
            follows. Default: `output_size`.
        num_layers: number of stacked layers.
        nonlinearity: `"tanh"` or `"relu"`, the function `f`.
        device: device of the parameters.
        dtype: dtype of the parameters and the memory.

    Raises:
        ValueError: a size is not positive, or `nonlinearity` is unknown.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import Elman
        >>> cell = Elman(input_size=5, output_size=3)
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
        nonlinearity: Nonlinearity = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_option("nonlinearity", nonlinearity, Nonlinearity)
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            output_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity: Nonlinearity = nonlinearity

    def run_cell(self, x: Tensor, states: tuple[Tensor, ...], weights: Any) -> tuple[Tensor, ...]:
        """Take one step of one layer; see `RecurrentCell.run_cell`."""
        cell = torch.rnn_tanh_cell if self.nonlinearity == "tanh" else torch.rnn_relu_cell
        return (cell(x, states[0], *weights),)

    def combine(
        self, from_x: Tensor, from_h: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Take one step of one layer; see `RecurrentCell.combine`."""
        new = from_x + from_h
        return (new.tanh() if self.nonlinearity == "tanh" else new.relu(),)

    def run_kernel(self, inputs: Any, states: Any, options: Any) -> tuple[Tensor, ...]:
        """Run layers over sequences without resets; see `RecurrentCell.run_kernel`."""
        kernel: Any = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        return kernel(*inputs, states[0], *options)

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return f"nonlinearity={self.nonlinearity!r}"
