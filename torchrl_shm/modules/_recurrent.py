"""What `GRU`, `LSTM` and `Elman` share: a recurrent network of torch as a memory cell."""

from __future__ import annotations

from itertools import chain, groupby
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


class RecurrentCell(BaseCell):
    """A recurrent network of torch as a memory cell, whose output is its hidden state.

    The parts of sequences between resets run side by side in torch's kernel, without padding. A
    subclass names torch's two functions that run the network, and writes its equations.

    Args:
        mode: which network, see `torch.nn.RNNBase`.
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
        mode: str,
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
        # holds the parameters under torch's names; its subclasses, such as nn.GRU, do not compile
        self.rnn = nn.RNNBase(mode, input_size, hidden_size, num_layers, **factory)
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

    def combine(
        self, from_x: Tensor, from_h: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The same by equations, since torch's cells have no rule for `vmap`.

        Args:
            from_x: `W_ih x + b_ih` for all gates one after the other, of shape `[B, G]`.
            from_h: `W_hh h + b_hh`, of shape `[B, G]`.
            states: the states `[B, H]`, the hidden state first.

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
        layers, before = self._weights, memory.flatten(1, -2).unbind(1)
        after = list(before)
        for layer, weights in enumerate(layers):
            states = before[layer :: len(layers)]
            if is_transformed(x, *states, *weights):
                w_ih, w_hh, b_ih, b_hh = weights
                from_h = F.linear(states[0], w_hh, b_hh)
                states = self.combine(F.linear(x, w_ih, b_ih), from_h, states)
            else:
                states = self.run_cell(x, states, weights)
            after[layer :: len(layers)] = states
            x = states[0]
        return self._read_out(x), torch.stack(after, 1).view(memory.shape)

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence in torch's kernel; see `BaseCell.run_sequence`.

        On CUDA the host waits for the reset flags.
        """
        batch, steps = x.shape[:2]
        flags = torch.zeros(batch, steps, dtype=torch.bool) if is_init is None else is_init
        # torch's kernels have no rule for vmap
        if not batch or is_transformed(x, memory, flags, *chain(*self._weights)):
            return super().run_sequence(x, memory, is_init)
        sizes, *indices = pack_parts(flags, 1 if x.is_cuda else _SHARE)
        order, place, sequence, fresh, last = (
            index.to(x.device, non_blocking=True) for index in indices
        )
        final_step = place[steps - 1 :: steps]
        padding = (order == batch * steps).unsqueeze(1)
        # one more step, of zeros, is the padding
        hidden = F.pad(x.reshape(batch * steps, -1), (0, 0, 0, 1)).index_select(0, order)
        layers, before = self._weights, memory.flatten(1, -2).unbind(1)
        after = list(before)
        for layer, weights in enumerate(layers):
            states = [
                torch.where(fresh, 0, state.index_select(0, sequence))
                for state in before[layer :: len(layers)]
            ]
            hidden, cells = self.run_layer(hidden, sizes, padding, states, weights)
            rest = [cell.index_select(0, last) for cell in cells]
            after[layer :: len(layers)] = [hidden.index_select(0, final_step), *rest]
        y = hidden.index_select(0, place).view(batch, steps, -1)
        return self._read_out(y), torch.stack(after, 1).view(memory.shape)

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

    @property
    def _weights(self) -> list[list[Tensor]]:
        """The parameters of each layer: W_ih, W_hh, b_ih, b_hh."""
        layers: Any = self.rnn.all_weights
        return layers

    def _read_out(self, hidden: Tensor) -> Tensor:
        return hidden if self.out is None else self.out(hidden)
