"""Which tiles the CUDA kernels use: a static table, and the measurement that can replace a line."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SIZE = 256
"""Largest side of a memory: one tile must fit into the registers of a block."""

STORE = 8
"""Steps between two states that the forward kernel stores."""

# what the partial sums of a launch of the backward kernel may take, in bytes
_PARTIAL_BYTES = 64 * 2**20

# what CUDA allows along the grid's second dimension
_MAX_SEGMENTS = 65_535

# programs that fill a large GPU (132 multiprocessors, four schedulers each)
_PROGRAMS = 528
# a segment shorter than this is not worth the extra pass that finds its entering state
_MIN_SEGMENT = 64


@dataclass(frozen=True)
class Tile:
    """Shape of the work of one program.

    Attributes:
        lines: rows of the memory per program; columns in the backward kernel.
        warps: warps per program.
        chunk: steps that the backward kernel holds in registers, `STORE` at most; the others do
            not look at it.
        stages: steps that are loaded ahead.
    """

    lines: int
    warps: int = 1
    chunk: int = 8
    stages: int = 3


# per width, a power of two: tiles of the forward and of the backward kernel. Registers and spills
# of each are checked by compiling them.
FORWARD: dict[int, Tile] = {
    16: Tile(16),
    32: Tile(16),
    64: Tile(16),
    128: Tile(8),
    256: Tile(4),
}
BACKWARD: dict[int, Tile] = {
    16: Tile(16),
    32: Tile(16),
    64: Tile(16, chunk=4),
    128: Tile(8, chunk=4),
    256: Tile(4, chunk=4),
}


def width(size: int) -> int:
    """Length of a tile's lines: the power of two that holds `size`, and a half-warp at least."""
    return max(16, 1 << (size - 1).bit_length())


def forward_tile(batch: int, size: int) -> Tile:
    """Tile of the forward kernel: with few sequences of fewer rows, for more programs."""
    tile = FORWARD[width(size)]
    if batch * num_tiles(size, tile.lines) < _PROGRAMS:
        return Tile(min(tile.lines, 4), tile.warps, tile.chunk, tile.stages)
    return tile


def backward_tile(size: int) -> Tile:
    """Tile of the backward kernel."""
    return BACKWARD[width(size)]


def num_tiles(size: int, lines: int) -> int:
    """Tiles of a memory."""
    return -(-size // lines)


def backward_span(sequences: int, size: int) -> int:
    """Steps per launch of the backward kernel, a multiple of `STORE`: it bounds the partial sums.

    Args:
        sequences: sequences, or all segments of all of them.
        size: side of the memory.

    Returns:
        As many steps as have partial sums of 64 MiB, and `STORE` at least.
    """
    tiles = num_tiles(size, backward_tile(size).lines)
    # two sums of `size` float32 numbers per sequence, step and tile
    steps = _PARTIAL_BYTES // (8 * tiles * sequences * size)
    return max(1, steps // STORE) * STORE


def segment_length(batch: int, steps: int, size: int, segments: int | None) -> int:
    """Steps per segment of time that work in parallel: all, or a multiple of `STORE`.

    The rule: as many segments as it takes to fill a large GPU with programs, but none shorter than
    64 steps, and only where the batch fills less than half of it. One segment is the plain scan,
    which needs no pass to find the entering states.

    Args:
        batch: sequences.
        steps: steps per sequence.
        size: side of the memory.
        segments: number of segments instead of the rule's.

    Returns:
        Steps per segment.
    """
    if segments is None:
        programs = max(1, batch * num_tiles(size, FORWARD[width(size)].lines))
        fitting = min(_PROGRAMS // programs, steps // _MIN_SEGMENT)
        segments = fitting if fitting >= 2 else 1
    if segments == 1:
        return max(1, steps)
    length = -(-max(1, steps) // min(segments, _MAX_SEGMENTS))
    return -(-length // STORE) * STORE
