"""For every step, the window of the last steps of its episode."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from torchrl_shm.ops.checks import check_is_init


def causal_windows(x: Tensor, past: Tensor, is_init: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gather the last `k` inputs of every step of a sequence.

    Args:
        x: inputs of shape `[B, T, D]`.
        past: the `k - 1` inputs before the sequence, of shape `[B, k - 1, D]`, oldest first;
            zeros where there were none.
        is_init: bool of shape `[B, T]`. Where true, an episode starts, and its windows hold
            zeros in place of the steps before, even if those were NaN.

    Returns:
        Windows `[B, T, k, D]`, oldest step first, zero before the start of the episode, and the
        `past` of the next sequence `[B, k - 1, D]`.

    Raises:
        ValueError: `x` and `past` do not fit.
        TypeError: `is_init` is not bool.
        RuntimeError: `is_init` is on another device.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import causal_windows
        >>> x = torch.arange(1.0, 5.0).view(1, 4, 1)
        >>> is_init = torch.tensor([[False, False, True, False]])
        >>> windows, past = causal_windows(x, torch.zeros(1, 1, 1), is_init)
        >>> windows.squeeze().tolist()
        [[0.0, 1.0], [1.0, 2.0], [0.0, 3.0], [3.0, 4.0]]
    """
    if x.ndim != 3 or past.ndim != 3 or (x.shape[0], x.shape[2]) != (past.shape[0], past.shape[2]):
        raise ValueError(
            f"x {list(x.shape)} and past {list(past.shape)} must be [B, T, D] and [B, k - 1, D]"
        )
    check_is_init(is_init, x)
    size = past.shape[1] + 1
    inputs = torch.cat([past, x], 1)
    if not x.shape[1]:
        return inputs.new_zeros(len(x), 0, size, x.shape[2]), inputs
    windows = inputs.unfold(1, size, 1).transpose(-1, -2)
    if is_init is not None:
        # the past belongs to the episode in which the sequence starts
        episode = F.pad(is_init.cumsum(1), (size - 1, 0))
        same = episode.unfold(1, size, 1) == episode[:, size - 1 :].unsqueeze(-1)
        windows = torch.where(same.unsqueeze(-1), windows, 0)
    return windows, windows[:, -1, 1:].clone()
