"""Checks of the arguments of scan and step; each message names the value and the fix."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.ops.shm.backend import Vectors

_INPUT_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def check(vectors: Vectors, memory: Tensor | None, clamp: float | None, ndim: int | None) -> Tensor:
    """Validate everything that both operations share and return the initial memory."""
    theta = vectors.theta
    if theta.ndim < 1 or (ndim is not None and theta.ndim != ndim):
        expected = "[B, T, H]" if ndim == 3 else "[..., H]"
        raise ValueError(f"theta has shape {list(theta.shape)}, expected {expected}")
    for name, x in zip(Vectors._fields[1:], vectors[1:], strict=True):
        if x.shape != theta.shape:
            raise ValueError(
                f"{name} has shape {list(x.shape)}, expected that of theta, {list(theta.shape)}"
            )
        if x.dtype != theta.dtype:
            raise TypeError(f"{name} is {x.dtype} but theta is {theta.dtype}; cast them alike")
        if x.device != theta.device:
            raise RuntimeError(f"{name} is on {x.device} but theta is on {theta.device}")
    if theta.dtype not in _INPUT_DTYPES:
        raise TypeError(
            f"inputs are {theta.dtype}, expected one of {_INPUT_DTYPES}; cast them with .float()"
        )
    check_clamp(clamp)
    batch = theta.shape[:1] if ndim == 3 else theta.shape[:-1]
    size = theta.shape[-1]
    dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
    if memory is None:
        return theta.new_zeros(*batch, size, size, dtype=dtype)
    if memory.shape != (*batch, size, size):
        raise ValueError(
            f"memory has shape {list(memory.shape)}, expected {[*batch, size, size]} to fit theta "
            f"of shape {list(theta.shape)}"
        )
    if memory.dtype != dtype:
        raise TypeError(
            f"memory is {memory.dtype}, expected {dtype} for {theta.dtype} inputs: the state is "
            "never held in a lower precision; cast it with .to()"
        )
    if memory.device != theta.device:
        raise RuntimeError(f"memory is on {memory.device} but theta is on {theta.device}")
    return memory


def check_segments(segments: int | None, clamp: float | None) -> None:
    """Validate a number of segments."""
    if segments is None:
        return
    if segments < 1:
        raise ValueError(f"segments={segments} must be at least 1, or None for the rule")
    if segments > 1 and clamp is not None:
        raise ValueError(
            f"segments={segments} with clamp={clamp}: a clamped memory cannot be computed in "
            "parallel over time; leave one of them out"
        )


def check_clamp(clamp: float | None) -> None:
    """Raise ValueError unless a bound is positive, or there is none."""
    # python counts True as 1
    if clamp is not None and (isinstance(clamp, bool) or not clamp > 0):
        raise ValueError(f"clamp={clamp} must be positive, or None for no bound")
