"""Checks of what environments are given: numbers of things, layouts, actions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exact(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert an entry of a layout, refusing what would become something else."""
    converted = value.to(dtype)
    if dtype.is_floating_point:
        wrong, kind = ~value.isfinite(), "finite"
    else:
        wrong = converted.to(value.dtype) != value
        kind = "0 or 1" if dtype == torch.bool else "a whole number"
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f'"{name}" must be {kind}, got {value[index].item()} at {index}')
    return converted


def check_indices(name: str, values: Tensor, count: int) -> None:
    """Raise ValueError unless all are in 0 to `count - 1`."""
    low, high = (int(x) for x in torch.aminmax(values))
    if low < 0 or high >= count:
        raise ValueError(f"{name} are 0 to {count - 1}, got {low} to {high}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError unless all are numbers, and finite."""
    # the sum is quick, but may be infinite where no number is
    if not math.isfinite(float(values.sum())) and not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {values[~values.isfinite()][0]}")


def check_size(name: str, values: Tensor, bound: float) -> None:
    """Raise ValueError unless all are between `-bound` and `bound`."""
    largest = float(values.abs().max())
    if largest > bound:
        raise ValueError(f"{name} must be between {-bound} and {bound}, got {largest} in size")
