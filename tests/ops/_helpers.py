"""Inputs, losses and errors for tests of the operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_shm.ops import Backend, shm_scan, shm_step

NAMES = ("theta", "vc", "v", "k", "q", "memory")
# what float32 may be off from float64: results, gradients
SINGLE = 5e-6, 5e-5


def device_of(backend: Backend) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def make(
    batch: int,
    steps: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "reference",
) -> tuple[list[Tensor], Tensor]:
    """The six differentiable inputs, where the backend runs, and resets at one step in ten."""
    generator = torch.Generator().manual_seed(0)
    vectors = [0.6 * torch.randn(batch, steps, size, generator=generator) for _ in range(5)]
    memory = torch.randn(batch, size, size, generator=generator)
    is_init = torch.rand(batch, steps, generator=generator) < 0.1
    inputs = [x.to(device_of(backend), dtype).requires_grad_() for x in (*vectors, memory)]
    return inputs, is_init.to(device_of(backend))


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
    loss = (y * weights[0].to(y)).sum() + (memory * weights[1].to(memory)).sum()
    wanted = [x for x in inputs if x.requires_grad]
    return y, memory, *torch.autograd.grad([loss], wanted, materialize_grads=True)


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in inputs]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative root mean square."""
    return float((actual.to(expected.dtype) - expected).detach().norm() / expected.detach().norm())


def agree(
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    inputs: int,
    values: float = 1e-10,
    gradients: float = 1e-10,
) -> None:
    """Bound the errors of results, and of the gradients of so many inputs that follow them."""
    for n, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert (a.shape, a.is_complex()) == (e.shape, e.is_complex()), n
        if e.any():
            assert error(a, e) <= (gradients if n >= len(actual) - inputs else values), n
        else:
            assert not a.any(), n


def check_float32(
    inputs: list[Tensor],
    is_init: Tensor | None,
    clamp: float | None,
    backend: Backend,
    segments: int | None = None,
) -> None:
    """All outputs and gradients against the reference in float64."""
    if clamp is not None:
        # an element this close may be clamped in one precision and not in the other
        assert distance_to_clamp(inputs, is_init, clamp).abs().min() > 1e-6
    expected = run(double(inputs), is_init, clamp)
    actual = run(inputs, is_init, clamp, backend, segments)
    assert {x.dtype for x in actual} == {torch.float32}
    agree(actual, expected, len(inputs), *SINGLE)


def check_reset(
    backend: Backend,
    dtype: torch.dtype,
    value: float,
    reset: int,
    clamp: float | None = None,
    segments: int | None = None,
    tolerance: dict[str, float] | None = None,
) -> None:
    """A NaN or inf before a reset stays there, and so does the gradient of a NaN at the reset."""
    inputs, is_init = make(2, 20, 3, dtype, backend)
    is_init[:] = False
    is_init[0, reset] = True

    def after(inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """All outputs, and all that the steps before the reset must not change."""
        y, memory = shm_scan(
            *inputs, is_init=is_init, clamp=clamp, backend=backend, segments=segments
        )
        loss = y[0, reset:].square().sum() + memory.sum() + y[1].square().sum()
        grads = torch.autograd.grad([loss], inputs)
        later = [x[0, reset:] for x in (y, *grads[:5])]
        return y, [memory, *later, *(x[1] for x in (y, *grads))]

    def spoil(steps: slice, memory: bool) -> list[Tensor]:
        spoiled = [x.detach().clone().requires_grad_() for x in inputs]
        with torch.no_grad():
            for x in spoiled[:5]:
                x[0, steps] = value
            if memory:
                spoiled[5][0] = value
        return spoiled

    y, actual = after(spoil(slice(reset), memory=True))
    assert not y[0, :reset].isfinite().any()
    for a, e in zip(actual, after(inputs)[1], strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, e, **tolerance or {})

    spoiled = spoil(slice(reset, reset + 1), memory=False)
    actual, expected = (run(x, is_init, clamp, backend, segments)[2:] for x in (spoiled, inputs))
    for a, e in zip(actual[:5], expected[:5], strict=True):
        torch.testing.assert_close(a[:, :reset], e[:, :reset])
    torch.testing.assert_close(actual[5], expected[5])


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


class Sizes(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.itemsize)
        return result
