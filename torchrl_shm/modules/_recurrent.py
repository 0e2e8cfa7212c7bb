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

    The parts of sequences between resets run side by side in torch's kernel, with little padding. A
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
        """Run layers over sequences without resets.

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
        layers = self._weights
        flags = torch.zeros(batch, steps, dtype=torch.bool) if is_init is None else is_init
        # torch's kernels have no rule for vmap
        if not batch or is_transformed(x, memory, flags, *chain(*layers)):
            return super().run_sequence(x, memory, is_init)
        packs = _runs_packed(x)
        sizes, *indices = pack_parts(flags, 1 if packs else _SHARE)
        order, place, sequence, fresh, last = (
            index.to(x.device, non_blocking=True) for index in indices
        )
        # one more step, of zeros, is the padding
        hidden = F.pad(x.reshape(batch * steps, -1), (0, 0, 0, 1)).index_select(0, order)
        states = memory.flatten(1, -2).transpose(0, 1).index_select(1, sequence)
        states = torch.where(fresh, 0, states)
        if packs:
            starts = states.unflatten(0, (-1, len(layers))).unbind(0)
            weights = list(chain(*layers))
            hidden, *ends = self.run_kernel(
                (hidden, sizes), starts, (weights, *_options(len(layers)))
            )
            final = torch.cat(ends).index_select(1, last).transpose(0, 1)
        else:
            after = list(states.unbind(0))
            padding = (order == batch * steps).unsqueeze(1)
            for layer, weights in enumerate(layers):
                own = slice(layer, None, len(layers))
                hidden, cells = self.run_layer(hidden, sizes.tolist(), padding, after[own], weights)
                end = hidden.index_select(0, place[steps - 1 :: steps])
                after[own] = [end, *(cell.index_select(0, last) for cell in cells)]
            final = torch.stack(after, 1)
        y = hidden.index_select(0, place).view(batch, steps, -1)
        return self._read_out(y), final.reshape(memory.shape)

    def run_layer(
        self,
        x: Tensor,
        sizes: list[int],
        padding: Tensor,
        states: list[Tensor],
        weights: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one layer over packed parts, in one call for all steps that equally many have.

        Args:
            x: inputs of shape `[n, D]`, see `torchrl_shm.modules._resets.Packing`.
            sizes: number of packed steps at each step.
            padding: bool of shape `[n, 1]`.
            states: the states `[num_parts, H]`, the hidden state first.
            weights: parameters of the layer.

        Returns:
            Outputs `[n, H]`, and all states but the hidden one after the parts, padding included.
        """
        blocks = [(size, len(list(steps))) for size, steps in groupby(sizes)]
        inputs = x.split([size * steps for size, steps in blocks])
        going = [state.unsqueeze(0) for state in states]
        ended: list[list[Tensor]] = [[] for _ in states]
        outputs: list[Tensor] = []
        for block, (size, steps) in zip(inputs, blocks, strict=True):
            for number, state in enumerate(going):
                # the shortest stand last
                going[number], done = state.split((size, state.shape[1] - size), 1)
                ended[number].append(done)
            block = block.view(steps, size, -1)
            y, *going = self.run_kernel((block,), going, (weights, *_options(1), False))
            outputs.append(y.flatten(0, 1))
        cells = [
            torch.cat([state, *done[::-1]], 1).squeeze(0)
            for state, done in zip(going[1:], ended[1:], strict=True)
        ]
        return torch.cat(outputs), cells

    @property
    def _weights(self) -> list[list[Tensor]]:
        """The parameters of each layer: W_ih, W_hh, b_ih, b_hh."""
        layers: Any = self.rnn.all_weights
        return layers

    def _read_out(self, hidden: Tensor) -> Tensor:
        return hidden if self.out is None else self.out(hidden)


def _runs_packed(x: Tensor) -> bool:
    """Whether to take torch's kernel for packed sequences.

    On a CPU it is the slower one: its backward allocates as much as all inputs at each step.
    """
    return x.is_cuda


def _options(num_layers: int) -> tuple[Any, ...]:
    # with biases and without dropout; cuDNN has a backward in training mode only
    return (True, num_layers, 0.0, True, False)
