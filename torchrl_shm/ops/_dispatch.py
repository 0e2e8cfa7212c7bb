"""The public operations: check the arguments once, then hand over to a backend."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchrl_shm.ops import chunked, reference

Backend = Literal["auto", "reference", "chunked", "numba", "triton"]
"""Names of the backends of `shm_scan`; `"auto"` picks the fastest that can run."""

_INPUT_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


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
) -> tuple[Tensor, Tensor]:
    """Write and read a Hadamard memory over a whole sequence.

    For every row and step, with the value axis `i` first and the key axis `j` second:

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
            `t = 0` too. Old content is dropped by selection: a NaN before a reset stays there.
        clamp: bound on `|M|` after each write; `None` for no bound.
        backend: which implementation runs, see `Backend`. Under `torch.func` (`vmap`, `grad`, ...)
            `"auto"` is the reference; the fast backends have no rules for it.
        fast_gate: allow the hardware's approximate tanh (1e-3 relative) where a backend has one;
            the CPU backends ignore it.

    Returns:
        The outputs `[B, T, H]` in the dtype of the inputs and the final memory `[B, H, H]` in
        float32 (float64 for float64 inputs). State and products are never held in a lower
        precision than float32.

    Raises:
        ValueError: a shape does not fit, `clamp` is not positive, or `backend` is unknown.
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
    memory = _check(theta, vc, v, k, q, memory, clamp, ndim=3)
    if is_init is not None:
        _check_is_init(is_init, theta)
    if backend == "auto" and is_transformed(theta, vc, v, k, q, memory):
        backend = "reference"
    scan = _resolve(backend)
    del fast_gate  # no CPU backend has an approximate gate
    dtype = theta.dtype
    theta, vc, v, k, q = (x.to(memory.dtype) for x in (theta, vc, v, k, q))
    y, memory = scan(theta, vc, v, k, q, memory, is_init, clamp)
    return y.to(dtype), memory


def shm_step(
    theta: Tensor,
    vc: Tensor,
    v: Tensor,
    k: Tensor,
    q: Tensor,
    memory: Tensor | None = None,
    *,
    clamp: float | None = None,
    fast_gate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Write and read a Hadamard memory once: one step of `shm_scan`.

    Args:
        theta: calibration row of shape `[..., H]`, float32, bfloat16 or float64.
        vc: calibration column of shape `[..., H]`, same dtype.
        v: value, already scaled by the write strength, of shape `[..., H]`, same dtype.
        k: key of shape `[..., H]`, same dtype.
        q: query of shape `[..., H]`, same dtype.
        memory: memory of shape `[..., H, H]`, or `None` for zeros. It is not changed in place.
        clamp: bound on `|M|` after the write; `None` for no bound.
        fast_gate: as in `shm_scan`.

    Returns:
        The output `[..., H]` and the new memory `[..., H, H]`; dtypes as in `shm_scan`.

    Raises:
        ValueError: a shape does not fit or `clamp` is not positive.
        TypeError: a dtype is not supported.
        RuntimeError: tensors are on different devices.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import shm_step
        >>> theta, vc, v, k, q = torch.randn(5, 2, 4).unbind(0)
        >>> y, memory = shm_step(theta, vc, v, k, q, torch.zeros(2, 4, 4))
        >>> y.shape, memory.shape
        (torch.Size([2, 4]), torch.Size([2, 4, 4]))
    """
    memory = _check(theta, vc, v, k, q, memory, clamp, ndim=None)
    del fast_gate
    dtype = theta.dtype
    theta, vc, v, k, q = (x.to(memory.dtype) for x in (theta, vc, v, k, q))
    # 1 + tanh(z) = 2 * sigmoid(2 z): several times faster on CPU and more accurate near 0
    gate = torch.sigmoid((2 * theta).unsqueeze(-1) * vc.unsqueeze(-2))
    memory = torch.addcmul(v.unsqueeze(-1) * k.unsqueeze(-2), memory, gate, value=2)
    if clamp is not None:
        memory = memory.clamp(-clamp, clamp)
    y = (memory * q.unsqueeze(-2)).sum(-1)
    return y.to(dtype), memory


def is_transformed(*tensors: Tensor) -> bool:
    """Whether `torch.func` is at work, under which only plain operations may be used."""
    if torch.compiler.is_compiling():
        return False
    # torch has no public name for this question
    functorch: Any = torch._C._functorch  # pyright: ignore
    return any(functorch.is_functorch_wrapped_tensor(x) for x in tensors)


def _resolve(backend: str):
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r} is unknown; choose one of {get_args(Backend)}")
    if backend in ("numba", "triton"):
        raise RuntimeError(
            f"backend={backend!r} is not part of this version; use 'auto' or 'chunked', which run "
            "on any device with torch alone"
        )
    # only the reference can be differentiated twice; it must be asked for by name
    return reference.scan if backend == "reference" else chunked.scan


def _check(
    theta: Tensor,
    vc: Tensor,
    v: Tensor,
    k: Tensor,
    q: Tensor,
    memory: Tensor | None,
    clamp: float | None,
    ndim: int | None,
) -> Tensor:
    """Validate everything that both operations share and return the initial memory."""
    if theta.ndim < 1 or (ndim is not None and theta.ndim != ndim):
        expected = "[B, T, H]" if ndim == 3 else "[..., H]"
        raise ValueError(f"theta has shape {list(theta.shape)}, expected {expected}")
    for name, x in (("vc", vc), ("v", v), ("k", k), ("q", q)):
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
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp={clamp} must be positive, or None for no bound")
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


def _check_is_init(is_init: Tensor, theta: Tensor) -> None:
    if is_init.dtype != torch.bool:
        raise TypeError(f"is_init is {is_init.dtype}, expected torch.bool")
    if is_init.shape != theta.shape[:2]:
        raise ValueError(
            f"is_init has shape {list(is_init.shape)}, expected [B, T] = {list(theta.shape[:2])}"
        )
    if is_init.device != theta.device:
        raise RuntimeError(f"is_init is on {is_init.device} but theta is on {theta.device}")
