"""Images among observations: which they are, and a convolution that takes them of any size."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

# smaller ones are no pictures, and a convolution would gain nothing
_SMALLEST_SIDE = 5
# of pictures without channels: smaller ones may well be tables
_SMALLEST_GRAY_SIDE = 16
# sides are halved until none is longer
_LONGEST_SIDE = 8
_CHANNELS = (16, 32)


def is_image(shape: torch.Size) -> bool:
    """Whether an entry is an image, `[H, W, C]` or `[C, H, W]`, or a stack of S, `[S, ...]`.

    Sides are at least 5, and there are fewer channels than rows and columns, by which the two
    orders are told apart; and so are there fewer images in a stack.

    Args:
        shape: shape of the entry.

    Examples:
        >>> import torch
        >>> from torchrl_shm.networks import is_image
        >>> [is_image(torch.Size(x)) for x in ((84, 84, 3), (3, 5, 5), (4, 84, 84, 3))]
        [True, True, True]
        >>> [is_image(torch.Size(x)) for x in ((4, 4, 3), (84, 84))]
        [False, False]
    """
    return _channel_dim(shape) is not None


def _channel_dim(shape: torch.Size) -> int | None:
    """Where the channels of an image are, -1 or -3; `None` for what is no image."""
    if len(shape) not in (3, 4):
        return None
    for dim, sides in ((-1, shape[-3:-1]), (-3, shape[-2:])):
        counts = (shape[dim], *shape[:-3])
        if min(sides) >= _SMALLEST_SIDE and 0 < min(counts) <= max(counts) < min(sides):
            return dim
    return None


def picture_shape(shape: torch.Size, dtype: torch.dtype) -> torch.Size:
    """The shape in which an encoder sees an entry: gray pictures of bytes get a channel.

    Args:
        shape: shape of the entry.
        dtype: its dtype.

    Returns:
        `[1, H, W]` of bytes `[H, W]` with sides of at least 16, and else `shape`.
    """
    gray = dtype == torch.uint8 and len(shape) == 2 and min(shape) >= _SMALLEST_GRAY_SIDE
    return torch.Size((1, *shape)) if gray else shape


class Convolution(nn.Module):
    """Kernels of 3 by 3 that halve the sides of an image until they are 8 at most.

    The first layer has 16 channels and the others 32; an image that is small enough gets one layer,
    which leaves its sides as they are. Images of a stack are channels of one. Initialized as heads
    are, orthogonally.

    Args:
        shape: of an image, see `is_image`.
        device: device of the parameters.

    Attributes:
        size: number of features.

    Examples:
        >>> import torch
        >>> from torchrl_shm.networks import Convolution
        >>> convolution = Convolution(torch.Size((3, 64, 64)))
        >>> convolution(torch.zeros(10, 3, 64, 64)).shape, convolution.size
        (torch.Size([10, 2048]), 2048)
    """

    def __init__(self, shape: torch.Size, device: torch.device | str | None = None) -> None:
        super().__init__()
        dim = _channel_dim(shape)
        if dim is None:
            raise ValueError(f"shape={list(shape)} is that of no image")
        self._last = dim == -1
        sides = list(shape[-3:-1] if self._last else shape[-2:])
        strides: list[int] = []
        while max(sides) > _LONGEST_SIDE:
            sides = [(side + 1) // 2 for side in sides]
            strides.append(2)
        strides = strides or [1]
        first = shape[dim] * shape[:-3].numel()
        channels = [first, _CHANNELS[0], *(_CHANNELS[1] for _ in strides[1:])]
        layers: list[nn.Module] = []
        for (before, after), stride in zip(pairwise(channels), strides, strict=True):
            layer = nn.Conv2d(before, after, 3, stride, padding=1, device=device)
            nn.init.orthogonal_(layer.weight, 2**0.5)
            bias: Any = layer.bias
            nn.init.zeros_(bias)
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.size = channels[-1] * sides[0] * sides[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[N, *shape]` to features `[N, size]`; bytes become [0, 1]."""
        weight: Any = self.layers[0].weight
        x = x.to(weight.dtype) / 255 if x.dtype == torch.uint8 else x.to(weight.dtype)
        x = x.movedim(-1, -3) if self._last else x
        return self.layers(x.flatten(1, -3)).flatten(1)
