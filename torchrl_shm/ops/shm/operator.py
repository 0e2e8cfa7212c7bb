"""The fast backends as operators of torch, which compiles, differentiates and batches them.

An operator takes tensors and numbers alone, so here, and only here, all arguments are listed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_shm.ops.shm.backend import STORE, Options, Vectors, load


@torch.library.custom_op("torchrl_shm::scan", mutates_args=())
def scan_op(
    theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor,
    is_init: Tensor | None, clamp: float | None, fast_gate: bool, segments: int | None,
    backend: str, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs, final memory and, for the backward pass, the checkpoints."""
    checkpoints = memory.new_empty(_num_checkpoints(theta, save), *memory.shape)
    vectors, options = Vectors(theta, vc, v, k, q), Options(clamp, fast_gate, segments)
    y, final = load(backend).forward(vectors, memory, is_init, options, checkpoints)
    return y, final, checkpoints


def _num_checkpoints(theta: Tensor, save: bool) -> int:
    return -(-theta.shape[1] // STORE) if save else 0


@torch.library.custom_op("torchrl_shm::scan_backward", mutates_args=())
def scan_backward_op(
    dy: Tensor, dmemory: Tensor,
    theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor,
    is_init: Tensor | None, clamp: float | None, fast_gate: bool, segments: int | None,
    backend: str, checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of theta, vc, v, k, q and memory."""
    vectors, options = Vectors(theta, vc, v, k, q), Options(clamp, fast_gate, segments)
    (dtheta, dvc, dv, dk, dq), dstart = load(backend).backward(
        dy, dmemory, vectors, is_init, options, checkpoints
    )
    return dtheta, dvc, dv, dk, dq, dstart


@scan_op.register_fake
def _(theta: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    memory, count = args[4], _num_checkpoints(theta, args[-1])
    y = theta.new_empty(theta.shape)
    return y, memory.new_empty(memory.shape), memory.new_empty(count, *memory.shape)


@scan_backward_op.register_fake
def _(dy: Tensor, dmemory: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return *(dy.new_empty(dy.shape) for _ in range(5)), dmemory.new_empty(dmemory.shape)


def needs_gradient(*inputs: Tensor | None) -> bool:
    """Whether a backward pass may follow, for which `scan_op` has to save checkpoints."""
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
    grads = scan_backward_op(dy, dmemory, *vectors, is_init, *ctx.options, checkpoints)
    return *grads, None, None, None, None, None, None


scan_op.register_autograd(_differentiate, setup_context=_setup_context)


def _fold(x: Tensor | None, dim: int | None, size: int, at: int) -> Tensor | None:
    """Merge the dimension of a vmap with the batch dimension, number `at`."""
    if x is None:
        return None
    if dim is None:
        x = x.unsqueeze(at).expand(*x.shape[:at], size, *x.shape[at:])
    else:
        x = x.movedim(dim, at)
    return x.flatten(at, at + 1)


@scan_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    folded = [_fold(x, dim, size, 0) for x, dim in zip(args[:7], in_dims[:7], strict=True)]
    # inside the vmap no tensor shows that it needs a gradient
    save = needs_gradient(*folded[:6])
    y, memory, checkpoints = scan_op(*folded, *args[7:-1], save)
    shape = (size, y.shape[0] // size)
    return (
        (y.unflatten(0, shape), memory.unflatten(0, shape), checkpoints.unflatten(1, shape)),
        (0, 0, 1),
    )


@scan_backward_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    folded = [_fold(x, dim, size, 0) for x, dim in zip(args[:8], in_dims[:8], strict=True)]
    checkpoints = _fold(args[-1], in_dims[-1], size, 1)
    grads = scan_backward_op(*folded, *args[8:-1], checkpoints)
    shape = (size, folded[0].shape[0] // size)  # pyright: ignore[reportOptionalMemberAccess]
    return tuple(x.unflatten(0, shape) for x in grads), (0,) * 6


@torch.library.custom_op("torchrl_shm::step", mutates_args=())
def step_op(
    theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor,
    clamp: float | None, fast_gate: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step in one kernel, without gradients: outputs and new memory."""
    new = torch.empty_like(memory, memory_format=torch.contiguous_format)
    return _run_step(Vectors(theta, vc, v, k, q), memory, new, clamp, fast_gate), new


@torch.library.custom_op("torchrl_shm::step_", mutates_args=("memory",))
def step_op_(
    theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor,
    clamp: float | None, fast_gate: bool,
) -> Tensor:  # fmt: skip
    """The same, with the new memory written over the old one, which is contiguous."""
    return _run_step(Vectors(theta, vc, v, k, q), memory, memory, clamp, fast_gate)


def _run_step(
    vectors: Vectors, memory: Tensor, out: Tensor, clamp: float | None, fast_gate: bool
) -> Tensor:
    from torchrl_shm.ops.shm import triton_scan

    return triton_scan.step(vectors, memory, out, Options(clamp, fast_gate))


@step_op.register_fake
def _(theta: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return theta.new_empty(theta.shape), args[4].new_empty(args[4].shape)


@step_op_.register_fake
def _(theta: Tensor, *args: Any) -> Tensor:
    return theta.new_empty(theta.shape)
