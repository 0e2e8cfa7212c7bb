"""Which backend runs."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchrl_shm.ops.shm.backend import load

Backend = Literal["auto", "reference", "chunked", "numba", "triton"]
"""Names of the backends of `shm_scan`; `"auto"` picks the fastest that can run."""

StepBackend = Literal["auto", "reference", "triton"]
"""Names of the backends of `shm_step`."""

_logger = logging.getLogger(__name__)


def choose(backend: str, inputs: tuple[Tensor, ...]) -> str:
    """Decide which backend scans these inputs.

    Args:
        backend: the requested one, a `Backend`.
        inputs: theta, vc, v, k, q and memory, as they were given.

    Returns:
        A name other than `"auto"`.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend cannot run here.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r} is unknown; choose one of {get_args(Backend)}")
    if backend == "reference":
        return backend
    by_grad, theta = is_transformed(*inputs, by_grad=True), inputs[0]
    if backend == "auto":
        if by_grad:
            return "reference"
        fastest = "triton" if theta.is_cuda else "numba"
        reason = _refusal(fastest, theta.device, theta.dtype, theta.shape[-1])
        if reason is None:
            return fastest
        if theta.device.type == "cpu" and theta.dtype != torch.float64:
            _tell(reason)
        return "chunked"
    if by_grad:
        raise RuntimeError(
            f"backend={backend!r} has no rule for torch.func.grad; use 'auto' or 'reference'"
        )
    reason = _refusal(backend, theta.device, theta.dtype, theta.shape[-1])
    if reason is not None:
        raise RuntimeError(f"backend={backend!r} {reason}")
    return backend


def fuses_step(backend: str, inputs: tuple[Tensor, ...], records: bool) -> bool:
    """Decide whether one step runs as one kernel.

    Args:
        backend: the requested one, a `StepBackend`.
        inputs: theta, vc, v, k, q and memory, as they were given.
        records: whether a gradient is recorded, which the kernel cannot compute.

    Returns:
        True for the kernel, False for plain operations.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the kernel cannot run here.
    """
    if backend not in get_args(StepBackend):
        raise ValueError(f"backend={backend!r} is unknown; choose one of {get_args(StepBackend)}")
    if backend == "reference" or (backend == "auto" and not inputs[0].is_cuda):
        return False
    theta = inputs[0]
    reason = _refusal("triton", theta.device, theta.dtype, theta.shape[-1])
    if records:
        reason = "has no gradients for one step; use 'auto', or torch.no_grad()"
    elif is_transformed(*inputs):
        reason = "has no rule for torch.func in one step; use 'auto'"
    if reason is not None and backend == "triton":
        raise RuntimeError(f"backend='triton' {reason}")
    return reason is None


def _refusal(name: str, device: torch.device, dtype: torch.dtype, size: int) -> str | None:
    return load(name).refuse(device, dtype, int(size))


@cache
def _tell(reason: str) -> None:
    # once, and logged: results are right, only later
    _logger.warning("the scan runs without numba, several times slower: backend='numba' %s", reason)


# what is installed does not change, so torch.compile need not trace these. The mark is what
# torch.compiler.assume_constant_result sets, but that imports the whole compiler, for a second
for _function in (_refusal, _tell):
    vars(_function)["_dynamo_marked_constant"] = True


def is_transformed(*tensors: Tensor, by_grad: bool = False) -> bool:
    """Whether `torch.func` transforms a tensor; with `by_grad`, whether it differentiates one."""
    if torch.compiler.is_compiling():
        return False
    # torch has no public function for this
    functorch: Any = torch._C._functorch  # pyright: ignore
    for x in tensors:
        while functorch.is_functorch_wrapped_tensor(x):
            if not by_grad or functorch.is_gradtrackingtensor(x):
                return True
            x = functorch.get_unwrapped(x)
    return False
