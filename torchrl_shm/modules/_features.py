"""The feature map of linear attention and fast weights."""

from __future__ import annotations

import torch
from torch import Tensor


def elu_plus_one(x: Tensor) -> Tensor:
    """Positive features `elu(x) + 1`, which stay positive where the sum would round to zero.

    Args:
        x: any shape.

    Returns:
        `x + 1` where `x` is positive, else `exp(x)`; same shape.
    """
    return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))
