"""Inputs, losses and errors for tests of the scan."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.ops import Backend, shm_scan, shm_step

NAMES = ("theta", "vc", "v", "k", "q", "memory")


def make(
    batch: int, steps: int, size: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """The six differentiable inputs, and resets at about one step in ten."""
    generator = torch.Generator().manual_seed(0)
    vectors = [0.6 * torch.randn(batch, steps, size, generator=generator) for _ in range(5)]
    memory = torch.randn(batch, size, size, generator=generator)
    is_init = torch.rand(batch, steps, generator=generator) < 0.1
    return [x.to(dtype).requires_grad_() for x in (*vectors, memory)], is_init


def run(
    inputs: list[Tensor],
    is_init: Tensor | None = None,
    clamp: float | None = None,
    backend: Backend = "reference",
    segments: int | None = None,
) -> tuple[Tensor, ...]:
    """Outputs, final memory and the gradients of the inputs, for the same loss at every call."""
    y, memory = shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend, segments=segments)
    generator = torch.Generator().manual_seed(1)
    # drawn in float64, so that every dtype gets the same
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (y, memory)]
    loss = (y * weights[0].to(y.dtype)).sum() + (memory * weights[1].to(memory.dtype)).sum()
    wanted = [x for x in inputs if x.requires_grad]
    return y, memory, *torch.autograd.grad([loss], wanted, materialize_grads=True)


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in inputs]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative root mean square."""
    return float((actual.double() - expected).detach().norm() / expected.detach().norm())


def distance_to_clamp(inputs: list[Tensor], is_init: Tensor | None, clamp: float) -> Tensor:
    """`|M| - clamp` before every clamp: positive where it acts, near 0 where rounding decides."""
    theta, vc, v, k, q, memory = (x.detach().double() for x in inputs)
    distances: list[Tensor] = []
    for t in range(theta.shape[1]):
        if is_init is not None:
            memory = torch.where(is_init[:, t, None, None], 0.0, memory)
        step = (x[:, t] for x in (theta, vc, v, k, q))
        _, memory = shm_step(*step, memory=memory)
        distances.append(memory.abs() - clamp)
        memory = memory.clamp(-clamp, clamp)
    return torch.stack(distances)
