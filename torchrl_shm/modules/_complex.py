"""One step of a complex recurrence in real numbers, which exported programs can hold."""

from __future__ import annotations

import torch
from torch import Tensor


def real_step(decay: Tensor, angle: Tensor, memory: Tensor, added: Tensor) -> Tensor:
    """`exp(decay + i angle) * memory + added`; ONNX has no complex numbers.

    Args:
        decay: logarithm of the modulus of the factor, of shape `[...]`.
        angle: its angle, of shape `[...]`.
        memory: real and imaginary parts of shape `[B, ..., 2]`.
        added: the same.

    Returns:
        The new memory, of shape `[B, ..., 2]`.
    """
    modulus = decay.exp()
    real, imaginary = modulus * angle.cos(), modulus * angle.sin()
    x, y = memory.unbind(-1)
    return torch.stack([real * x - imaginary * y, real * y + imaginary * x], -1) + added
