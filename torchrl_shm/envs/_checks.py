"""Checks of arguments, layouts and actions; each message names what was given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def check_size(name: str, value: float, *, zero: bool = False) -> None:
    """Raise ValueError unless an argument is finite and positive, or zero where that is allowed."""
    # python counts True as 1
    if isinstance(value, bool) or not (value >= 0 if zero else value > 0) or math.isinf(value):
        kind = "not negative" if zero else "positive"
        raise ValueError(f"{name} must be finite and {kind}, got {value}")


def exact(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert an entry of a layout; raise ValueError if that would change a value."""
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
    """Raise ValueError unless all values are in 0 to `count - 1`."""
    low, high = (int(x) for x in torch.aminmax(values))
    if low < 0 or high >= count:
        raise ValueError(f"{name} are 0 to {count - 1}, got {low} to {high}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError unless all values are finite."""
    # the sum is quick, but may be infinite although all values are finite
    if not math.isfinite(float(values.sum())) and not bool(values.isfinite().all()):
        raise ValueError(
            f"{name} must be finite, got {values[~values.isfinite()][0]}; where a network made "
            "them, bound its memory, with memory.clamp=100, or learn slower"
        )


def check_range(name: str, values: Tensor, low: float, high: float) -> None:
    """Raise ValueError unless all values of a layout entry are between two bounds."""
    if (wrong := values[~((values >= low) & (values <= high))]).numel():
        raise ValueError(f'"{name}" must be between {low} and {high}, got {wrong[0]}')


def check_cells(name: str, given: Tensor, cells: Tensor) -> None:
    """Raise ValueError unless all given cells `[B, 2]` are among `cells` `[C, 2]`."""
    wrong = ~(given.unsqueeze(1) == cells).all(-1).any(-1)
    if wrong.any():
        environment = int(wrong.int().argmax())
        allowed = ", ".join(str(tuple(cell)) for cell in cells.tolist())
        raise ValueError(
            f'"{name}" of environment {environment} is {tuple(given[environment].tolist())}; '
            f"it must be one of {allowed}"
        )


def describe_bad_start(
    entries: Iterable[tuple[Any, Tensor]], batch_dims: int = 0, numbers: Sequence[int] | None = None
) -> str | None:
    """Name the first number with which an episode starts that is not finite.

    Args:
        entries: observations by key, `[...]` of one environment, or `[B, ...]` of several.
        batch_dims: 1 where there are several.
        numbers: number of each environment; `None` counts from 0.

    Returns:
        Which entry it is, and in which row; `None` if all numbers are finite.
    """
    for key, value in entries:
        # a sum is not finite if a value is not, and costs less than to look at each value
        if not value.is_floating_point() or math.isfinite(float(value.sum())):
            continue
        rows = value.reshape(len(value) if batch_dims else 1, -1)
        bad = ~rows.isfinite()
        if bool(bad.any()):
            row = int(bad.any(1).nonzero()[0, 0])
            number = float(rows[row][bad[row]][0])
            row = row if numbers is None else numbers[row]
            return f"{key!r} is {number} in row {row} after a reset"
    return None
