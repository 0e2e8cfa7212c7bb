"""One step, for acting: a few operations of torch, or one kernel on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.ops.shm.backend import Vectors
from torchrl_shm.ops.shm.checks import check
from torchrl_shm.ops.shm.dispatch import StepBackend, fuses_step
from torchrl_shm.ops.shm.operator import needs_gradient, step_op, step_op_


def shm_step(
    theta: Tensor,
    vc: Tensor,
    v: Tensor,
    k: Tensor,
    q: Tensor,
    memory: Tensor | None = None,
    *,
    clamp: float | None = None,
    backend: StepBackend = "auto",
    fast_gate: bool = False,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Write and read a Hadamard memory once: one step of `shm_scan`.

    Args:
        theta: calibration row of shape `[..., H]`, float32, bfloat16 or float64.
        vc: calibration column of shape `[..., H]`, same dtype.
        v: value, already scaled by the write strength, of shape `[..., H]`, same dtype.
        k: key of shape `[..., H]`, same dtype.
        q: query of shape `[..., H]`, same dtype.
        memory: memory of shape `[..., H, H]`, or `None` for zeros.
        clamp: bound on `|M|` after the write; `None` for no bound.
        backend: `"reference"`, plain operations of torch; `"triton"`, one kernel, without
            gradients; or `"auto"`, the kernel on CUDA if no gradient is recorded.
        fast_gate: as in `shm_scan`.
        inplace: write the new memory into `memory` and return that tensor. Its shape, strides and
            address stay the same, so a CUDA graph can replay the call.

    Returns:
        The output `[..., H]` and the new memory `[..., H, H]`; dtypes as in `shm_scan`.

    Raises:
        ValueError: a shape does not fit, `clamp` is not positive, or `inplace` without a memory.
        TypeError: a dtype is not supported.
        RuntimeError: tensors are on different devices, `"triton"` cannot run here, or gradients are
            recorded with `"triton"` or `inplace`.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import shm_step
        >>> theta, vc, v, k, q = torch.randn(5, 2, 4).unbind(0)
        >>> y, memory = shm_step(theta, vc, v, k, q, torch.zeros(2, 4, 4))
        >>> y.shape, memory.shape
        (torch.Size([2, 4]), torch.Size([2, 4, 4]))
    """
    if inplace and memory is None:
        raise ValueError("inplace=True needs a memory to write to, got None")
    vectors = Vectors(theta, vc, v, k, q)
    memory = check(vectors, memory, clamp, ndim=None)
    records = needs_gradient(*vectors, memory)
    if inplace and records:
        raise RuntimeError("inplace=True while gradients are recorded; use torch.no_grad()")
    fused = fuses_step(backend, (*vectors, memory), records)
    dtype = theta.dtype
    theta, vc, v, k, q = vectors = [x.to(memory.dtype) for x in vectors]
    if fused:
        batch, size = theta.shape[:-1], theta.shape[-1]
        flat = [x.reshape(-1, size) for x in vectors]
        bound = None if clamp is None else float(clamp)
        if inplace and memory.is_contiguous():
            y = step_op_(*flat, memory.view(-1, size, size), bound, fast_gate)
            return y.view(*batch, size).to(dtype), memory
        y, new = step_op(*flat, memory.reshape(-1, size, size), bound, fast_gate)
        y, new = y.view(*batch, size), new.view(*batch, size, size)
    else:
        # 1 + tanh(z) = 2 * sigmoid(2 z): several times faster on CPU and more accurate near 0.
        # Batched products instead of broadcasting would save two operations, but are slower
        gate = ((2 * theta).unsqueeze(-1) * vc.unsqueeze(-2)).sigmoid_()
        new = torch.addcmul(v.unsqueeze(-1) * k.unsqueeze(-2), memory, gate, value=2)
        if clamp is not None:
            new = new.clamp(-clamp, clamp)
        y = (new * q.unsqueeze(-2)).sum(-1)
    return y.to(dtype), memory.copy_(new) if inplace else new
