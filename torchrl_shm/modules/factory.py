"""Builds a cell and its TensorDict module in one call, as configurations need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey

from torchrl_shm.modules.lean import State
from torchrl_shm.modules.memory_module import MemoryCell, MemoryModule


def make_memory(
    cell: Callable[..., MemoryCell],
    input_size: int,
    output_size: int,
    *,
    in_key: NestedKey,
    out_key: NestedKey,
    memory_key: NestedKey = "memory",
    state: State = "lean",
    device: torch.device | str | None = None,
    **options: Any,
) -> MemoryModule:
    """Build a cell and wrap it in a `MemoryModule`.

    Args:
        cell: class of the cell; called with the sizes and the options.
        input_size: number of input features.
        output_size: number of output features.
        in_key: key of the input.
        out_key: key of the output.
        memory_key: key of the memory.
        state: where a sequence takes its first memory from, see `MemoryModule`.
        device: device of the parameters.
        **options: further arguments of the cell.

    Returns:
        The module.

    Raises:
        ValueError: the cell refuses an option.
        TypeError: the cell does not know an option, or is no memory cell.

    Examples:
        >>> from torchrl_shm.modules import LRU, make_memory
        >>> module = make_memory(LRU, 5, 3, in_key="observation", out_key="features")
        >>> module.out_keys[:2]
        ['features', ('next', 'memory')]
    """
    built = cell(input_size, output_size, **options)
    module: MemoryModule = MemoryModule(
        built, in_key=in_key, memory_key=memory_key, out_key=out_key, state=state
    )
    # moved afterwards, so that cells need no argument `device`
    return module if device is None else module.to(device)
