"""Recurrent passes of a cell over sequences, from one start each or from one per part."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.modules._resets import cut_at_resets
from torchrl_shm.modules.base_cell import MemoryCell
from torchrl_shm.ops.shm.dispatch import is_transformed


def run_sequence(
    cell: MemoryCell,
    x: Tensor,
    memory: Tensor | None,
    is_init: Tensor | None,
    choice: Tensor | None,
    burn_in: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Run over sequences, each of which starts from one memory.

    Args:
        cell: the memory.
        x: inputs of shape `[B, T, D]`.
        memory: memory that enters the first step, `[B, *memory_shape]`; `None` is empty.
        is_init: bool of shape `[B, T]`, where the memory is emptied; `None`: nowhere.
        choice: int64 of shape `[B, T]`, the choices that acted; `None` draws them.
        burn_in: number of first steps through which no gradient flows.

    Returns:
        Outputs `[B, T, O]` and the choices `[B, T]`, `None` where the cell makes none.
    """
    burn_in = min(burn_in, x.shape[1])
    if not burn_in:
        y, _, choice = cell(x, memory, is_init, choice)
        return y, choice
    runs: list[tuple[Tensor, Tensor | None]] = []
    for steps, grad in ((slice(burn_in), False), (slice(burn_in, None), True)):
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            y, memory, drawn = cell(
                x[:, steps],
                memory,
                None if is_init is None else is_init[:, steps],
                None if choice is None else choice[:, steps],
            )
        runs.append((y, drawn))
    (y_warm, drawn_warm), (y, drawn) = runs
    if drawn is not None and drawn_warm is not None:
        choice = torch.cat([drawn_warm, drawn], 1)
    return torch.cat([y_warm, y], 1), choice


def run_parts(
    cell: MemoryCell,
    x: Tensor,
    memory: Tensor | None,
    is_init: Tensor,
    choice: Tensor | None,
    burn_in: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Run each part between two flags as a sequence of its own, padded to the longest.

    Args:
        cell: the memory.
        x: inputs of shape `[B, T, D]`.
        memory: memory of each step, `[B, T, *memory_shape]`, of which those at the first steps of
            the parts are used; `None`: every part starts empty.
        is_init: bool of shape `[B, T]`, where a part starts.
        choice: int64 of shape `[B, T]`, the choices that acted; `None` draws them.
        burn_in: number of first steps of each part through which no gradient flows.

    Returns:
        Outputs `[B, T, O]` and the choices `[B, T]`, `None` where the cell makes none.

    Raises:
        RuntimeError: under `torch.vmap` over the flags, whose parts would differ in number.
    """
    if is_transformed(is_init):
        raise RuntimeError(
            "torch.vmap cannot cut the sequences of each sample at its own resets: pass "
            "deactivate_vmap=True to the value estimator or loss, or shifted=True to the "
            "estimator, or run torchrl_shm.unroll(module, rollouts) before the loss"
        )
    first, part, step = cut_at_resets(is_init)
    shape = (len(first), int(step.max()) + 1)

    def split(steps: Tensor) -> Tensor:
        padded = steps.new_zeros(*shape, *steps.shape[2:])
        return padded.index_put((part, step), steps.flatten(0, 1))

    start = None if memory is None else memory.flatten(0, 1)[first]
    padded_choice = None if choice is None else split(choice)
    y, padded_choice = run_sequence(cell, split(x), start, None, padded_choice, burn_in)
    y = y[part, step].unflatten(0, x.shape[:2])
    if padded_choice is not None:
        choice = padded_choice[part, step].unflatten(0, x.shape[:2])
    return y, choice
