"""Opt-in: measure tiles on this GPU and use the fastest instead of the table's."""

from __future__ import annotations

import statistics
import time

import torch

from torchrl_shm.ops import _tiles
from torchrl_shm.ops._scan import shm_scan
from torchrl_shm.ops._tiles import Tile


def tune_scan(
    batch: int, steps: int, size: int, *, device: torch.device | str = "cuda", repeats: int = 20
) -> dict[str, Tile]:
    """Replace the tiles of one memory size by the fastest ones for a shape, in this process.

    Every candidate is compiled, which takes seconds each, so nothing is tuned unasked. Results of
    the scan change by rounding only.

    Args:
        batch: sequences per call.
        steps: steps per sequence.
        size: side `H` of the memory.
        device: a CUDA device.
        repeats: calls per candidate; the median counts.

    Returns:
        The chosen tiles, `"forward"` and `"backward"`.

    Raises:
        RuntimeError: the kernels cannot run on the device.

    Examples:
        >>> from torchrl_shm.ops import tune_scan
        >>> tune_scan(64, 1024, 64)  # doctest: +SKIP
        {'forward': Tile(lines=16, warps=1, ...), 'backward': Tile(lines=16, warps=1, ...)}
    """
    inputs = [torch.randn(batch, steps, size, device=device) for _ in range(5)]
    width = _tiles.width(size)

    def milliseconds(train: bool) -> float:
        vectors = [x.detach().requires_grad_(train) for x in inputs]
        times: list[float] = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            y, _ = shm_scan(*vectors, backend="triton")
            if train:
                torch.autograd.grad([y.sum()], vectors)
            # waits for the device
            float(y.detach().flatten()[:1].sum())
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:]) * 1e3

    # forward first: the backward pass is timed together with it
    for table, train in ((_tiles.FORWARD, False), (_tiles.BACKWARD, True)):
        speed: dict[Tile, float] = {}
        for tile in _candidates(width, train):
            table[width] = tile
            speed[tile] = milliseconds(train)
        table[width] = min(speed, key=lambda tile: speed[tile])
    return {"forward": _tiles.FORWARD[width], "backward": _tiles.BACKWARD[width]}


def _candidates(width: int, backward: bool) -> list[Tile]:
    """The table's tile, and others whose elements fit into the registers of a thread."""
    tiles = [(_tiles.BACKWARD if backward else _tiles.FORWARD)[width]]
    for warps in (1, 2, 4):
        for lines in (2, 4, 8, 16, 32):
            elements = lines * width // (32 * warps)
            for chunk in (4, 8) if backward else (8,):
                held = elements * chunk if backward else elements
                if elements >= 1 and held <= (128 if backward else 64) and lines <= width:
                    tiles.append(Tile(lines, warps, chunk))
    return list(dict.fromkeys(tiles))
