"""What matrix memories share: features of keys and queries, and how they are read."""

from __future__ import annotations

import torch
from torch import Tensor

# keeps the sum from zero, of a ReLU that silences every unit for example
_EPS = 1e-5


def elu_plus_one(x: Tensor) -> Tensor:
    """Positive features `elu(x) + 1`, which stay positive where the sum would round to zero.

    Args:
        x: any shape.

    Returns:
        `x + 1` where `x` is positive, else `exp(x)`; same shape.
    """
    return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))


def sum_to_one(x: Tensor) -> Tensor:
    """Divide features `[..., H]` that are not negative by their sum."""
    return x / (_EPS + x.sum(-1, keepdim=True))


def read_matrix(memory: Tensor, x: Tensor) -> Tensor:
    """Multiply matrices `[..., V, K]` with vectors `[..., K]`."""
    return (memory @ x.unsqueeze(-1)).squeeze(-1)
