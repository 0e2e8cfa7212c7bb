"""Torch's recurrent networks as memories: GRU, LSTM, and what they share with `Elman`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_shm.modules._resets import pack_parts
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops.shm.dispatch import is_transformed


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
        """Run all layers over sequences without resets.

        Args:
            inputs: sequences `[T, B, D]`; or packed ones and how many of them have each step.
            states: the states `[layers, B, H]`, the hidden state first.
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
        batch, steps, size = x.shape
        layers: Any = self.rnn.all_weights
        weights: list[Tensor] = [weight for layer in layers for weight in layer]
        flags = torch.zeros(batch, steps, dtype=torch.bool) if is_init is None else is_init
        # torch's kernels have no rule for vmap
        if not batch or is_transformed(x, memory, flags, *weights):
            return super().run_sequence(x, memory, is_init)
        *indices, sizes = pack_parts(flags)
        order, place, sequence, fresh, last = (
            index.to(x.device, non_blocking=True) for index in indices
        )
        states = [
            torch.where(fresh, 0, state.index_select(1, sequence)) for state in self._unpack(memory)
        ]
        packed = x.reshape(batch * steps, size).index_select(0, order)
        # with biases and without dropout; cuDNN has a backward in training mode only
        options = (weights, True, self.rnn.num_layers, 0.0, True, False)
        if x.is_cuda:
            y, *states = self.run_kernel((packed, sizes), states, options)
        else:
            y, *states = self._run_blocks(packed, sizes.tolist(), states, options)
        y = y.index_select(0, place).view(batch, steps, -1)
        final = torch.stack([state.index_select(1, last).transpose(0, 1) for state in states], 1)
        return self._read_out(y), final.view(memory.shape)

    def _run_blocks(
        self, packed: Tensor, sizes: list[int], states: list[Tensor], options: Any
    ) -> tuple[Tensor, ...]:
        """Run packed sequences in blocks of steps that equally many of them have.

        On the CPU, the backward of torch's kernel for packed sequences allocates a tensor of the
        size of all of them per step. Here it is one call for each of the different lengths, fewer
        than `sqrt(2 B T)`.
        """
        blocks = [(size, len(list(steps))) for size, steps in groupby(sizes)]
        outputs: list[Tensor] = []
        ended: list[list[Tensor]] = [[] for _ in states]
        inputs = packed.split([size * steps for size, steps in blocks])
        for x, (size, steps) in zip(inputs, blocks, strict=True):
            for number, state in enumerate(states):
                # the shortest stand last
                states[number], done = state.split((size, state.shape[1] - size), 1)
                ended[number].append(done)
            x = x.view(steps, size, x.shape[-1])
            y, *states = self.run_kernel((x,), states, (*options, False))
            outputs.append(y.flatten(0, 1))
        final = (
            torch.cat([state, *done[::-1]], 1) for state, done in zip(states, ended, strict=True)
        )
        return torch.cat(outputs), *final

    def _unpack(self, memory: Tensor) -> tuple[Tensor, ...]:
        """The states, `[layers, B, H]`."""
        states = memory.reshape(len(memory), self._num_states, *self.memory_shape[-2:])
        return states.transpose(0, 1).transpose(1, 2).unbind(0)

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
