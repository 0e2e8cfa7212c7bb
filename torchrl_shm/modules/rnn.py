"""Torch's recurrent networks as memories: GRU, LSTM, and what they share with `Elman`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_shm.modules._resets import pack_parts
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops.shm.dispatch import is_transformed

# On a CPU, a call of the kernel costs as much as some steps, so parts of about the same length are
# padded: each call goes on while this share of its parts does
_SHARE = 0.75
# so large that the sigmoid of it is 1, or 0 for its negative, whatever is added
_SHUT = 1e6


class RecurrentCell(BaseCell):
    """A recurrent network of torch as a memory cell, whose output is its hidden state.

    The parts of sequences between resets run side by side in torch's kernel, without padding. A
    subclass names the module that holds the parameters and the two functions that run them.

    Args:
        network: makes the module from `input_size`, `hidden_size` and `num_layers`.
        input_size: number of input features.
        output_size: number of output features.
        hidden_size: size of the hidden state. Where it differs from `output_size`, a linear map
            follows. Default: `output_size`.
        num_layers: number of stacked layers.
        device: device of the parameters.
        dtype: dtype of the parameters and the memory.

    Raises:
        ValueError: a size is not positive.
    """

    # how many of `[layers, hidden]` the memory holds
    _num_states = 1

    def __init__(
        self,
        network: Callable[..., nn.RNNBase],
        input_size: int,
        output_size: int,
        *,
        hidden_size: int | None,
        num_layers: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        hidden_size = output_size if hidden_size is None else hidden_size
        states = () if self._num_states == 1 else (self._num_states,)
        super().__init__(
            input_size,
            output_size,
            (*states, num_layers, hidden_size),
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.rnn = network(input_size, hidden_size, num_layers, batch_first=True, **factory)
        self.out = None
        if hidden_size != output_size:
            self.out = nn.Linear(hidden_size, output_size, **factory)

    def run_cell(self, x: Tensor, states: tuple[Tensor, ...], weights: Any) -> tuple[Tensor, ...]:
        """Take one step of one layer.

        Args:
            x: inputs of shape `[B, D]`.
            states: the states `[B, H]`, the hidden state first.
            weights: parameters of the layer.

        Returns:
            The new states.
        """
        raise NotImplementedError

    def run_kernel(self, inputs: Any, states: Any, options: Any) -> tuple[Tensor, ...]:
        """Run one layer over sequences without resets.

        Args:
            inputs: sequences `[T, B, D]`; or packed ones and how many of them have each step.
            states: the states `[1, B, H]`, the hidden state first.
            options: what torch's function takes besides.

        Returns:
            Outputs, and the final states.
        """
        raise NotImplementedError

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; see `BaseCell.run_step`."""
        layers = zip(*(state.unbind(0) for state in self._unpack(memory)), strict=True)
        after: list[Tensor] = []
        for states, weights in zip(layers, self.rnn.all_weights, strict=True):
            states = self.run_cell(x, states, weights)
            x = states[0]
            after.append(torch.stack(states, 1))
        return self._read_out(x), torch.stack(after, -2).view(memory.shape)

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence in torch's kernel; see `BaseCell.run_sequence`.

        On CUDA the host waits for the reset flags.
        """
        batch, steps = x.shape[:2]
        flags = torch.zeros(batch, steps, dtype=torch.bool) if is_init is None else is_init
        # torch's kernels have no rule for vmap
        if not batch or is_transformed(x, memory, flags, *self.rnn.parameters()):
            return super().run_sequence(x, memory, is_init)
        sizes, *indices = pack_parts(flags, 1 if x.is_cuda else _SHARE)
        order, place, sequence, fresh, last = (
            index.to(x.device, non_blocking=True) for index in indices
        )
        final_step = place[steps - 1 :: steps]
        padding = (order == batch * steps).unsqueeze(1)
        # one more step, of zeros, is the padding
        hidden = F.pad(x.reshape(batch * steps, -1), (0, 0, 0, 1)).index_select(0, order)
        final: list[Tensor] = []
        layers = zip(*(state.unbind(0) for state in self._unpack(memory)), strict=True)
        for states, weights in zip(layers, self.rnn.all_weights, strict=True):
            start = [torch.where(fresh, 0, state.index_select(0, sequence)) for state in states]
            hidden, cells = self.run_layer(hidden, sizes, padding, start, weights)
            rest = [cell.index_select(0, last) for cell in cells]
            final.append(torch.stack([hidden.index_select(0, final_step), *rest], 1))
        y = hidden.index_select(0, place).view(batch, steps, -1)
        return self._read_out(y), torch.stack(final, -2).view(memory.shape)

    def run_layer(
        self, x: Tensor, sizes: Tensor, padding: Tensor, states: list[Tensor], weights: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one layer over packed parts.

        Args:
            x: inputs of shape `[n, D]`, see `torchrl_shm.modules._resets.Packing`.
            sizes: int64 of shape `[longest]`, on the CPU.
            padding: bool of shape `[n, 1]`.
            states: the states `[num_parts, H]`, the hidden state first.
            weights: parameters of the layer.

        Returns:
            Outputs `[n, H]`, and all states but the hidden one after the parts, padding included.
        """
        states = [state.unsqueeze(0) for state in states]
        # with biases and without dropout; cuDNN has a backward in training mode only
        options = (weights, True, 1, 0.0, True, False)
        if x.is_cuda:
            y, _, *cells = self.run_kernel((x, sizes), states, options)
            return y, [cell.squeeze(0) for cell in cells]
        # On the CPU, the backward of that call allocates as much as x at each step, so take one
        # call for each number of parts. The shortest stand last
        blocks = [(size, len(list(steps))) for size, steps in groupby(sizes.tolist())]
        outputs: list[Tensor] = []
        ended: list[list[Tensor]] = [[] for _ in states]
        parts = x.split([size * steps for size, steps in blocks])
        for part, (size, steps) in zip(parts, blocks, strict=True):
            for number, state in enumerate(states):
                states[number], done = state.split((size, state.shape[1] - size), 1)
                ended[number].append(done)
            part = part.view(steps, size, part.shape[1])
            y, *states = self.run_kernel((part,), states, (*options, False))
            outputs.append(y.flatten(0, 1))
        cells = [
            torch.cat([state, *done[::-1]], 1).squeeze(0)
            for state, done in zip(states[1:], ended[1:], strict=True)
        ]
        return torch.cat(outputs), cells

    def _unpack(self, memory: Tensor) -> tuple[Tensor, ...]:
        """The states, `[layers, B, H]`."""
        states = memory.reshape(len(memory), self._num_states, *self.memory_shape[-2:])
        return states.permute(1, 2, 0, 3).unbind(0)

    def _read_out(self, hidden: Tensor) -> Tensor:
        return hidden if self.out is None else self.out(hidden)


