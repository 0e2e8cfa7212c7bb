"""What reads a memory: networks for actions and for values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import log
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tensordict import NestedKey
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor
from tensordict.nn import TensorDictSequential as Sequential
from torch import Tensor, distributions, nn
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
)
from torchrl.modules import (
    IndependentNormal,
    MaskedCategorical,
    MaskedOneHotCategorical,
    OneHotCategorical,
    ProbabilisticActor,
    recurrent_mode,
)
from torchrl.objectives import A2CLoss

from torchrl_shm.checks import ACTION_MASK, check_option
from torchrl_shm.networks.policy import Layer
from torchrl_shm.torchrl_private import find_caller

ActionScale = Literal["global", "state"]
"""Where the standard deviation of a continuous action comes from: `"global"`, a parameter of its
own, one for all states, or `"state"`, an output of the network, so that an agent that searches may
be less sure than one that has found."""

HEAD_KEYS: list[NestedKey] = ["features", "embedding"]
"""Entries that a head reads: the output of the memory, and the embedding of the current step."""


def _forbidden(logits: Tensor) -> float:
    """A logit without a chance; finite, for losses multiply it with the probability 0."""
    # float16 ends at -65504, and has to have room for twice of it
    return max(-1e9, torch.finfo(logits.dtype).min / 4)


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


class _StateScale(nn.Module):
    """Split `[..., 2 N]` into means and standard deviations, `[..., N]` each.

    Zeros give `init_scale`. The least is a fifteenth of it: a density without a bound would let a
    policy that has become sure run away. A state that is there has no gradient of its own, and
    leaves it by what is learned in others.
    """

    def __init__(self, init_scale: float) -> None:
        super().__init__()
        # the map of the library has a unit of its own, in which small and large ones are not exact
        least: Any = 0.02
        self.extractor = NormalParamExtractor("biased_softplus_0.3", least)
        self.unit = init_scale / 0.3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.extractor(x)
        return loc, scale * self.unit


def make_actor(
    spec: TensorSpec,
    sizes: tuple[int, ...],
    init_scale: float,
    device: torch.device | str | None,
    mask_size: int | None = None,
    action_scale: ActionScale = "global",
) -> ProbabilisticActor:
    """Build the action head that suits a spec.

    Continuous actions of any shape are Gaussian and not bounded: environments clip them, and the
    log-probability is that of the number before. Indices are categorical, and several of them, of
    any number of choices each, are independent of each other, as are bits. The log-probability is
    one number per step for all of them.

    Args:
        spec: of one environment's action: `Bounded` or `Unbounded` numbers, `Categorical`,
            `MultiCategorical`, `Binary` or `OneHot`, of any shape.
        sizes: number of features, number of all inputs, and widths of the hidden layers.
        init_scale: initial standard deviation of continuous actions, in units of the action.
        device: device of the parameters.
        mask_size: number of flags of the entry `ACTION_MASK`, bool, which says what may be chosen;
            `None` where there is none.
        action_scale: see `ActionScale`; continuous actions only.

    Returns:
        An actor that reads `HEAD_KEYS`, and the mask, and writes `action` and its log-probability.

    Raises:
        TypeError: actions of this kind are not supported.
        ValueError: the mask has not one flag per choice, or `action_scale` is unknown.
    """
    check_option("network.action_scale", action_scale, ActionScale)
    size, keys, distribution = _head_of(spec, mask_size is not None)
    if mask_size not in (None, size) or (mask_size and keys != ["logits"]):
        raise ValueError(
            f"{ACTION_MASK!r} of {mask_size} flags does not fit actions like {spec}: it needs one "
            "flag per choice of an index, of several indices one block after the other"
        )
    continuous = keys == ["loc", "scale"]
    of_state = continuous and action_scale == "state"
    outputs = 2 * size if of_state else size
    head: list[Any] = [Layer(Head((*sizes, outputs), 0.01, device), HEAD_KEYS, keys[:1])]
    if continuous:
        scale = (
            _StateScale(init_scale)
            if of_state
            else AddStateIndependentNormalScale(size, init_value=log(init_scale)).to(device)
        )
        head.append(Layer(scale, ["loc"], keys))
    masked: Any = {"mask": ACTION_MASK} if mask_size else {}
    return ProbabilisticActor(
        Sequential(*head),
        in_keys={str(key): key for key in keys} | masked,
        distribution_class=distribution,
        return_log_prob=True,
        cache_dist=False,
    )


def _head_of(spec: Any, masked: bool) -> tuple[int, list[NestedKey], Any]:
    """Number of outputs, the entries that parametrize the distribution, and the distribution."""
    # what is derived of another one stands before it
    match spec:
        case Bounded() | Unbounded() if spec.dtype.is_floating_point:
            make = IndependentNormal
            if len(spec.shape) != 1:
                make = partial(_normal_of_shape, shape=spec.shape)
            return spec.shape.numel(), ["loc", "scale"], make
        case Categorical() if not spec.shape:
            make = partial(distributions.Categorical, validate_args=False)
            if masked:
                make = partial(_with_mask, make=MaskedCategorical)
            return int(spec.n), ["logits"], make
        case MultiCategorical():
            choices = [int(n) for n in spec.nvec.flatten()]
        case Categorical():
            # also bits
            choices = [2 if isinstance(spec, Binary) else int(spec.n)] * spec.shape.numel()
        case OneHot() if not isinstance(spec, MultiOneHot) and len(spec.shape) == 1:
            make = OneHotCategorical
            if masked:
                make = partial(_with_mask, make=MaskedOneHotCategorical)
            return spec.shape[-1], ["logits"], make
        case _:
            raise TypeError(
                f"actions of {type(spec).__name__} {list(spec.shape)}, {spec.dtype}, are not "
                "supported: it takes a continuous action, an index or several (Categorical, "
                "MultiCategorical), or bits (Binary); TorchRL's GymEnv makes indices with "
                "categorical_action_encoding=True"
            )
    make = partial(Choices, sizes=choices, shape=spec.shape, dtype=spec.dtype)
    return sum(choices), ["logits"], make


def _with_mask(logits: Tensor, mask: Tensor, *, make: Any) -> Any:
    """A distribution of TorchRL whose logits say what is forbidden."""
    return make(logits=logits, mask=mask, neg_inf=_forbidden(logits))


def _normal_of_shape(loc: Tensor, scale: Tensor, *, shape: torch.Size) -> IndependentNormal:
    """A Gaussian whose parts have a shape other than a row."""
    loc, scale = (x.reshape(*x.shape[:-1], *shape) for x in (loc, scale))
    return IndependentNormal(loc, scale, event_dim=len(shape))


class Choices(distributions.Independent):  # pyright: ignore[reportMissingTypeArgument]
    """Several indices, independent of each other, with any number of choices each.

    Args:
        logits: `[..., N]`, one block after the other.
        sizes: number of choices of each index, whose sum is N.
        shape: shape of a sample, with as many elements as there are sizes.
        dtype: dtype of a sample.
        mask: what may be chosen, bool of the shape of `logits`; `None` for all of it.

    Examples:
        >>> import torch
        >>> from torchrl_shm.networks.heads import Choices
        >>> dist = Choices(torch.zeros(4, 5), sizes=(2, 3), shape=(2,), dtype=torch.int64)
        >>> dist.sample().shape, dist.log_prob(dist.sample()).exp()
        (torch.Size([4, 2]), tensor([0.1667, 0.1667, 0.1667, 0.1667]))
    """

    def __init__(
        self,
        logits: Tensor,
        *,
        sizes: Sequence[int],
        shape: Sequence[int],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> None:
        if mask is not None:
            logits = logits.masked_fill(~mask, _forbidden(logits))
        widest = max(sizes)
        if min(sizes) < widest:
            # blocks of equal size: what is missing has no chance, also beside what a mask forbids
            rows = [
                F.pad(block, (0, widest - block.shape[-1]), value=2 * _forbidden(logits))
                for block in logits.split(list(sizes), -1)
            ]
            logits = torch.cat(rows, -1)
        blocks = logits.reshape(*logits.shape[:-1], *shape, widest)
        self.dtype = dtype
        base = distributions.Categorical(logits=blocks, validate_args=False)
        super().__init__(base, len(shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw indices `[*sample_shape, ..., *shape]`."""
        return super().sample(torch.Size(sample_shape)).to(self.dtype)

    @property
    def mode(self) -> Tensor:
        """The most likely indices `[..., *shape]`."""
        return super().mode.to(self.dtype)

    @property
    def deterministic_sample(self) -> Tensor:
        """The same, for TorchRL."""
        return self.mode
