"""Where the pieces between two resets start and end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """Rows of `T` steps, cut where a reset or a new row starts.

    Attributes:
        first: flat index `b * T + t` of the first step of each piece, of shape `[pieces]`.
        piece: the piece in which each step stands, of shape `[B * T]`.
        step: which step of its piece each step is, of shape `[B * T]`.
    """

    first: Tensor
    piece: Tensor
    step: Tensor


def cut_at_resets(is_init: Tensor) -> Pieces:
    """Cut rows into pieces, so that none holds a reset but at its first step.

    Args:
        is_init: bool of shape `[B, T]`, `T >= 1`.

    Returns:
        The pieces, row by row in the order of time.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules._slices import cut_at_resets
        >>> pieces = cut_at_resets(torch.tensor([[False, False, True], [True, False, False]]))
        >>> pieces.first.tolist(), pieces.piece.tolist(), pieces.step.tolist()
        ([0, 2, 3], [0, 0, 1, 2, 2, 2], [0, 1, 0, 0, 1, 2])
    """
    starts = is_init.clone()
    starts[:, 0] = True
    starts = starts.flatten()
    first = starts.nonzero().squeeze(1)
    piece = starts.cumsum(0) - 1
    step = torch.arange(len(starts), device=starts.device) - first[piece]
    return Pieces(first, piece, step)
