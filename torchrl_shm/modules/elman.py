"""Elman's network: the plain recurrent network, with torch's own kernel."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from torchrl_shm.modules._slices import cut_at_resets
from torchrl_shm.modules.base_cell import BaseCell

Nonlinearity = Literal["tanh", "relu"]
"""The function of the hidden state; see `Elman`."""


class Elman(BaseCell):
    """The simple recurrent network, whose output is its hidden state, or a linear map of it.

    With `h_0 = 0`, and in each further layer the hidden state of the layer below as its input:

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        y_t = h_t of the last layer

    Source: Elman, Finding Structure in Time (Cognitive Science 1990); a baseline of Morad et al.,
    POPGym (ICLR 2023). The parameters, their initialisation and the sequence kernel are those of
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
        hidden_size = output_size if hidden_size is None else hidden_size
        super().__init__(
            input_size,
            output_size,
            (num_layers, hidden_size),
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        if nonlinearity not in get_args(Nonlinearity):
            raise ValueError(
                f"nonlinearity={nonlinearity!r} is unknown; choose one of {get_args(Nonlinearity)}"
            )
        self.nonlinearity: Nonlinearity = nonlinearity
        # parameters under the names of nn.RNN, which itself does not compile
        self.rnn = nn.RNNBase(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            device=device,
            dtype=dtype,
        )
        self.out = None
        if hidden_size != output_size:
            self.out = nn.Linear(hidden_size, output_size, device=device, dtype=dtype)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; see `BaseCell.run_step`."""
        cell = torch.rnn_tanh_cell if self.nonlinearity == "tanh" else torch.rnn_relu_cell
        states: list[Tensor] = []
        for state, parameters in zip(memory.unbind(1), self.rnn.all_weights, strict=True):
            x = cell(x, state, *parameters)
            states.append(x)
        return self._read_out(x), torch.stack(states, 1)

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence in one call of a kernel; see `BaseCell.run_sequence`."""
        kernel = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        weights: list[Tensor] = [weight for layer in self.rnn.all_weights for weight in layer]
        # with biases and without dropout; only in training mode can cuDNN go backward
        options = (weights, True, len(self.rnn.all_weights), 0.0, True, False)
        if is_init is None or not len(x):
            y, final = kernel(x, memory.transpose(0, 1).contiguous(), *options, True)
            return self._read_out(y), final.transpose(0, 1)

        batch, steps = x.shape[:2]
        first, piece, step = cut_at_resets(is_init)
        # pieces between resets run side by side, each at its own length; the kernel reads the first
        # step of them all, then the second, always the longest piece first
        by_length = piece.bincount().argsort(descending=True, stable=True)
        rank = by_length.argsort()[piece]
        order = (step * len(first) + rank).argsort()
        first = first[by_length]
        # a piece without a reset at its start is the first of its row
        fresh = is_init.flatten()[first].view(-1, 1, 1)
        start = torch.where(fresh, 0, memory[first // steps]).transpose(0, 1).contiguous()
        y, final = kernel(x.flatten(0, 1)[order], step.bincount().cpu(), start, *options)

        y = y[order.argsort()].unflatten(0, (batch, steps))
        last = rank.view(batch, steps)[:, -1]
        return self._read_out(y), final[:, last].transpose(0, 1)

    def _read_out(self, hidden: Tensor) -> Tensor:
        return hidden if self.out is None else self.out(hidden)

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return f"nonlinearity={self.nonlinearity!r}"
