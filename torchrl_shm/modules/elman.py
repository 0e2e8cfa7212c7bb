"""Elman's network: the plain recurrent network, with torch's own kernel."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchrl_shm.checks import check_option
from torchrl_shm.modules._resets import Parts, cut_at_resets
from torchrl_shm.modules.base_cell import BaseCell

Nonlinearity = Literal["tanh", "relu"]
"""The function of the hidden state; see `Elman`."""


class Elman(BaseCell):
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
        hidden_size = output_size if hidden_size is None else hidden_size
        super().__init__(
            input_size,
            output_size,
            (num_layers, hidden_size),
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        check_option("nonlinearity", nonlinearity, Nonlinearity)
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
        """Run over a whole sequence in torch's kernel; see `BaseCell.run_sequence`.

        Parts between resets run side by side, in groups of similar length that are padded to the
        longest, which makes the host wait for the device once.
        """
        kernel = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        batch, steps = x.shape[:2]
        if not batch:
            return super().run_sequence(x, memory, is_init)
        first = torch.zeros_like(x[:, :, 0], dtype=torch.bool) if is_init is None else is_init
        parts = cut_at_resets(first)
        groups = _group(parts)
        # a part without a reset at its start is the first of its sequence
        fresh = first.flatten()[parts.first].unsqueeze(-1)
        sequence = parts.first // steps
        last = torch.arange(steps - 1, batch * steps, steps, device=x.device)
        hidden, states = x.flatten(0, 1), []
        layers: Any = self.rnn.all_weights
        for state, weights in zip(memory.unbind(1), layers, strict=True):
            start = torch.where(fresh, 0, state[sequence])
            # with biases and without dropout; cuDNN has a backward in training mode only
            outputs = [
                kernel(hidden[at], start[members].unsqueeze(0), weights, True, 1, 0.0, True, False,
                       True)[0][inside]
                for members, at, inside in groups
            ]  # fmt: skip
            order = torch.cat([at[inside] for _, at, inside in groups])
            hidden = torch.cat(outputs)[order.argsort()]
            states.append(hidden[last])
        return self._read_out(hidden.unflatten(0, (batch, steps))), torch.stack(states, 1)

    def _read_out(self, hidden: Tensor) -> Tensor:
        return hidden if self.out is None else self.out(hidden)

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return f"nonlinearity={self.nonlinearity!r}"


def _group(parts: Parts) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Group parts of similar length.

    Returns for each group the indices of its parts `[n]`, the flat indices of their steps `[n, L]`,
    and which of these are no padding `[n, L]`. Lengths of a group differ by at most a factor of
    two, so at most half of its steps are padding.
    """
    length = parts.part.bincount()
    size = (length - 1).clamp(min=1).log2().floor().long() + 1
    groups: list[tuple[Tensor, Tensor, Tensor]] = []
    for n in size.unique().tolist():
        members = (size == n).nonzero().squeeze(1)
        step = torch.arange(int(length[members].max()), device=length.device)
        inside = step < length[members].unsqueeze(1)
        # padding repeats the first step
        at = parts.first[members].unsqueeze(1) + torch.where(inside, step, 0)
        groups.append((members, at, inside))
    return groups
