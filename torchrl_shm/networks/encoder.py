"""From observations to the features that a memory reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_shm.checks import check_count
from torchrl_shm.networks.image import Convolution, is_image, picture_shape

EncoderFactory = Callable[..., nn.Module]
"""Makes an encoder from `shapes` (of the entries of one step), `output_size` and `device`.

It is called with the entries `[N, *shape]`, in the dtypes of the environment and whatever the
number of steps N is made of, and returns features `[N, output_size]`.
"""


# what is flattened and larger than this was perhaps a picture
_MANY_NUMBERS = 4096


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

    def forward(self, *inputs: Tensor) -> Tensor:
        """Encode entries `[..., *shape]`; features `[..., output_size]` in [-1, 1]."""
        flat = [
            self._flatten(x, dims) if dims != 1 else self.number(x)
            for x, dims in zip(inputs, self.dims, strict=True)
        ]
        return torch.tanh(self.linear(torch.cat(flat, -1)))

    def _flatten(self, x: Tensor, dims: int) -> Tensor:
        x = self.number(x)
        return x.flatten(x.ndim - dims) if dims else x.unsqueeze(-1)

    def number(self, x: Tensor) -> Tensor:
        """Turn an entry `[...]` of any dtype into floats of the same shape; bytes into [0, 1]."""
        dtype = self.linear.weight.dtype
        return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


class FourierEncoder(nn.Module):
    """Gives an `Encoder` sines and cosines of every number beside the numbers themselves.

    What a network of smooth functions makes of positions changes too slowly for goals that are
    small beside the distances, as the values of actions near them do
    ([Tancik et al., 2020](https://arxiv.org/abs/2006.10739), for reinforcement learning
    [Yang et al., 2022](https://arxiv.org/abs/2206.04672)). Numbers should be of the order of 1.

    Args:
        shapes: shape of each entry of one step.
        output_size: number of features.
        device: device of the parameters.
        num_octaves: number of frequencies: 1, 2, 4, ... radians per unit.

    Raises:
        ValueError: `num_octaves` is no positive whole number.

    Examples:
        >>> import torch
        >>> from torchrl_shm.networks import FourierEncoder
        >>> encoder = FourierEncoder([torch.Size((2,))], 64)
        >>> encoder(torch.zeros(10, 5, 2)).shape
        torch.Size([10, 5, 64])
    """

    frequencies: Tensor

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        output_size: int,
        device: torch.device | str | None = None,
        num_octaves: int = 6,
    ) -> None:
        super().__init__()
        check_count("num_octaves", num_octaves)
        self.register_buffer(
            "frequencies", 2.0 ** torch.arange(num_octaves, device=device), persistent=False
        )
        waves = [torch.Size((*shape, 2 * num_octaves)) for shape in shapes]
        self.encoder = Encoder([*shapes, *waves], output_size, device)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Encode entries `[..., *shape]`; features `[..., output_size]` in [-1, 1]."""
        angles = [self.encoder.number(x).unsqueeze(-1) * self.frequencies for x in inputs]
        return self.encoder(*inputs, *(torch.cat([x.sin(), x.cos()], -1) for x in angles))


class ImageEncoder(nn.Module):
    """Sends each image through a convolution of its own, and all entries through an `Encoder`.

    An entry is an image where its shape is `[H, W, C]` or `[C, H, W]`, or a stack of such, see
    `is_image`; others are flattened. Bytes become [0, 1].

    Args:
        shapes: shape of each entry of one step.
        output_size: number of features.
        device: device of the parameters.

    Raises:
        ValueError: no entry is an image.

    Examples:
        >>> import torch
        >>> from torchrl_shm.networks import ImageEncoder
        >>> encoder = ImageEncoder([torch.Size((84, 84, 3)), torch.Size((2,))], 64)
        >>> encoder(torch.zeros(10, 84, 84, 3, dtype=torch.uint8), torch.zeros(10, 2)).shape
        torch.Size([10, 64])
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        output_size: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        images = {str(i): shape for i, shape in enumerate(shapes) if is_image(shape)}
        if not images:
            raise ValueError(
                f"network.encoder=image needs an image, [H, W, C] or [C, H, W] with sides of at "
                f"least 5 and fewer channels; entries are {[list(shape) for shape in shapes]}: use "
                "auto or flat"
            )
        nets = {i: Convolution(shape, device) for i, shape in images.items()}
        self.convolutions = nn.ModuleDict(nets)
        sizes = {i: torch.Size((net.size,)) for i, net in nets.items()}
        inputs = [sizes.get(str(i), shape) for i, shape in enumerate(shapes)]
        self.encoder = Encoder(inputs, output_size, device)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Encode entries `[N, *shape]`; features `[N, output_size]` in [-1, 1]."""
        seen = list(inputs)
        for i, convolution in self.convolutions.items():
            seen[int(i)] = convolution(seen[int(i)])
        return self.encoder(*seen)


class Rows(nn.Module):
    """Calls an encoder with all steps of all sequences as the rows of one batch.

    Args:
        encoder: maps entries `[N, *shape]` to features `[N, output_size]`.
        shapes: shape of each entry of one step.
        seen: the shapes in which the encoder gets them, if these are others.
    """

    def __init__(
        self,
        encoder: nn.Module,
        shapes: Sequence[torch.Size],
        seen: Sequence[torch.Size] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.shapes = list(shapes)
        self._seen = list(seen or shapes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Encode entries `[..., *shape]`; features `[..., output_size]`."""
        batch = inputs[0].shape[: inputs[0].ndim - len(self.shapes[0])]
        rows = [x.reshape(-1, *shape) for x, shape in zip(inputs, self._seen, strict=True)]
        y = self.encoder(*rows)
        return y.reshape(*batch, y.shape[-1])


def make_encoder(
    encoder: EncoderFactory | str,
    shapes: Sequence[torch.Size],
    dtypes: Sequence[torch.dtype],
    output_size: int,
    device: torch.device | str | None,
) -> nn.Module:
    """Make an encoder by its name or its factory.

    Args:
        encoder: `auto`, `flat`, `fourier` or `image`, or a factory.
        shapes: shape of each entry of one step.
        dtypes: dtype of each entry.
        output_size: number of features.
        device: device of the parameters.

    Returns:
        A module that maps entries `[..., *shape]` to features `[..., output_size]`.

    Raises:
        TypeError: `encoder` is neither a name nor a factory, or its factory makes no module.
        ValueError: the name is unknown, there is no image, or features have another shape.

    Warns:
        UserWarning: `auto` flattens an entry that is large enough to be a picture.
    """
    options: Any = {"shapes": shapes, "output_size": output_size, "device": device}
    seen = [picture_shape(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    if encoder == "auto":
        _warn_of_large(seen)
    if encoder == "flat" or (encoder == "auto" and not any(map(is_image, seen))):
        return Encoder(**options)
    if encoder == "fourier":
        return FourierEncoder(**options)
    if encoder in ("auto", "image"):
        return Rows(ImageEncoder(seen, output_size, device), shapes, seen)
    if isinstance(encoder, str):
        raise ValueError(
            f"network.encoder={encoder!r} is unknown; choose auto, flat, fourier or image, or name "
            "your own by network.encoder='{_target_: package.Name, _partial_: true}'"
        )
    if isinstance(encoder, nn.Module) or not callable(encoder):
        raise TypeError(
            f"network.encoder is a {type(encoder).__name__}; pass what makes it, such as its class "
            "or a functools.partial (on the command line _partial_: true), called with shapes, "
            "output_size and device"
        )
    made = encoder(**options)
    if not isinstance(made, nn.Module):
        raise TypeError(f"network.encoder made a {type(made).__name__}; it must be an nn.Module")
    rows = Rows(made, shapes)
    zeros = [
        torch.zeros(2, *shape, dtype=dtype, device=device)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    with torch.no_grad():
        found = made(*zeros)
    if found.shape != (2, output_size):
        raise ValueError(
            f"network.encoder={type(made).__name__} gives {list(found.shape)} for 2 steps, "
            f"expected [2, {output_size}], with output_size features each"
        )
    return rows


def _warn_of_large(shapes: Sequence[torch.Size]) -> None:
    for shape in shapes:
        if len(shape) > 1 and shape.numel() > _MANY_NUMBERS and not is_image(shape):
            warnings.warn(
                f"an observation {list(shape)} is no image for network.encoder=auto and is "
                f"flattened, {shape.numel():,} numbers; network.encoder=flat agrees to that, or "
                "name an encoder of your own",
                stacklevel=2,
            )
