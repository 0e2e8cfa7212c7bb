"""Observations in units of how much they vary, by statistics that are part of the policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchrl_shm.networks.policy import Layer

# as in VecNormV2: of what has not varied yet
_SMALLEST_SCALE = 1e-4
# what hardly ever varied would be larger than all the rest
_LARGEST = 10.0


class Moments(NamedTuple):
    """What was seen of an entry: number of steps, mean, and mean squared distance from it."""

    count: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, x: Tensor, dims: int) -> Moments:
        """Measure steps `[..., *shape]`, but for those that are not finite; in float64."""
        rows = x.detach().flatten(0, x.ndim - dims - 1).double()
        rows = rows[rows.flatten(1).isfinite().all(1)] if dims else rows[rows.isfinite()]
        count = torch.tensor(float(len(rows)), dtype=torch.float64, device=x.device)
        if not len(rows):
            zero = rows.new_zeros(rows.shape[1:])
            return cls(count, zero, zero)
        variance, mean = torch.var_mean(rows, 0, correction=0)
        return cls(count, mean, variance)

    def merge(self, other: Moments) -> Moments:
        """What was seen of both."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        distance = other.mean - self.mean
        return Moments(
            count,
            self.mean + share * distance,
            torch.lerp(self.variance, other.variance, share)
            + share * (1 - share) * distance.square(),
        )


class Normalized(nn.Module):
    """Standardizes entries and hands them to an encoder: zero mean and unit variance, at most 10.

    Mean and scale are those of all steps that `update` was told of, as with
    `torchrl.envs.VecNormV2(decay=1, reduce_batch_dims=True)`. They are buffers of the network in
    place of a transform of the environment. So they are saved, resumed, sent to workers and
    exported with the policy; evaluation cannot change them; and a batch is trained on with those
    by which it was collected, which keeps probability ratios exact.

    Args:
        encoder: maps entries to features.
        shapes: shape of each entry of one step.
        chosen: numbers of the entries that are standardized.
        device: device of the statistics.

    Examples:
        >>> import torch
        >>> from torchrl_shm.networks import Encoder, Normalized
        >>> shapes = [torch.Size((2,))]
        >>> network = Normalized(Encoder(shapes, 4, "cpu"), shapes, [0])
        >>> network.update(network.measure(torch.tensor([[0.0, 5.0], [2.0, 5.0]])))
        >>> network.standardize(0, torch.tensor([3.0, 5.0]))
        tensor([2., 0.])
    """

    def __init__(
        self,
        encoder: nn.Module,
        shapes: Sequence[torch.Size],
        chosen: Sequence[int],
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.chosen = list(chosen)
        self._dims = [len(shape) for shape in shapes]
        for i in chosen:
            zero = torch.zeros((), dtype=torch.float64, device=device)
            self.register_buffer(f"count_{i}", zero)
            self.register_buffer(f"loc_{i}", torch.zeros(shapes[i], device=device))
            self.register_buffer(f"scale_{i}", torch.ones(shapes[i], device=device))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map entries `[..., *shape]` to features."""
        seen = list(inputs)
        for i in self.chosen:
            seen[i] = self.standardize(i, seen[i])
        return self.encoder(*seen)

    def standardize(self, number: int, x: Tensor) -> Tensor:
        """Standardize an entry.

        Args:
            number: which of the entries.
            x: steps `[..., *shape]`.

        Returns:
            Tensor of the same shape, in [-10, 10].
        """
        _, loc, scale = self._statistics(number)
        return ((x - loc) / scale).clamp(-_LARGEST, _LARGEST)

    def measure(self, *inputs: Tensor) -> list[Moments]:
        """Measure what was collected, without using it yet.

        Args:
            *inputs: the chosen entries `[..., *shape]`; steps that are not finite do not count.

        Returns:
            What `update` takes.
        """
        dims = [self._dims[i] for i in self.chosen]
        return [Moments.of(x, n) for x, n in zip(inputs, dims, strict=True)]

    @torch.no_grad()
    def update(self, seen: Sequence[Moments]) -> None:
        """Add to the statistics, in place.

        Args:
            seen: what `measure` returned.
        """
        for i, moments in zip(self.chosen, seen, strict=True):
            count, loc, scale = self._statistics(i)
            before = Moments(count, loc.double(), scale.double().square())
            after = before.merge(moments) if bool(count) else moments
            if bool(after.count):
                count.copy_(after.count)
                loc.copy_(after.mean)
                scale.copy_(after.variance.sqrt().clamp(min=_SMALLEST_SCALE))

    def _apply(self, fn: Any, recurse: bool = True) -> Normalized:
        # a network may be cast, but half precision does not count beyond a few hundred steps
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, x in kept.items():
            moved = self._buffers[name]
            if x is not None and moved is not None and moved.dtype != x.dtype:
                self._buffers[name] = x.to(moved.device)
        return self

    def _statistics(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        buffers: Any = self._buffers
        return (
            buffers[f"count_{number}"],
            buffers[f"loc_{number}"],
            buffers[f"scale_{number}"],
        )


def find_normalized(network: nn.Module) -> Iterator[tuple[Normalized, list[Any]]]:
    """Yield the parts of a network that standardize, and the keys of the entries that they do."""
    for layer in network.modules():
        module: Any = getattr(layer, "module", None) if isinstance(layer, Layer) else None
        if isinstance(module, Normalized):
            keys: Any = layer.in_keys
            yield module, [keys[i] for i in module.chosen]
