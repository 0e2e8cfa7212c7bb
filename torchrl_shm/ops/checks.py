"""Checks of arguments that all recurrences share."""

from __future__ import annotations

import torch
from torch import Tensor


def check_is_init(is_init: Tensor | None, x: Tensor) -> None:
    """Validate the reset flags of a sequence, if there are any."""
    if is_init is None:
        return
    if is_init.dtype != torch.bool:
        raise TypeError(f"is_init is {is_init.dtype}, expected torch.bool")
    if is_init.shape != x.shape[:2]:
        raise ValueError(
            f"is_init has shape {list(is_init.shape)}, expected [B, T] = {list(x.shape[:2])}"
        )
    if is_init.device != x.device:
        raise RuntimeError(f"is_init is on {is_init.device} but the inputs on {x.device}")
