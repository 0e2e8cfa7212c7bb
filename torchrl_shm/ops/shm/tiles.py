"""Which tiles, spans and segments the CUDA kernels use: static tables and rules."""

from __future__ import annotations

from torchrl_shm.ops.shm.backend import STORE

MAX_SIZE = 256
"""Largest side of a memory: one tile must fit into the registers of a program."""

LINES = {16: 16, 32: 16, 64: 16, 128: 8, 256: 4}
"""By width: rows per tile of the forward kernel, columns per tile of the backward kernel."""

CHUNK = {16: 8, 32: 8, 64: 4, 128: 4, 256: 4}
"""By width: steps that the backward kernel holds in registers, `STORE` at most."""

WARPS = 1
"""Warps per program. The registers and spills of every tile are checked by compiling it."""

STAGES = 3
"""Steps that the kernels load ahead."""

# bytes that the partial sums of one launch of the backward kernel may take
_PARTIAL_BYTES = 64 * 2**20
# what CUDA allows along the second dimension of a grid
_MAX_SEGMENTS = 65_535
# programs that fill a large GPU (132 multiprocessors, four schedulers each)
_PROGRAMS = 528
# a shorter segment is not worth the extra pass that finds its entering state
_MIN_SEGMENT = 64


def width(size: int) -> int:
    """Length of a line of a tile: the smallest power of two from `size` on, and at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def forward_lines(batch: int, size: int) -> int:
    """Rows per tile of the forward kernel: with few sequences fewer, which makes more programs."""
    lines = LINES[width(size)]
    return lines if batch * num_tiles(size, lines) >= _PROGRAMS else min(lines, 4)


def num_tiles(size: int, lines: int) -> int:
    """Count the tiles of a memory."""
    return -(-size // lines)


def backward_span(sequences: int, size: int) -> int:
    """Steps per launch of the backward kernel, a multiple of `STORE`, to bound its partial sums.

    Args:
        sequences: number of sequences, or of segments if they are divided.
        size: side of the memory.

    Returns:
        As many steps as have partial sums of 64 MiB, at least `STORE`.
    """
    tiles = num_tiles(size, LINES[width(size)])
    # two sums of `size` float32 numbers per sequence, step and tile
    steps = _PARTIAL_BYTES // (8 * tiles * sequences * size)
    return max(1, steps // STORE) * STORE


def segment_length(batch: int, steps: int, size: int, segments: int | None) -> int:
    """Steps per segment, the parts of time that run in parallel: all, or a multiple of `STORE`.

    The rule: as many segments as it takes to fill a large GPU with programs, but none shorter than
    64 steps, and only where the batch fills less than half of it. One segment is the plain scan,
    which needs no pass to find the entering states.

    Args:
        batch: number of sequences.
        steps: steps per sequence.
        size: side of the memory.
        segments: number of segments, at most; `None` for the rule.

    Returns:
        Steps per segment.
    """
    if segments is None:
        programs = max(1, batch * num_tiles(size, LINES[width(size)]))
        fitting = min(_PROGRAMS // programs, steps // _MIN_SEGMENT)
        segments = fitting if fitting >= 2 else 1
    if segments == 1:
        return max(1, steps)
    length = -(-max(1, steps) // min(segments, _MAX_SEGMENTS))
    return -(-length // STORE) * STORE