class GRU(RecurrentCell):
    """Gated Recurrent Unit, whose output is its hidden state, or a linear map of it.

    With `h_0 = 0`, and in each further layer the hidden state of the layer below as its input:

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t ⊙ (W_hn h_{t-1} + b_hn))
        h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}
        y_t = h_t of the last layer

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder (EMNLP 2014). The
    parameters are those of the `torch.nn.GRU` in `cell.rnn`, with its initialization, and so is the
    sequence kernel; `cell.rnn.load_state_dict(module.gru.state_dict())` takes them from TorchRL's
    `GRUModule`.

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
            nn.GRU,
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

    def run_kernel(self, inputs: Any, states: Any, options: Any) -> tuple[Tensor, ...]:
        """Run all layers over sequences without resets; see `RecurrentCell.run_kernel`."""
        return torch.gru(*inputs, states[0], *options)


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
    forget gate of Gers et al., Learning to Forget (Neural Computation 2000). The parameters are
    those of the `torch.nn.LSTM` in `cell.rnn`, with its initialization, and so is the sequence
    kernel; `cell.rnn.load_state_dict(module.lstm.state_dict())` takes them from TorchRL's
    `LSTMModule`.

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
            nn.LSTM,
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

    def run_kernel(self, inputs: Any, states: Any, options: Any) -> tuple[Tensor, ...]:
        """Run all layers over sequences without resets; see `RecurrentCell.run_kernel`."""
        return torch.lstm(*inputs, states, *options)

    def run_layer(
        self, x: Tensor, sizes: Tensor, padding: Tensor, states: list[Tensor], weights: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one layer over packed parts; see `RecurrentCell.run_layer`."""
        if x.is_cpu:
            # an input that keeps the cells as they are in padding: input gate 0, forget gate 1
            x = torch.cat([x, padding], 1)
            w_ih, *others = weights
            column = torch.tensor([-_SHUT, _SHUT, 0, 0], dtype=x.dtype)
            column = column.repeat_interleave(len(w_ih) // 4).unsqueeze(1)
            weights = [torch.cat([w_ih, column], 1), *others]
        return super().run_layer(x, sizes, padding, states, weights)
