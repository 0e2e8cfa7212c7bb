"""What memories share: norms of inputs, features of keys and queries, and how they are read."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FeatureMap = Literal["relu", "softplus", "identity"]
"""The function that makes keys and queries of features.

`"relu"`, as released, makes them positive, and `"softplus"`, a ReLU whose corner is round,
`log(1 + exp(5 x)) / 5`, does so with a gradient for columns just below zero. `"identity"` leaves
their signs: any two keys can be orthogonal from the start, and none is silent.
"""

QKNorm = Literal["sum", "l2"]
"""What keys and queries are divided by: their sum, as released, or their length.

Divided by its sum, a key finds the less of what was written under it the more columns it is spread
over; divided by its length it finds all of it, `k @ k = 1`. A length below 0.1 counts as 0.1.
"""

# keeps the sum from zero, of a ReLU that silences every unit for example
_EPS = 1e-5
# of the length: what is shorter is nearly silent, and its gradient would be as large as it is short
_SHORTEST = 0.1
# of the round corner: features of a new cell have a standard deviation of about 0.6
_SHARPNESS = 5.0


def input_norm(input_size: int, advice: str = "", **factory: Any) -> nn.LayerNorm:
    """Make the LayerNorm with which a memory begins, where it leaves something to remember.

    Args:
        input_size: number of features.
        advice: what else can be done about too few, appended to the message.
        **factory: device and dtype of the parameters.

    Returns:
        The norm over `input_size` features.

    Raises:
        ValueError: of one feature nothing would be left, of two only which is the larger.
    """
    left = {1: "nothing of one feature", 2: "only a sign of two features"}.get(input_size)
    if left is not None:
        raise ValueError(
            f"input_size={input_size}: this memory begins with a LayerNorm, which leaves {left}. "
            f"Embed first, e.g. with torch.nn.Sequential(torch.nn.Linear({input_size}, 32), "
            f"torch.nn.Tanh()){advice}"
        )
    return nn.LayerNorm(input_size, **factory)


def elu_plus_one(x: Tensor) -> Tensor:
    """Positive features `elu(x) + 1`, which stay positive where the sum would round to zero.

    Args:
        x: any shape.

    Returns:
        `x + 1` where `x` is positive, else `exp(x)`; same shape.
    """
    return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))


def sum_to_one(x: Tensor) -> Tensor:
    """Divide features `[..., H]` that are not negative by their sum."""
    return x / (_EPS + x.sum(-1, keepdim=True))


def read_matrix(memory: Tensor, x: Tensor) -> Tensor:
    """Multiply matrices `[..., V, K]` with vectors `[..., K]`."""
    return (memory @ x.unsqueeze(-1)).squeeze(-1)


class _PassOn(torch.autograd.Function):
    """The weights as they are; features get the gradients of those that are zero together."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, x: Tensor) -> Tensor:
        del x
        return weights.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (weights,), (grad,) = ctx.saved_tensors, grads
        return grad, grad * (weights.sum(-1, keepdim=True) == 0)


def column_weights(x: Tensor, feature_map: FeatureMap, qk_norm: QKNorm, revive: bool) -> Tensor:
    """Weights of columns: what a feature map makes of `x`, divided by its sum or its length.

    Where nothing is positive all weights of `"relu"` are zero, and so is their gradient with
    respect to `x`: nothing that is learned from such features brings them back.

    Args:
        x: features of shape `[..., H]`.
        feature_map: see `FeatureMap`.
        qk_norm: see `QKNorm`.
        revive: with `"relu"`, pass the gradient on where nothing is positive, as though the weights
            were the features themselves. The weights are the same.

    Returns:
        Weights of shape `[..., H]`, whose sum or length is one, or less where features are all but
        zero.
    """
    if feature_map == "relu":
        y = torch.relu(x)
    else:
        y = x if feature_map == "identity" else F.softplus(x, beta=_SHARPNESS)
    weights = F.normalize(y, dim=-1, eps=_SHORTEST) if qk_norm == "l2" else sum_to_one(y)
    learns = revive and feature_map == "relu" and torch.is_grad_enabled()
    return _PassOn.apply(weights, x) if learns else weights
