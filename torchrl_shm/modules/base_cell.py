"""Memory cells: what they have to offer, and a base of which a subclass writes one method."""

from __future__ import annotations

from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchrl_shm.checks import check_count
from torchrl_shm.modules._resets import reset
from torchrl_shm.ops._chunks import full_precision
from torchrl_shm.ops.checks import check_is_init


@runtime_checkable
class MemoryCell(Protocol):
    """The members of a memory on plain tensors; any `nn.Module` that has them is a cell.

    `forward` and `step` must agree: a sequence gives what its steps give. `choice` is the random
    choice of a step, an int64 number in `[0, num_choices)`. Cells without one have
    `num_choices = None`, ignore the argument and return `None`. An attribute `choice_name` of the
    cell becomes the key of the choice; the default is `"choice"`.
    """

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Shape of one agent's memory."""
        ...

    @property
    def num_choices(self) -> int | None:
        """Number of values of the random choice of each step, or `None`."""
        ...

    def __call__(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        is_init: Tensor | None = None,
        choice: Tensor | None = None,
        /,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run over `x` `[B, T, D]` from `memory` `[B, *memory_shape]`, resetting at `is_init`."""
        ...

    def step(
        self, x: Tensor, memory: Tensor | None = None, choice: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run one step: `x` `[..., D]`, `memory` `[..., *memory_shape]`."""
        ...


class BaseCell(nn.Module):
    """Base of memory cells that make no random choices.

    A subclass passes its sizes to `super().__init__` and writes `run_step`. For training it should
    also write `run_sequence`, which by default takes one step after the other. The state is one
    tensor of floats per agent, whatever it consists of; zeros are the empty memory.

    Args:
        input_size: number of input features, `D`.
        output_size: number of output features, `O`.
        memory_shape: shape of one agent's memory.
        sizes: further options of the subclass that must be at least 1, by name.

    Raises:
        ValueError: a size is not positive.

    Examples:
        A memory that fades, complete:

        >>> import torch
        >>> from torchrl_shm import MemoryModule, check_memory
        >>> from torchrl_shm.modules import BaseCell
        >>> class Leaky(BaseCell):
        ...     def __init__(self, input_size, output_size):
        ...         super().__init__(input_size, output_size, (output_size,))
        ...         self.linear = torch.nn.Linear(input_size, output_size)
        ...
        ...     def run_step(self, x, memory):
        ...         memory = 0.9 * memory + self.linear(x)
        ...         return memory, memory
        >>> module = MemoryModule(Leaky(5, 3), in_key="observation", out_key="features")
        >>> check_memory(module).promises[0]
        'calls_repeat'
    """

    num_choices: int | None = None

    def __init__(
        self, input_size: int, output_size: int, memory_shape: tuple[int, ...], **sizes: int
    ) -> None:
        super().__init__()
        for name, size in {"input_size": input_size, "output_size": output_size, **sizes}.items():
            check_count(name, size)
        self.input_size = input_size
        self.output_size = output_size
        self._memory_shape = tuple(memory_shape)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Shape of one agent's memory."""
        return self._memory_shape

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            x: inputs of shape `[B, D]`.
            memory: memory of shape `[B, *memory_shape]`.

        Returns:
            Outputs `[B, O]` and the new memory `[B, *memory_shape]`.
        """
        raise NotImplementedError

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence; must agree with one `run_step` after the other.

        Args:
            x: inputs of shape `[B, T, D]`, `T >= 1`.
            memory: initial memory of shape `[B, *memory_shape]`.
            is_init: bool of shape `[B, T]`; where true, the memory that enters the step is zero,
                by selection. `None`: nowhere.

        Returns:
            Outputs `[B, T, O]` and the final memory `[B, *memory_shape]`.
        """
        outputs: list[Tensor] = []
        # unbind, since the backward of indexing allocates a tensor of the size of x per step
        for t, inputs in enumerate(x.unbind(1)):
            if is_init is not None:
                memory = reset(memory, is_init[:, t])
            y, memory = self.run_step(inputs, memory)
            outputs.append(y)
        return torch.stack(outputs, 1), memory

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        is_init: Tensor | None = None,
        choice: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        """Run over a whole sequence.

        Args:
            x: inputs of shape `[B, T, D]`.
            memory: initial memory of shape `[B, *memory_shape]`; `None` starts empty.
            is_init: bool of shape `[B, T]`; where true, the memory that enters the step is zero.
            choice: ignored, the cell makes no choices.

        Returns:
            Outputs `[B, T, O]`, the final memory `[B, *memory_shape]`, and `None`.

        Raises:
            ValueError: a shape does not fit.
            TypeError: `is_init` is not bool, or the parameters are neither float32 nor float64.
        """
        if x.ndim != 3:
            raise ValueError(f"x is {list(x.shape)}, expected [B, T, {self.input_size}]")
        x, memory = self._start(x, x.shape[:1], memory)
        if is_init is not None:
            check_is_init(is_init, x)
        if not x.shape[1]:
            return memory.new_zeros(x.shape[0], 0, self.output_size), memory, None
        with full_precision(x.device):
            y, memory = self.run_sequence(x, memory, is_init)
        return y, memory, None

    def step(
        self, x: Tensor, memory: Tensor | None = None, choice: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Take one step, of any batch shape.

        Args:
            x: inputs of shape `[..., D]`.
            memory: memory of shape `[..., *memory_shape]`; `None` is empty.
            choice: ignored, the cell makes no choices.

        Returns:
            Outputs `[..., O]`, the new memory `[..., *memory_shape]`, and `None`.

        Raises:
            ValueError: a shape does not fit.
            TypeError: the parameters are neither float32 nor float64.
        """
        batch = x.shape[:-1]
        x, memory = self._start(x, batch, memory)
        # not batch.numel(), which would fix the batch size of an exported program
        agents = prod(batch)
        x = x.reshape(agents, self.input_size)
        with full_precision(x.device):
            y, memory = self.run_step(x, memory.reshape(agents, *self.memory_shape))
        return y.reshape(*batch, self.output_size), memory.reshape(*batch, *self.memory_shape), None

    def _start(self, x: Tensor, batch: torch.Size, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """The input and the memory in the dtype of the parameters, also under autocast."""
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"x has {x.shape[-1]} features, this cell reads input_size={self.input_size}"
            )
        parameter: Any = next(self.parameters(), x)
        dtype: torch.dtype = parameter.dtype
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"the parameters are {dtype}; a memory accumulates over many steps and needs "
                "torch.float32 or torch.float64. Autocast may round the layers around it"
            )
        shape = (*batch, *self.memory_shape)
        if memory is None:
            memory = x.new_zeros(shape, dtype=dtype)
        if memory.shape != shape:
            raise ValueError(f"memory is {list(memory.shape)}, expected {list(shape)}")
        return x.to(dtype), memory.to(dtype)
