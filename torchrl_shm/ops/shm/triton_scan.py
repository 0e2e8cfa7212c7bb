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

from torchrl_shm.ops.shm import tiles

# read once, as triton does when it compiles
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _kernels() -> Any:
    # triton is imported when the first kernel runs
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
    if size > tiles.MAX_SIZE:
        return (
            f"holds memories of up to {tiles.MAX_SIZE} x {tiles.MAX_SIZE}, H is {size}; use "
            "'chunked'"
        )
    return None


def num_checkpoints(steps: int) -> int:
    """Count the states that `forward` saves."""
    return -(-steps // tiles.STORE)


def forward(
    theta: Tensor,
    vc: Tensor,
    v: Tensor,
    k: Tensor,
    q: Tensor,
    memory: Tensor,
    is_init: Tensor | None,
    clamp: float | None,
    fast_gate: bool,
    segments: int | None,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; arguments as in `torchrl_shm.ops.shm_scan`, already validated."""
    batch, steps, size = theta.shape
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y, memory.clone()
    theta, vc, v, k, q, start = (x.contiguous() for x in (theta, vc, v, k, q, memory))
    final = torch.empty_like(start)
    tile = tiles.forward_tile(batch, size)
    run = _Run(theta, is_init, clamp, fast_gate, segments)
    with torch.cuda.device_of(theta):
        if run.count > 1:
            start = run.states(theta, vc, v, k, start, tile, adjoint=False)
        _kernels().scan_forward_kernel[run.grid(tile)](
            theta, vc, v, k, q, run.is_init, start, y, final, checkpoints,
            run.clamp, batch, steps, run.length,
            STORE=tiles.STORE, STAGES=tile.stages, SAVE=len(checkpoints) > 0,
            CLAMP=clamp is not None, num_warps=tile.warps, ROWS=tile.lines, **run.constants,
        )  # fmt: skip
    return y, final


def backward(
    dy: Tensor,
    dmemory: Tensor,
    theta: Tensor,
    vc: Tensor,
    v: Tensor,
    k: Tensor,
    q: Tensor,
    is_init: Tensor | None,
    clamp: float | None,
    fast_gate: bool,
    segments: int | None,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the adjoint of the recurrence; return the gradients of theta, vc, v, k, q and memory."""
    batch, steps, size = theta.shape
    if theta.numel() == 0:
        dtheta, dvc, dv, dk, dq = (torch.zeros_like(x) for x in (theta, vc, v, k, q))
        return dtheta, dvc, dv, dk, dq, dmemory.clone()
    dy, theta, vc, v, k, q = (x.contiguous() for x in (dy, theta, vc, v, k, q))
    tile = tiles.backward_tile(size)
    run = _Run(theta, is_init, clamp, fast_gate, segments)
    dvc, dk, dq = (torch.empty_like(x) for x in (vc, k, q))
    totals = [theta.new_empty(batch, run.count, run.length, size) for _ in range(2)]
    with torch.cuda.device_of(theta):
        if run.count > 1:
            edge, forward_tile = dmemory.contiguous(), tiles.forward_tile(batch, size)
            adjoint = run.states(theta, vc, dy, q, edge, forward_tile, adjoint=True)
        else:
            adjoint = dmemory.clone(memory_format=torch.contiguous_format).unsqueeze(0)
        span = min(run.length, tiles.backward_span(batch * run.count, size))
        # of dtheta and dv, the sums over the columns of each tile
        count = tiles.num_tiles(size, tile.lines)
        partial = theta.new_empty(2, count, batch, run.count, span, size)
        for offset in reversed(range(0, run.length, span)):
            _kernels().scan_backward_kernel[run.grid(tile)](
                dy, theta, vc, v, k, q, run.is_init, checkpoints, adjoint,
                partial[0], partial[1], dvc, dk, dq,
                run.clamp, batch, steps, run.length, offset, span,
                CHUNK=tile.chunk, STORE=tiles.STORE, STAGES=tile.stages,
                CLAMP=clamp is not None, num_warps=tile.warps, COLUMNS=tile.lines,
                **run.constants,
            )  # fmt: skip
            for total, parts in zip(totals, partial, strict=True):
                done = total[:, :, offset : offset + span]
                # added in an order that depends on nothing but the shape: the same bits every time
                torch.sum(parts[:, :, :, : done.shape[2]], 0, out=done)
    dtheta, dv = (x.flatten(1, 2)[:, :steps].contiguous() for x in totals)
    # of the segments' adjoints the first is asked for, and the others need not be kept
    return dtheta, dvc, dv, dk, dq, adjoint[0].clone() if run.count > 1 else adjoint[0]


def step(
    theta: Tensor,
    vc: Tensor,
    v: Tensor,
    k: Tensor,
    q: Tensor,
    memory: Tensor,
    out: Tensor,
    clamp: float | None,
    fast_gate: bool,
) -> Tensor:
    """Run one step on `[B, H]` vectors, write the new memory to `out` and return the outputs."""
    batch, size = theta.shape
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y
    theta, vc, v, k, q, memory = (x.contiguous() for x in (theta, vc, v, k, q, memory))
    tile = tiles.forward_tile(batch, size)
    run = _Run(theta.unsqueeze(1), None, clamp, fast_gate, 1)
    constants = {key: value for key, value in run.constants.items() if key != "RESETS"}
    with torch.cuda.device_of(theta):
        _kernels().step_kernel[run.grid(tile)](
            theta, vc, v, k, q, memory, y, out, run.clamp, batch,
            CLAMP=clamp is not None, num_warps=tile.warps, ROWS=tile.lines, **constants,
        )  # fmt: skip
    return y


class _Run:
    """What the launches of one scan have in common.

    Attributes:
        length: steps per segment of time.
        count: number of segments.
        is_init: the reset flags as bytes; any tensor where there are none.
        clamp: the bound; any number where there is none.
        constants: the compile-time arguments that all kernels have.
    """

    def __init__(
        self,
        theta: Tensor,
        is_init: Tensor | None,
        clamp: float | None,
        fast_gate: bool,
        segments: int | None,
    ) -> None:
        self.batch, self.steps, self.size = theta.shape
        # a clamped step is no longer linear in the memory, so segments cannot be taken apart
        segments = 1 if clamp is not None else segments
        self.length = tiles.segment_length(self.batch, self.steps, self.size, segments)
        self.count = -(-self.steps // self.length)
        self.resets = is_init is not None
        self.is_init = theta if is_init is None else is_init.contiguous().view(torch.uint8)
        self.clamp = 0.0 if clamp is None else clamp
        self.constants: dict[str, Any] = {
            "H": self.size,
            "WIDTH": tiles.width(self.size),
            "RESETS": self.resets,
            "GATE": "portable" if _INTERPRET else "fast" if fast_gate else "exact",
        }

    def grid(self, tile: tiles.Tile) -> tuple[int, int]:
        """Programs: tiles of all sequences, and segments."""
        return self.batch * tiles.num_tiles(self.size, tile.lines), self.count

    def states(
        self,
        theta: Tensor,
        vc: Tensor,
        rows: Tensor,
        columns: Tensor,
        edge: Tensor,
        tile: tiles.Tile,
        *,
        adjoint: bool,
    ) -> Tensor:
        """Find the memory that enters each segment, or the adjoint that enters it from its end.

        Args:
            theta: calibration rows of shape `[B, T, H]`.
            vc: calibration columns of shape `[B, T, H]`.
            rows: v, or dy for the adjoint, of shape `[B, T, H]`.
            columns: k, or q for the adjoint, of shape `[B, T, H]`.
            edge: the initial memory, or the gradient of the final one, of shape `[B, H, H]`.
            tile: shape of the work of one program.
            adjoint: which of the two.

        Returns:
            One state per segment, `[segments, B, H, H]`.
        """
        local = edge.new_empty(self.count, *edge.shape)
        decay = torch.empty_like(local)
        _kernels().segment_kernel[self.grid(tile)](
            theta, vc, rows, columns, self.is_init, decay, local,
            self.batch, self.steps, self.length,
            STAGES=tile.stages, ADJOINT=adjoint, num_warps=tile.warps, ROWS=tile.lines,
            **self.constants,
        )  # fmt: skip
        has_reset = self.is_init
        if self.resets:
            padding = self.count * self.length - self.steps
            padded = torch.nn.functional.pad(self.is_init, (0, padding))
            has_reset = padded.view(self.batch, self.count, self.length).amax(-1)
        elements = self.size * self.size
        block = min(128, 1 << (elements - 1).bit_length())
        _kernels().combine_kernel[(self.batch * -(-elements // block),)](
            edge, decay, local, has_reset, self.batch, self.count,
            SIZE=elements, BLOCK=block, STAGES=tile.stages, RESETS=self.resets, REVERSE=adjoint,
            num_warps=1,
        )  # fmt: skip
        return local
