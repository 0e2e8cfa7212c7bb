"""The fast backends as one operator of torch: compiled, differentiated and batched like its own.

A backend is a module with four functions on plain tensors: `refuse`, `num_checkpoints`, `forward`
and `backward`. All of them share the layout of the checkpoints, `[N, B, H, H]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor

_MODULES = {
    "chunked": "torchrl_shm.ops.shm.chunked",
    "numba": "torchrl_shm.ops.shm.numba_scan",
    "triton": "torchrl_shm.ops.shm.triton_scan",
}


class FastBackend(Protocol):
    """What the module of a fast backend holds."""

    @staticmethod
    def refuse(device: torch.device, dtype: torch.dtype, size: int) -> str | None:
        """Say why it cannot scan such tensors here and what to do, or `None` if it can."""
        ...

    @staticmethod
    def num_checkpoints(steps: int) -> int:
        """Count the states that `forward` saves."""
        ...

    @staticmethod
    def forward(
        theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor,
        is_init: Tensor | None, clamp: float | None, fast_gate: bool, segments: int | None,
        checkpoints: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return outputs and final memory; fill the checkpoints unless there is room for none."""
        ...

    @staticmethod
    def backward(
        dy: Tensor, dmemory: Tensor,
        theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor,
        is_init: Tensor | None, clamp: float | None, fast_gate: bool, segments: int | None,
        checkpoints: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Return the gradients of theta, vc, v, k, q and of the initial memory."""
        ...


def load(name: str) -> FastBackend:
    """Import a backend; that of triton or numba only when it is asked for."""
    return cast(FastBackend, import_module(_MODULES[name]))


@torch.library.custom_op("torchrl_shm::scan", mutates_args=())
def scan(
    theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor,
    is_init: Tensor | None, clamp: float | None, fast_gate: bool, segments: int | None,
    backend: str, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs, final memory and, for the backward pass, the checkpoints."""
    module = load(backend)
    count = module.num_checkpoints(theta.shape[1]) if save else 0
    checkpoints = memory.new_empty(count, *memory.shape)
    y, final = module.forward(
        theta, vc, v, k, q, memory, is_init, clamp, fast_gate, segments, checkpoints
    )
    return y, final, checkpoints


@torch.library.custom_op("torchrl_shm::scan_backward", mutates_args=())
def scan_backward(
    dy: Tensor, dmemory: Tensor,
    theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor,
    is_init: Tensor | None, clamp: float | None, fast_gate: bool, segments: int | None,
    backend: str, checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of theta, vc, v, k, q and memory."""
    return load(backend).backward(
        dy, dmemory, theta, vc, v, k, q, is_init, clamp, fast_gate, segments, checkpoints
    )


@scan.register_fake
def _(theta: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    memory, (backend, save) = args[4], args[-2:]
    count = load(backend).num_checkpoints(theta.shape[1]) if save else 0
    y = theta.new_empty(theta.shape)
    return y, memory.new_empty(memory.shape), memory.new_empty(count, *memory.shape)


@scan_backward.register_fake
def _(dy: Tensor, dmemory: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return *(dy.new_empty(dy.shape) for _ in range(5)), dmemory.new_empty(dmemory.shape)


def needs_gradient(*inputs: Tensor | None) -> bool:
    """Whether a backward pass may follow, for which `scan` has to save checkpoints."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *vectors, _, is_init, clamp, fast_gate, segments, backend, _ = inputs
    ctx.save_for_backward(*vectors, is_init, output[2])
    ctx.options = (clamp, fast_gate, segments, backend)


def _differentiate(ctx: Any, dy: Tensor, dmemory: Tensor, _: Tensor) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"the {ctx.options[-1]} scan cannot be differentiated twice; use backend='reference'"
        )
    *vectors, is_init, checkpoints = ctx.saved_tensors
    grads = scan_backward(dy, dmemory, *vectors, is_init, *ctx.options, checkpoints)
    return *grads, None, None, None, None, None, None


scan.register_autograd(_differentiate, setup_context=_setup_context)


def _fold(x: Tensor | None, dim: int | None, size: int, at: int) -> Tensor | None:
    """Merge the dimension of a vmap with the batch dimension, number `at`."""
    if x is None:
        return None
    if dim is None:
        x = x.unsqueeze(at).expand(*x.shape[:at], size, *x.shape[at:])
    else:
        x = x.movedim(dim, at)
    return x.flatten(at, at + 1)


@scan.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    folded = [_fold(x, dim, size, 0) for x, dim in zip(args[:7], in_dims[:7], strict=True)]
    # inside of the vmap no tensor tells that it needs a gradient
    save = needs_gradient(*folded[:6])
    y, memory, checkpoints = scan(*folded, *args[7:-1], save)
    shape = (size, y.shape[0] // size)
    return (
        (y.unflatten(0, shape), memory.unflatten(0, shape), checkpoints.unflatten(1, shape)),
        (0, 0, 1),
    )


@scan_backward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    folded = [_fold(x, dim, size, 0) for x, dim in zip(args[:8], in_dims[:8], strict=True)]
    checkpoints = _fold(args[-1], in_dims[-1], size, 1)
    grads = scan_backward(*folded, *args[8:-1], checkpoints)
    shape = (size, folded[0].shape[0] // size)  # pyright: ignore[reportOptionalMemberAccess]
    return tuple(x.unflatten(0, shape) for x in grads), (0,) * 6


@torch.library.custom_op("torchrl_shm::step", mutates_args=())
def step(
    theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor,
    clamp: float | None, fast_gate: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step in one kernel, without gradients: outputs and new memory."""
    from torchrl_shm.ops.shm import triton_scan

    new = torch.empty_like(memory, memory_format=torch.contiguous_format)
    return triton_scan.step(theta, vc, v, k, q, memory, new, clamp, fast_gate), new


@torch.library.custom_op("torchrl_shm::step_", mutates_args=("memory",))
def step_(
    theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor,
    clamp: float | None, fast_gate: bool,
) -> Tensor:  # fmt: skip
    """The same, with the new memory written over the old one, which is contiguous."""
    from torchrl_shm.ops.shm import triton_scan

    return triton_scan.step(theta, vc, v, k, q, memory, memory, clamp, fast_gate)


@step.register_fake
def _(theta: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return theta.new_empty(theta.shape), args[4].new_empty(args[4].shape)


@step_.register_fake
def _(theta: Tensor, *args: Any) -> Tensor:
    return theta.new_empty(theta.shape)
