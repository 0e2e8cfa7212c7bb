"""What a reset does: it empties a memory, and it cuts a sequence into parts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchrl_shm.ops.shm.dispatch import is_transformed


def is_cheap(x: Tensor) -> bool:
    """Whether to look at the values of a tensor costs little.

    It does not on devices for which the host would have to wait, and cannot be done while
    compiling or under `torch.func` transforms.
    """
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and not is_transformed(x)


def reset(memory: Tensor, is_init: Tensor) -> Tensor:
    """Empty a memory where an episode starts.

    Args:
        memory: of shape `[..., *memory_shape]`.
        is_init: bool of shape `[...]`.

    Returns:
        Zeros where `is_init` is true, else the memory; same shape. The memory itself, no copy,
        where it is seen that nothing starts.
    """
    if is_cheap(is_init) and not is_init.any():
        # to look costs less than to copy
        return memory
    first = is_init.reshape(*is_init.shape, *(1 for _ in memory.shape[is_init.ndim :]))
    # selection, not multiplication: 0 * NaN would carry the NaN over the reset
    return torch.where(first, 0, memory)


class Parts(NamedTuple):
    """Sequences of `T` steps, cut at each reset; no part spans two sequences.

    Attributes:
        first: flat index `b * T + t` of the first step of each part, of shape `[num_parts]`.
        part: index of the part that each step belongs to, of shape `[B * T]`.
        step: index of each step within its part, of shape `[B * T]`.
    """

    first: Tensor
    part: Tensor
    step: Tensor


def cut_at_resets(is_init: Tensor) -> Parts:
    """Cut sequences into parts, so that each holds a reset at most at its first step.

    Args:
        is_init: bool of shape `[B, T]`, `T >= 1`.

    Returns:
        The parts, sequence by sequence in the order of time.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules._resets import cut_at_resets
        >>> parts = cut_at_resets(torch.tensor([[False, False, True], [True, False, False]]))
        >>> parts.first.tolist(), parts.part.tolist(), parts.step.tolist()
        ([0, 2, 3], [0, 0, 1, 2, 2, 2], [0, 1, 0, 0, 1, 2])
    """
    starts = is_init.clone()
    starts[:, 0] = True
    starts = starts.flatten()
    first = starts.nonzero().squeeze(1)
    part = starts.cumsum(0) - 1
    step = torch.arange(len(starts), device=starts.device) - first[part]
    return Parts(first, part, step)


class Packing(NamedTuple):
    """The parts between resets side by side, as in torch's `PackedSequence`; on the CPU.

    Packed steps come in the order of their step within the part, and at each step the longest part
    first. A part is named by its rank in that order.

    Attributes:
        order: flat index `b * T + t` of each packed step, of shape `[B * T]`.
        place: where each step is in the packed ones, the inverse of `order`, of shape `[B * T]`.
        sequence: the sequence `b` of each part, of shape `[num_parts]`.
        fresh: bool of shape `[num_parts, 1]`, whether a reset stands at the start of the part.
        last: the last part of each sequence, of shape `[B]`.
        sizes: number of parts that have a step of that number, of shape `[longest]`.
    """

    order: Tensor
    place: Tensor
    sequence: Tensor
    fresh: Tensor
    last: Tensor
    sizes: Tensor


def pack_parts(is_init: Tensor) -> Packing:
    """Cut sequences into parts at each reset and pack these, so that nothing is padding.

    Args:
        is_init: bool of shape `[B, T]`, `B >= 1` and `T >= 1`.

    Returns:
        The parts.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules._resets import pack_parts
        >>> packing = pack_parts(torch.tensor([[False, False, True], [True, False, False]]))
        >>> packing.order.tolist(), packing.sizes.tolist(), packing.sequence.tolist()
        ([3, 0, 2, 4, 1, 5], [3, 2, 1], [1, 0, 0])
        >>> packing.last.tolist(), packing.fresh.flatten().tolist()
        ([2, 0], [True, False, True])
    """
    # all that follows are small tensors of numbers, and their sizes decide what runs
    is_init = is_init.cpu()
    steps = is_init.shape[1]
    first, part, step = cut_at_resets(is_init)
    by_length = part.bincount().argsort(descending=True, stable=True)
    rank = invert(by_length)
    sizes = step.bincount()
    place = (sizes.cumsum(0) - sizes)[step] + rank[part]
    first = first[by_length]
    return Packing(
        order=invert(place),
        place=place,
        sequence=first // steps,
        fresh=is_init.flatten()[first].unsqueeze(1),
        last=rank[part[steps - 1 :: steps]],
        sizes=sizes,
    )


def invert(order: Tensor) -> Tensor:
    """The inverse of a permutation `[n]`."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
