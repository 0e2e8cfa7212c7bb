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
    first. Parts are counted in that order, too.

    Attributes:
        sizes: number of packed steps at each step, of shape `[longest]`.
        order: flat index `b * T + t` of each packed step, `B * T` for padding, of shape
            `[sizes.sum()]`.
        place: where each step is in the packed ones, of shape `[B * T]`.
        sequence: the sequence `b` of each part, of shape `[num_parts]`.
        fresh: bool of shape `[num_parts, 1]`, whether a reset stands at the start of the part.
        last: the last part of each sequence, of shape `[B]`.
    """

    sizes: Tensor
    order: Tensor
    place: Tensor
    sequence: Tensor
    fresh: Tensor
    last: Tensor


def pack_parts(is_init: Tensor, share: float = 1.0) -> Packing:
    """Cut sequences into parts at each reset and pack these.

    Args:
        is_init: bool of shape `[B, T]`, `B >= 1` and `T >= 1`.
        share: fill up with padding where at least this share of parts goes on, so that fewer
            numbers of parts follow each other; 1 is without padding.

    Returns:
        The parts.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules._resets import pack_parts
        >>> packing = pack_parts(torch.tensor([[False, False, True], [True, False, False]]))
        >>> packing.sizes.tolist(), packing.order.tolist(), packing.sequence.tolist()
        ([3, 2, 1], [3, 0, 2, 4, 1, 5], [1, 0, 0])
        >>> packing.last.tolist(), packing.fresh.flatten().tolist()
        ([2, 0], [True, False, True])
    """
    # small tensors of numbers, which decide what runs
    is_init = is_init.cpu()
    steps = is_init.shape[1]
    first, part, step = cut_at_resets(is_init)
    by_length = part.bincount().argsort(descending=True, stable=True)
    rank = torch.empty_like(part[: len(first)])
    rank[by_length] = torch.arange(len(first))
    rounded: list[int] = []
    for size in step.bincount().tolist():
        goes_on = rounded and size >= share * rounded[-1]
        rounded.append(rounded[-1] if goes_on else size)
    sizes = torch.tensor(rounded)
    place = (sizes.cumsum(0) - sizes)[step] + rank[part]
    order = torch.full((sum(rounded),), is_init.numel())
    order[place] = torch.arange(is_init.numel())
    first = first[by_length]
    fresh = is_init.flatten()[first].unsqueeze(1)
    return Packing(sizes, order, place, first // steps, fresh, rank[part[steps - 1 :: steps]])
