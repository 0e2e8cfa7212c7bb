"""What a fast backend is given, and what its module holds.

A backend is a module with three functions on plain tensors: `refuse`, `forward` and `backward`. The
forward pass stores the memory that enters every eighth step, `[N, B, H, H]`, and the backward pass
replays each chunk of steps from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

STORE = 8
"""Steps from one stored state, or checkpoint, to the next."""

_MODULES = {
    "chunked": "torchrl_shm.ops.shm.chunked",
    "numba": "torchrl_shm.ops.shm.numba_scan",
    "triton": "torchrl_shm.ops.shm.triton_scan",
}


class Vectors(NamedTuple):
    """The inputs of each step, or their gradients: `[B, T, H]` each, for one step `[B, H]`."""

    theta: Tensor
    vc: Tensor
    v: Tensor
    k: Tensor
    q: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Vectors:
        """Apply a function to each."""
        return Vectors(*(function(x) for x in self))


@dataclass(frozen=True)
class Options:
    """The options of `shm_scan` that a backend follows; it ignores those that it does not have."""

    clamp: float | None = None
    fast_gate: bool = False
    segments: int | None = None


class FastBackend(Protocol):
    """The functions of a backend's module."""

    @staticmethod
    def refuse(device: torch.device, dtype: torch.dtype, size: int) -> str | None:
        """Say why it cannot scan such tensors here and what to do, or `None` if it can."""
        ...

    @staticmethod
    def forward(
        vectors: Vectors,
        memory: Tensor,
        is_init: Tensor | None,
        options: Options,
        checkpoints: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return outputs and final memory; fill the checkpoints unless that tensor is empty."""
        ...

    @staticmethod
    def backward(
        dy: Tensor,
        dmemory: Tensor,
        vectors: Vectors,
        is_init: Tensor | None,
        options: Options,
        checkpoints: Tensor,
    ) -> tuple[Vectors, Tensor]:
        """Return the gradients of the vectors and of the initial memory."""
        ...


def load(name: str) -> FastBackend:
    """Import a backend; triton and numba are imported by none but their own."""
    return cast(FastBackend, import_module(_MODULES[name]))
