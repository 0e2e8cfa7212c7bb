"""What reads a memory: networks for actions and for values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import log
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import AddStateIndependentNormalScale
from tensordict.nn import TensorDictSequential as Sequential
from torch import distributions, nn
from torchrl.data import Bounded, Categorical, MultiCategorical, TensorSpec, Unbounded
from torchrl.modules import IndependentNormal, ProbabilisticActor, recurrent_mode
from torchrl.objectives import A2CLoss

from torchrl_shm.networks.policy import Layer
from torchrl_shm.torchrl_private import find_caller

HEAD_KEYS: list[NestedKey] = ["features", "embedding"]
"""Entries that a head reads: the output of the memory, and the embedding of the current step."""


class Head(nn.Module):
    """A tanh network over features and more, with the orthogonal initialization usual for PPO.

    The features of a memory are normalized first (`LayerNorm`): their size differs between
    memories, and for one that adds up what it is told, as SHM does, it grows with the episode.

    Args:
        sizes: number of features, number of all inputs, widths of the hidden layers, number of
            outputs.
        gain: gain of the last layer at initialization.
        device: device of the parameters.
        trains_inputs: whether the head has to train what made its inputs: `A2CLoss` would give it
            those of the collection, through which no gradient flows, and is refused.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        gain: float,
        device: torch.device | str | None,
        trains_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.trains_inputs = trains_inputs
        layers: list[nn.Module] = []
        self.norm = nn.LayerNorm(sizes[0], device=device)
        for size, next_size in pairwise(sizes[1:]):
            linear = nn.Linear(size, next_size, device=device)
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
        # the last layer has its own gain and no activation
        layers.pop()
        last: Any = layers[-1]
        nn.init.orthogonal_(last.weight, gain)
        self.layers = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Map features `[..., sizes[0]]`, and further inputs, to `[..., sizes[-1]]`."""
        if self.trains_inputs and torch.is_grad_enabled() and recurrent_mode():
            _refuse_collected((features, *inputs))
        return self.layers(torch.cat([self.norm(features), *inputs], -1))


def _refuse_collected(inputs: tuple[torch.Tensor, ...]) -> None:
    if not any(x.requires_grad for x in inputs) and find_caller(A2CLoss.forward):
        raise RuntimeError(
            "A2CLoss gives the value head the features of the collection, through which no "
            "gradient reaches the memory: give the loss operator.get_value_operator(), or run "
            "torchrl_shm.unroll(operator, rollouts) before it"
        )


def make_actor(
    spec: TensorSpec, sizes: tuple[int, ...], init_scale: float, device: torch.device | str | None
) -> ProbabilisticActor:
    """Build the action head that suits a spec.

    Args:
        spec: of one environment's action: continuous, an index, or several indices.
        sizes: number of features, number of all inputs, and widths of the hidden layers.
        init_scale: initial standard deviation of continuous actions, in units of the action.
        device: device of the parameters.

    Returns:
        An actor that reads `HEAD_KEYS` and writes `action` and its log-probability.

    Raises:
        TypeError: actions of this kind are not supported.
    """
    head: list[Any]
    if isinstance(spec, (Bounded, Unbounded)) and spec.dtype.is_floating_point:
        size = spec.shape[-1]
        scale = AddStateIndependentNormalScale(size, init_value=log(init_scale)).to(device)
        head = [
            Layer(Head((*sizes, size), 0.01, device), HEAD_KEYS, ["loc"]),
            Layer(scale, ["loc"], ["loc", "scale"]),
        ]
        in_keys, distribution = ["loc", "scale"], IndependentNormal
    elif isinstance(spec, Categorical) and not spec.shape:
        head = [Layer(Head((*sizes, spec.n), 0.01, device), HEAD_KEYS, ["logits"])]
        in_keys, distribution = ["logits"], partial(distributions.Categorical, validate_args=False)
    elif isinstance(spec, MultiCategorical) and len(set(spec.nvec.tolist())) == 1:
        count, choices = spec.shape[-1], int(spec.nvec[0])
        net = Head((*sizes, count * choices), 0.01, device)
        head = [Layer(net, HEAD_KEYS, ["logits"])]
        in_keys, distribution = ["logits"], partial(_independent_categoricals, count=count)
    else:
        raise TypeError(
            f"actions like {spec} are not supported: it takes a continuous action, an index "
            "(Categorical), or several indices of equal sizes (MultiCategorical); TorchRL's "
            "GymEnv makes indices with categorical_action_encoding=True"
        )
    return ProbabilisticActor(
        Sequential(*head),
        in_keys=in_keys,
        distribution_class=distribution,
        return_log_prob=True,
        cache_dist=False,
    )


def _independent_categoricals(logits: torch.Tensor, *, count: int) -> distributions.Distribution:
    """`count` indices, each with its own block of logits."""
    blocks = logits.unflatten(-1, (count, -1))
    return distributions.Independent(distributions.Categorical(logits=blocks), 1)
