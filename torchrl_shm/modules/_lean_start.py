"""The memory at the start of a sequence, read back from the entries of lean rollouts.

What the entries hold, and how they are written, is said in `torchrl_shm.modules.lean`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_shm.modules._passes import refuse
from torchrl_shm.modules._resets import is_cheap, reset

CLOCK, OFFSET, IS_INIT, SIZE = range(4)
"""Columns of the index. The number of floats is negative where nobody ran the memory."""


def came_next_in(lean_index: Tensor) -> Tensor:
    """Which steps are observations that came next.

    Args:
        lean_index: entry `<memory>_lean_index` of shape `[..., 4]`.

    Returns:
        bool of shape `[...]`.
    """
    return lean_index[..., CLOCK] < 0


def start_as_collected(
    shares: Tensor, lean_index: Tensor, is_init: Tensor, memory_shape: tuple[int, ...]
) -> Tensor | None:
    """The memory that entered the first step of sequences that are just as they were collected.

    Args:
        shares: entry `<memory>_lean` of shape `[B, T, W]`.
        lean_index: entry `<memory>_lean_index` of shape `[B, T, 4]`.
        is_init: bool of shape `[B, T]`, the flags as the data gives them now.
        memory_shape: shape of one agent's memory.

    Returns:
        The memory `[B, *memory_shape]`; zero for sequences that start with a reset. `None` where
        the data are something else, or cannot be looked at, as while compiling.
    """
    if not (is_cheap(lean_index) and is_cheap(is_init)):
        return None
    batch, length, width = shares.shape
    size, clock = math.prod(memory_shape), lean_index[..., CLOCK]
    # steps in their order from the first of a rollout on hold its shares in their order
    if not (
        length * width >= size
        and torch.equal(clock - torch.arange(length), clock[:, :1].expand(batch, length))
        and bool((lean_index[..., IS_INIT] == is_init).all())
        and all(
            clock > 0 and offset == 0 and floats == size
            for clock, offset, _, floats in lean_index[:, 0].tolist()
        )
    ):
        return None
    memory = shares.reshape(batch, length * width)[:, :size].reshape(batch, *memory_shape)
    return reset(memory, is_init[:, 0])


def rebuild_start(
    shares: Tensor, lean_index: Tensor, is_init: Tensor, memory_shape: tuple[int, ...]
) -> Tensor:
    """Put together the memory that entered the first step of each sequence.

    It takes what `start_as_collected` takes, of sequences in any order.

    Returns:
        The memory `[B, *memory_shape]`; zero for sequences that start with a reset.

    Raises:
        ValueError: the data are parts of sequences, or shuffled or joined ones, or are of
            another memory, so that the memory cannot be known.
    """
    clock, offset = lean_index[..., CLOCK], lean_index[..., OFFSET]
    # what value estimators pad has clock 0, what they insert a negative one
    real = clock > 0
    size = math.prod(memory_shape)
    num_shares = math.ceil(size / shares.shape[-1])
    start = clock - offset
    useful = real & (start == start[:, :1]) & (offset < num_shares)
    slot = torch.where(useful, offset, num_shares)
    index = slot.unsqueeze(-1).expand_as(shares)
    flat = shares.new_zeros(shares.shape[0], num_shares + 1, shares.shape[-1])
    flat = flat.scatter(1, index, shares)[:, :num_shares].flatten(1)[:, :size]
    memory = flat.reshape(-1, *memory_shape)
    _refuse_unknown_starts(lean_index, is_init, real, slot, num_shares, size)
    return reset(memory, is_init[:, 0])


def _refuse_unknown_starts(
    lean_index: Tensor, is_init: Tensor, real: Tensor, slot: Tensor, num_shares: int, size: int
) -> None:
    """Raise if not all sequences hold the memory at their start."""
    clock, offset = lean_index[..., CLOCK], lean_index[..., OFFSET]
    episode_start = lean_index[..., IS_INIT].bool()
    ours = ((lean_index[..., SIZE].abs() == size) | ~real).all(1)
    absent = (lean_index[:, 0, SIZE] < 0) & real[:, 0] & ~is_init[:, 0]
    step = clock[:, 1:] - clock[:, :-1]
    follows = (step == 1) | ~real[:, 1:] | episode_start[:, 1:]
    unbroken = follows.all(1) & ~(is_init & ~episode_start & real).any(1)
    seen = torch.zeros_like(slot[:, :1]).expand(-1, num_shares + 1)
    seen = seen.scatter(1, slot, torch.ones_like(slot))[:, :num_shares].bool().all(1)
    whole = is_init[:, 0] | ((offset[:, 0] == 0) & seen)
    advice = (
        "state='lean' needs whole sequences as the collector made them, in any order. For parts "
        "of them (SliceSampler) build the memory with state='stored' (exact, keeps every step's "
        "memory) or state='zero' (starts empty, see burn_in)"
    )
    refuse(
        ~ours,
        f"{{bad}} of {{all}} sequences carry a memory of another size than this module's {size} "
        "floats: they were collected with another memory_size",
    )
    refuse(
        absent,
        "{bad} of {all} sequences start in mid-episode, but the policy that collected them did not "
        "run this memory: collect with TensorDictSequential(critic_memory, actor), or build this "
        "one with state='zero'",
    )
    refuse(~unbroken, f"the data are parts of sequences, or joined ones: {advice}")
    refuse(
        ~whole,
        "{bad} of {all} sequences start in mid-episode, but their first steps or their ends were "
        f"cut off, and the memory at their start with them (shifted=True takes shifted_budget=1 + "
        f"the truncations of a sequence): {advice}",
    )
