"""The scan on CPU, compiled by numba: one pass over the matrix per step, which stays in the cache.

Sequences are spread over as many threads as torch uses. The columns are padded to whole vector
registers. Compilation takes seconds at the first call and is cached on disk for later processes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor

from torchrl_shm.ops.shm.backend import STORE, Options, Vectors

# elements times steps that are worth one more thread
_PER_THREAD = 1 << 20


@cache
def _import() -> ModuleType | str:
    """The compiled kernels, or why there are none."""
    try:
        from torchrl_shm.ops.shm import numba_kernels
    except Exception as error:
        # of any kind: a numpy that numba does not know, a library that the system cannot load, or
        # no folder for compiled code
        return (
            f"cannot load numba ({type(error).__name__}: {error}); install numba again, or set "
            "NUMBA_CACHE_DIR to a folder that can be written"
        )
    return numba_kernels


def refuse(device: torch.device, dtype: torch.dtype, size: int) -> str | None:
    """Say why it cannot scan such tensors here and what to do, or `None` if it can."""
    del size
    if device.type != "cpu":
        return f"runs on the CPU, but the tensors are on {device}; use 'auto'"
    if dtype == torch.float64:
        return "computes in float32, the inputs are float64; use 'chunked' or 'reference'"
    kernels = _import()
    return kernels if isinstance(kernels, str) else None


def forward(
    vectors: Vectors,
    memory: Tensor,
    is_init: Tensor | None,
    options: Options,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence, see `FastBackend`."""
    y = torch.empty_like(vectors.v, memory_format=torch.contiguous_format)
    final = memory.clone(memory_format=torch.contiguous_format)
    _run("forward", vectors, is_init, options.clamp, (y, final, checkpoints))
    return y, final


def backward(
    dy: Tensor,
    dmemory: Tensor,
    vectors: Vectors,
    is_init: Tensor | None,
    options: Options,
    checkpoints: Tensor,
) -> tuple[Vectors, Tensor]:
    """Run the adjoint of the recurrence, see `FastBackend`."""
    adjoint = dmemory.clone(memory_format=torch.contiguous_format)
    grads = vectors.map(partial(torch.empty_like, memory_format=torch.contiguous_format))
    _run("backward", (*vectors, dy), is_init, options.clamp, (checkpoints, *grads, adjoint))
    return grads, adjoint


def _run(
    name: str,
    inputs: tuple[Tensor, ...],
    is_init: Tensor | None,
    clamp: float | None,
    outputs: tuple[Tensor, ...],
) -> None:
    """Call a kernel once per thread, each with its own sequences."""
    kernel = getattr(_import(), name)
    batch, steps, size = inputs[0].shape
    if is_init is None:
        is_init = torch.zeros(batch, steps, dtype=torch.bool)
    arrays = [x.detach().contiguous().numpy() for x in (*inputs, is_init, *outputs)]
    bound = -1.0 if clamp is None else clamp
    work = batch * steps * size * size // _PER_THREAD
    threads = min(torch.get_num_threads(), batch, 1 + work)
    if threads <= 1:
        kernel(0, batch, STORE, bound, *arrays)
        return
    # the kernels release the GIL. numba's own threads survive neither a fork of the process nor
    # calls from several threads, and do not follow torch.set_num_threads
    edges = [batch * n // threads for n in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        futures = [
            pool.submit(kernel, start, stop, STORE, bound, *arrays)
            for start, stop in pairwise(edges)
        ]
    for future in futures:
        future.result()
