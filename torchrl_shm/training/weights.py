"""Load weights that fit, or say which one does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def load_weights(module: nn.Module, weights: Mapping[str, Any], source: str | Path) -> None:
    """Load weights that have exactly the names, shapes and dtypes of a module.

    Args:
        module: what they are loaded into; it is not changed where one of them does not fit.
        weights: tensors by name, as in `module.state_dict()`.
        source: where they are from, for the message.

    Raises:
        ValueError: one is missing, unknown, or of another shape or dtype.

    Examples:
        >>> import torch
        >>> from torchrl_shm.training.weights import load_weights
        >>> module = torch.nn.Linear(2, 3)
        >>> load_weights(module, torch.nn.Linear(2, 3).state_dict(), "a file")
        >>> load_weights(module, torch.nn.Linear(2, 4).state_dict(), "a file")
        Traceback (most recent call last):
            ...
        ValueError: a file does not fit: bias is torch.float32 [4], expected torch.float32 [3]; ...
    """
    expected = module.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        here, there = (_describe(tensors.get(name)) for tensors in (expected, weights))
        if here != there:
            raise ValueError(
                f"{source} does not fit: {name} is {there}, expected {here}; weights and config "
                "are of two runs, or of two versions of torchrl_shm"
            )
    module.load_state_dict(weights)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return "missing" if value is None else type(value).__name__
