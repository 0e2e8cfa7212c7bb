"""A sequence in chunks, for matrix products over several episodes that must not affect each other.

A matrix product mixes all steps of a chunk, and zero times NaN is NaN. So NaN and inf are replaced
by zero before the products. After a step that had one, all outputs until the end of its episode are
set to NaN, and so is the memory if the episode lasts beyond the chunk.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# steps per chunk; the products inside a chunk grow with its square
_CHUNK = 32


class Chunks:
    """A sequence in chunks of L steps, made finite, and masks that separate its episodes.

    Attributes:
        q, k, v: `[B, N, L, K]`, `[B, N, L, K]` and `[B, N, L, V]`, padded with zeros.
        gates: `[B, N, L]` each.
        first: bool `[B, N, L]`, the first steps of episodes, or `None` for none.
        reset: bool `[B, N]`, the chunks with a first step, or `None` for none.
        alive: `[B, N, L]`, 1 before the first reset of the chunk, else 0.
        same: `[B, N, L, L]`, 1 where step t and the step `s <= t` share an episode, else 0.
        broken: bool `[B, N, L]`, from a write that is not finite to the end of its episode.
        unread: bool `[B, N, L]`, where the query is not finite.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: list[tuple[Tensor, float]],
        is_init: Tensor | None,
    ) -> None:
        self.steps = q.shape[1]
        self.q, self.k, self.v = (_cut(finite(x)) for x in (q, k, v))
        self.gates = [_cut(finite(x), padding) for x, padding in gates]
        size = self.q.shape[2]
        self.first = self.reset = None
        self.same = q.new_ones(1, 1, size, size).tril()
        self.alive = q.new_ones(1, 1, size)
        if is_init is not None:
            self.first = _cut(is_init)
            self.reset = self.first.any(-1)
            episode = self.first.cumsum(-1)
            self.same = self.same * (episode.unsqueeze(-1) == episode.unsqueeze(-2))
            self.alive = (episode == 0).to(q.dtype)
        written = k.detach().sum(-1) + v.detach().sum(-1) + sum(x.detach() for x, _ in gates)
        spoiled = _cut(~written.isfinite())
        self.broken = (self.same * spoiled.unsqueeze(-2)).amax(-1) > 0
        self.unread = _cut(~q.detach().sum(-1).isfinite())

    def close(self, written: Tensor) -> Tensor:
        """Mark the writes `[B, N, V, K]` that leave a chunk as NaN where one was not finite."""
        return written.masked_fill(self.broken[:, :, -1, None, None], math.nan)

    def open(self, y: Tensor, entering: Tensor) -> Tensor:
        """Join the outputs to `[B, T, V]`; NaN where an input or the memory was not finite."""
        lost = ~entering.detach().sum((-1, -2)).isfinite().unsqueeze(-1) & (self.alive > 0)
        bad = self.broken | self.unread | lost
        return y.masked_fill(bad.unsqueeze(-1), math.nan).flatten(1, 2)[:, : self.steps]


def _cut(x: Tensor, padding: float = 0.0) -> Tensor:
    return cut(x, min(_CHUNK, x.shape[1]), padding)


def cut(x: Tensor, size: int, padding: float = 0.0) -> Tensor:
    """Cut `[B, T, ...]` into `[B, T / size, size, ...]`, padded with a value."""
    missing = -x.shape[1] % size
    if missing:
        tail = x.new_full((x.shape[0], missing, *x.shape[2:]), padding)
        x = torch.cat([x, tail], 1)
    return x.unflatten(1, (-1, size))


def finite(x: Tensor) -> Tensor:
    """Replace NaN and inf by zero."""
    return x.nan_to_num(0.0, 0.0, 0.0)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast from rounding the operands of matrix products."""
    kind = device.type
    # entering a context costs as much as several operations
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
