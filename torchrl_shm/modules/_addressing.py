"""What NTM and DNC share: controller, addressing by content, writing."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchrl_shm.checks import check_option
from torchrl_shm.modules.base_cell import BaseCell

Controller = Literal["lstm", "linear"]
"""Network that steers the heads of an external memory; see `DNC`."""

# below this squared length, cells and keys count as empty: the cosine of an empty cell is zero, and
# its gradient stays finite
_EPS = 1e-6


class ExternalMemoryCell(BaseCell):
    """A controller that steers heads, which read and write a matrix of cells.

        z_t = [x_t, r_{t-1}]                    input and what was read before
        h_t = controller(z_t)                   one LSTM cell, or tanh(W z_t + b)
        r_t, state_t = access(W_i h_t + b_i, state_{t-1})
        y_t = W_y [h_t, r_t] + b_y

    A subclass names its sizes and writes `access`.

    Args:
        input_size: number of input features.
        output_size: number of output features.
        num_cells: number of cells `N`, the rows of the matrix.
        cell_size: width `W` of a cell.
        num_reads: number of read heads `R`.
        hidden_size: width of the controller.
        controller: `"lstm"`, or `"linear"` for a layer without a state.
        interface: sizes of the tensors into which the interface is split for `access`.
        parts: names and shapes of the parts of the state besides the matrix, what was read, and the
            controller.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a size is not positive, or an option is unknown.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        num_cells: int,
        cell_size: int,
        num_reads: int,
        hidden_size: int,
        controller: Controller,
        interface: tuple[int, ...],
        parts: dict[str, tuple[int, ...]],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_option("controller", controller, Controller)
        kept = {"hidden": (hidden_size,), "cell": (hidden_size,)} if controller == "lstm" else {}
        self._shapes = {
            "memory": (num_cells, cell_size),
            "reads": (num_reads, cell_size),
            **parts,
            **kept,
        }
        self._sizes = [math.prod(shape) for shape in self._shapes.values()]
        self._interface = interface
        super().__init__(
            input_size,
            output_size,
            (sum(self._sizes),),
            num_cells=num_cells,
            cell_size=cell_size,
            num_reads=num_reads,
            hidden_size=hidden_size,
        )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        read_size = num_reads * cell_size
        network = nn.LSTMCell if controller == "lstm" else nn.Linear
        self.controller = network(input_size + read_size, hidden_size, **factory)
        self.interface = nn.Linear(hidden_size, sum(interface), **factory)
        self.out = nn.Linear(hidden_size + read_size, output_size, **factory)

    def access(self, interface: tuple[Tensor, ...], parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write and read.

        Args:
            interface: what the controller asks for, tensors of shape `[B, size]`.
            parts: the state, as `unpack` names it.

        Returns:
            The new `"memory"`, `"reads"` and parts of the subclass.
        """
        raise NotImplementedError

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step, see `BaseCell.run_step`."""
        parts = self.unpack(memory)
        z = torch.cat([x, parts["reads"].flatten(1)], 1)
        if isinstance(self.controller, nn.LSTMCell):
            hidden, cell = self.controller(z, (parts["hidden"], parts["cell"]))
            kept = {"hidden": hidden, "cell": cell}
        else:
            hidden, kept = torch.tanh(self.controller(z)), {}
        interface = self.interface(hidden).split(self._interface, 1)
        parts = self.access(interface, parts) | kept
        y = self.out(torch.cat([hidden, parts["reads"].flatten(1)], 1))
        return y, torch.cat([parts[name].flatten(1) for name in self._shapes], 1)

    def unpack(self, memory: Tensor) -> dict[str, Tensor]:
        """Name the parts of a state.

        Args:
            memory: states of shape `[..., *memory_shape]`.

        Returns:
            Views of the parts, by name, each in its own shape.
        """
        parts = memory.split(self._sizes, -1)
        return {
            name: part.view(*part.shape[:-1], *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }


def content_weights(memory: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """Compare keys with every cell: a softmax over the cells of strength times cosine.

    Args:
        memory: cells of shape `[B, N, W]`.
        keys: one per head, of shape `[B, K, W]`.
        strengths: one per head, of shape `[B, K]`.

    Returns:
        Weights of shape `[B, K, N]` that sum to one over the cells.
    """
    cosine = _unit(keys) @ _unit(memory).mT
    return torch.softmax(strengths.unsqueeze(-1) * cosine, -1)


def erase_and_add(memory: Tensor, weights: Tensor, erase: Tensor, value: Tensor) -> Tensor:
    """Write to all cells at once: `M (1 - w e^T) + w v^T`, element by element.

    Args:
        memory: cells of shape `[B, N, W]`.
        weights: how much to write to each cell, of shape `[B, N]`.
        erase: how much of each element to erase, of shape `[B, W]`.
        value: what to add, of shape `[B, W]`.

    Returns:
        The new cells, of shape `[B, N, W]`.
    """
    change = value.unsqueeze(1) - memory * erase.unsqueeze(1)
    return torch.addcmul(memory, weights.unsqueeze(2), change)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + _EPS)
