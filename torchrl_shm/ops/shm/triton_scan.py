"""The scan on CUDA: launches of the kernels, with time in parallel where the batch is small.

Two calls give the same bits: partial sums are added in a fixed order, and nothing is atomic.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from torchrl_shm.ops.shm.backend import STORE, Options, Vectors
from torchrl_shm.ops.shm.tiles import (
    CHUNK,
    LINES,
    MAX_SIZE,
    STAGES,
    WARPS,
    backward_span,
    forward_lines,
    num_tiles,
    segment_length,
    width,
)

# read once, as triton does when it compiles
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _kernels() -> Any:
    # imports triton, so not before the first kernel runs
    return import_module("torchrl_shm.ops.shm.triton_kernels")


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def refuse(device: torch.device, dtype: torch.dtype, size: int) -> str | None:
    """Say why it cannot scan such tensors here and what to do, or `None` if it can."""
    if not _installed():
        return "needs the package triton; install it with `pip install triton`"
    if device.type != "cuda" and not (_INTERPRET and device.type == "cpu"):
        return (
            f"runs on CUDA, but the tensors are on {device}; use 'auto' or 'chunked', or set "
            "TRITON_INTERPRET=1 before the program starts to debug it on the CPU"
        )
    if dtype == torch.float64:
        return "computes in float32, the inputs are float64; use 'chunked' or 'reference'"
    if size > MAX_SIZE:
        return f"holds memories of up to {MAX_SIZE} x {MAX_SIZE}, H is {size}; use 'chunked'"
    return None


def forward(
    vectors: Vectors,
    memory: Tensor,
    is_init: Tensor | None,
    options: Options,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence, see `FastBackend`."""
    y = torch.empty_like(vectors.v, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y, memory.clone()
    vectors, start = vectors.map(Tensor.contiguous), memory.contiguous()
    final = torch.empty_like(start)
    run = _Run(vectors.theta, is_init, options)
    with torch.cuda.device_of(y):
        if run.count > 1:
            start = run.entering(vectors, start)
        _kernels().scan_forward_kernel[run.grid(run.rows)](
            *vectors, run.is_init, start, y, final, checkpoints,
            run.clamp, run.batch, run.steps, run.length,
            STORE=STORE, STAGES=STAGES, SAVE=len(checkpoints) > 0, CLAMP=run.clamped,
            num_warps=WARPS, ROWS=run.rows, **run.constants,
        )  # fmt: skip
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
    if dy.numel() == 0:
        return vectors.map(torch.zeros_like), dmemory.clone()
    dy, dmemory, vectors = dy.contiguous(), dmemory.contiguous(), vectors.map(Tensor.contiguous)
    run = _Run(vectors.theta, is_init, options)
    dvc, dk, dq = (torch.empty_like(x) for x in (vectors.vc, vectors.k, vectors.q))
    totals = [dy.new_empty(run.batch, run.count, run.length, run.size) for _ in range(2)]
    with torch.cuda.device_of(dy):
        if run.count > 1:
            # the adjoint is the same recurrence backwards, which writes dy and q
            adjoint = run.entering(vectors._replace(v=dy, k=vectors.q), dmemory, adjoint=True)
        else:
            adjoint = dmemory.clone().unsqueeze(0)
        span = min(run.length, backward_span(run.batch * run.count, run.size))
        # of dtheta and dv, the sums over the columns of each tile
        columns = LINES[width(run.size)]
        tiles = num_tiles(run.size, columns)
        partial = dy.new_empty(2, tiles, run.batch, run.count, span, run.size)
        for offset in reversed(range(0, run.length, span)):
            _kernels().scan_backward_kernel[run.grid(columns)](
                dy, *vectors, run.is_init, checkpoints, adjoint,
                partial[0], partial[1], dvc, dk, dq,
                run.clamp, run.batch, run.steps, run.length, offset, span,
                CHUNK=CHUNK[width(run.size)], STORE=STORE, STAGES=STAGES, CLAMP=run.clamped,
                num_warps=WARPS, COLUMNS=columns, **run.constants,
            )  # fmt: skip
            for total, parts in zip(totals, partial, strict=True):
                done = total[:, :, offset : offset + span]
                # added in an order that depends on nothing but the shape: the same bits every time
                torch.sum(parts[:, :, :, : done.shape[2]], 0, out=done)
    dtheta, dv = (x.flatten(1, 2)[:, : run.steps].contiguous() for x in totals)
    # only the first segment's adjoint is returned; the clone frees the others
    return Vectors(dtheta, dvc, dv, dk, dq), adjoint[0].clone() if run.count > 1 else adjoint[0]


def step(vectors: Vectors, memory: Tensor, out: Tensor, options: Options) -> Tensor:
    """Run one step on `[B, H]` vectors, write the new memory to `out` and return the outputs."""
    y = torch.empty_like(vectors.v, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y
    vectors = vectors.map(Tensor.contiguous)
    run = _Run(vectors.theta.unsqueeze(1), None, options)
    constants = {key: value for key, value in run.constants.items() if key != "RESETS"}
    with torch.cuda.device_of(y):
        _kernels().step_kernel[run.grid(run.rows)](
            *vectors, memory.contiguous(), y, out, run.clamp, run.batch,
            CLAMP=run.clamped, num_warps=WARPS, ROWS=run.rows, **constants,
        )  # fmt: skip
    return y


class _Run:
    """What the launches of one scan have in common.

    Attributes:
        length: steps per segment of time.
        count: number of segments.
        rows: rows per tile of the forward kernels.
        is_init: the reset flags as bytes; if there are none, any tensor, which is not read.
        clamp: the bound; if there is none, any number, which is not read.
        clamped: whether there is a bound.
        constants: the compile-time arguments that all kernels have.
    """

    def __init__(self, theta: Tensor, is_init: Tensor | None, options: Options) -> None:
        self.batch, self.steps, self.size = theta.shape
        self.clamped = options.clamp is not None
        self.clamp = 0.0 if options.clamp is None else options.clamp
        # a clamped step is not linear in the memory, so segments cannot be computed separately
        segments = 1 if self.clamped else options.segments
        self.length = segment_length(self.batch, self.steps, self.size, segments)
        self.count = -(-self.steps // self.length)
        self.rows = forward_lines(self.batch, self.size)
        self.is_init = theta if is_init is None else is_init.contiguous().view(torch.uint8)
        self.constants: dict[str, Any] = {
            "H": self.size,
            "WIDTH": width(self.size),
            "RESETS": is_init is not None,
            "GATE": "portable" if _INTERPRET else "fast" if options.fast_gate else "exact",
        }

    def grid(self, lines: int) -> tuple[int, int]:
        """Programs: tiles of all sequences, and segments."""
        return self.batch * num_tiles(self.size, lines), self.count

    def entering(self, vectors: Vectors, edge: Tensor, *, adjoint: bool = False) -> Tensor:
        """Find the state that enters each segment, or the adjoint that enters it from its end.

        Args:
            vectors: those of the scan; for the adjoint with dy for v and q for k.
            edge: the initial memory, or the gradient of the final one, of shape `[B, H, H]`.
            adjoint: which of the two.

        Returns:
            One state per segment, `[segments, B, H, H]`.
        """
        local = edge.new_empty(self.count, *edge.shape)
        decay = torch.empty_like(local)
        theta, vc, v, k, _ = vectors
        _kernels().segment_kernel[self.grid(self.rows)](
            theta, vc, v, k, self.is_init, decay, local, self.batch, self.steps, self.length,
            STAGES=STAGES, ADJOINT=adjoint, num_warps=WARPS, ROWS=self.rows, **self.constants,
        )  # fmt: skip
        resets, has_reset = self.constants["RESETS"], self.is_init
        if resets:
            padding = self.count * self.length - self.steps
            padded = torch.nn.functional.pad(self.is_init, (0, padding))
            has_reset = padded.view(self.batch, self.count, self.length).amax(-1)
        elements = self.size * self.size
        block = min(128, 1 << (elements - 1).bit_length())
        _kernels().combine_kernel[(self.batch * -(-elements // block),)](
            edge, decay, local, has_reset, self.batch, self.count,
            SIZE=elements, BLOCK=block, STAGES=STAGES, RESETS=resets, REVERSE=adjoint, num_warps=1,
        )  # fmt: skip
        return local
