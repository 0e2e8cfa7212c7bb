"""From observations to the features that a memory reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Encoder(nn.Module):
    """Flattens and concatenates entries, and maps them to features; bytes become [0, 1].

    Args:
        shapes: shape of each entry of one step.
        output_size: number of features.
        device: device of the parameters.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        output_size: int,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.dims = [len(shape) for shape in shapes]
        size = sum(shape.numel() for shape in shapes)
        self.linear = nn.Linear(size, output_size, device=device)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Encode entries `[..., *shape]`; features `[..., output_size]` in [-1, 1]."""
        flat = [
            self._number(x).flatten(x.ndim - dims) if dims > 1 else self._number(x)
            for x, dims in zip(inputs, self.dims, strict=True)
        ]
        return torch.tanh(self.linear(torch.cat(flat, -1)))

    def _number(self, x: torch.Tensor) -> torch.Tensor:
        dtype = self.linear.weight.dtype
        return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)
