"""Scans of matrix memories in the kernels of `flash-linear-attention`, on CUDA.

Of its kernels these are the recurrent ones. The chunked ones multiply in TF32, and the one of the
delta rule refuses float32; the recurrent ones hold a memory in float32 and multiply in full, step
by step, all episodes and tiles of their values side by side.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from torchrl_shm.ops._checks import check_option

MatrixBackend = Literal["torch", "fla"]
"""Names of the backends of `gated_scan` and `delta_scan`."""

_INSTALL = "install it with `pip install 'torchrl_shm[fla]'`, or use backend='torch'"


def check_backend(backend: str) -> None:
    """Refuse what can be refused before there are tensors.

    Args:
        backend: what was asked for, a `MatrixBackend`.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the package is not installed.
    """
    check_option("backend", backend, MatrixBackend)
    if backend == "fla" and find_spec("fla") is None:
        raise RuntimeError(
            f"backend='fla' needs the package flash-linear-attention, imported as fla; {_INSTALL}"
        )


@cache
def _import() -> Any:
    """The kernels of the additive and of the delta rule, or why there are none."""
    try:
        from fla.ops.delta_rule import (  # pyright: ignore[reportMissingImports]
            fused_recurrent_delta_rule,
        )
        from fla.ops.linear_attn import (  # pyright: ignore[reportMissingImports]
            fused_recurrent_linear_attn,
        )
    except ImportError as error:
        return f"cannot import the kernels of fla ({error}); {_INSTALL}"
    return fused_recurrent_linear_attn, fused_recurrent_delta_rule


def refuse(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why it cannot scan such tensors here and what to do, or `None` if it can."""
    if device.type != "cuda":
        return f"runs on CUDA, but the tensors are on {device}; use 'torch'"
    if dtype == torch.float64:
        return "computes in float32, but inputs are float64; use 'torch', or cast them"
    kernels = _import()
    return kernels if isinstance(kernels, str) else None


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    memory: Tensor,
    is_init: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Write and read a matrix memory; arguments already validated, and in one dtype.

    Every episode of every row is a segment of its own to the kernel, with its own initial and final
    memory, so nothing passes a reset. The host waits for the device once, to learn how many there
    are.

    Args:
        q: queries of shape `[B, T, K]`.
        k: keys of shape `[B, T, K]`.
        v: values of shape `[B, T, V]`.
        beta: write strengths of the delta rule, of shape `[B, T]`; `None` is the additive rule.
        memory: initial memory of shape `[B, V, K]`.
        is_init: bool of shape `[B, T]`, where the memory that enters is zero; `None` for nowhere.

    Returns:
        The readings `[B, T, V]` and the final memory `[B, V, K]`.

    Raises:
        RuntimeError: the tensors are not on CUDA or are float64, or the package is missing.
    """
    reason = refuse(q.device, q.dtype)
    if reason is not None:
        raise RuntimeError(f"backend='fla' {reason}")
    batch, steps = q.shape[:2]
    length = batch * steps
    if not length:
        return v.clone(), memory.clone()
    if is_init is None:
        starts = torch.zeros(batch, steps, dtype=torch.bool, device=q.device)
    else:
        starts = is_init.clone()
        memory = torch.where(is_init[:, :1, None], 0, memory)
    starts[:, 0] = True
    bounds = F.pad(starts.flatten().nonzero().squeeze(1), (0, 1), value=length)
    segment = starts.flatten().cumsum(0).view(batch, steps) - 1
    # the kernel has the key axis first
    entering = memory.new_zeros(len(bounds) - 1, 1, *memory.mT.shape[1:])
    entering = entering.index_copy(0, segment[:, 0], memory.mT.unsqueeze(1))
    inputs = {"q": q, "k": k, "v": v} | ({} if beta is None else {"beta": beta})
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs.values()):
        # the backward kernel of the delta rule writes this gradient whether or not it was asked for
        entering.requires_grad_()
    additive, delta = _import()
    kernel = partial(additive, normalize=False) if beta is None else delta
    # all rows end to end, with one head
    y, leaving = kernel(
        **{name: x.reshape(1, length, 1, *x.shape[2:]) for name, x in inputs.items()},
        scale=1.0,
        initial_state=entering,
        output_final_state=True,
        cu_seqlens=bounds,
    )
    return y.reshape(v.shape), leaving[segment[:, -1]].squeeze(1).mT.contiguous()
