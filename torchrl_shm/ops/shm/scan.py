"""A whole sequence: check the arguments, then call a backend."""

from __future__ import annotations

from torch import Tensor

from torchrl_shm.ops.checks import check_is_init
from torchrl_shm.ops.shm import reference
from torchrl_shm.ops.shm.backend import Vectors
from torchrl_shm.ops.shm.checks import check, check_segments
from torchrl_shm.ops.shm.dispatch import Backend, choose
from torchrl_shm.ops.shm.operator import needs_gradient, scan_op


def shm_scan(
    theta: Tensor,
    vc: Tensor,
    v: Tensor,
    k: Tensor,
    q: Tensor,
    memory: Tensor | None = None,
    is_init: Tensor | None = None,
    *,
    clamp: float | None = None,
    backend: Backend = "auto",
    fast_gate: bool = False,
    segments: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Write and read a Hadamard memory over a whole sequence.

    For every sequence and step, with the value axis `i` first and the key axis `j` second:

        M[i, j] <- M[i, j] * (1 + tanh(theta[i] * vc[j])) + v[i] * k[j]
        y[i]     = sum_j M[i, j] * q[j]

    Source: Le et al., Stable Hadamard Memory (ICLR 2025), section 3.

    Args:
        theta: calibration rows of shape `[B, T, H]`, float32, bfloat16 or float64.
        vc: calibration columns of shape `[B, T, H]`, same dtype.
        v: values, already scaled by the write strength, of shape `[B, T, H]`, same dtype.
        k: keys of shape `[B, T, H]`, same dtype.
        q: queries of shape `[B, T, H]`, same dtype.
        memory: initial memory of shape `[B, H, H]`; `None` starts from zeros. float32, or
            float64 for float64 inputs.
        is_init: bool of shape `[B, T]`. Where true, the memory that enters the step is zero, at
            `t = 0` too. It is replaced, not multiplied by zero: a NaN before a reset stays there.
        clamp: bound on `|M|` after each write; `None` for no bound.
        backend: which implementation runs. `"auto"` is `"triton"` on CUDA, otherwise `"numba"`,
            and `"chunked"`, which needs only torch, where neither can run.
            `"reference"` is the slow definition. It is the only one that can be differentiated
            twice or by `torch.func.grad`, under which `"auto"` chooses it. All work under `vmap`.
        fast_gate: allow the approximate tanh of the hardware (1e-3 relative, outputs and gradients
            within 1e-2), which only `"triton"` has.
        segments: number of parts of time that `"triton"` runs in parallel, for batches that do not
            fill the device; `None` chooses, see `torchrl_shm.ops.shm.tiles.segment_length`. The
            other backends ignore it. More than one cannot be combined with `clamp`.

    Returns:
        The outputs `[B, T, H]` in the dtype of the inputs and the final memory `[B, H, H]` in
        float32 (float64 for float64 inputs). State and products are never held in a lower
        precision than float32.

    Raises:
        ValueError: a shape does not fit, `clamp` or `segments` is not positive, `segments` is above
            one with `clamp`, or `backend` is unknown.
        TypeError: a dtype is not supported.
        RuntimeError: the backend cannot run here, or tensors are on different devices.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import shm_scan
        >>> theta, vc, v, k, q = torch.randn(5, 2, 7, 4).unbind(0)
        >>> y, memory = shm_scan(theta, vc, v, k, q)
        >>> y.shape, memory.shape
        (torch.Size([2, 7, 4]), torch.Size([2, 4, 4]))
    """
    vectors = Vectors(theta, vc, v, k, q)
    start = check(vectors, memory, clamp, ndim=3)
    check_is_init(is_init, theta)
    check_segments(segments, clamp)
    name = choose(backend, (*vectors, start))
    vectors = Vectors(*(x.to(start.dtype) for x in vectors))
    if name == "reference":
        y, final = reference.scan(vectors, start, is_init, clamp)
    else:
        bound = None if clamp is None else float(clamp)
        save = needs_gradient(*vectors, start)
        y, final, _ = scan_op(*vectors, start, is_init, bound, fast_gate, segments, name, save)
    return y.to(theta.dtype), final
