"""A sequence in chunks, for matrix products that must not mix what a reset keeps apart.

A matrix product mixes all steps of a chunk, and zero times NaN is NaN. So only finite numbers enter
the products; a step that had others makes NaN of what is read from there to the end of its episode,
and of the memory if the episode lasts so long.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# steps per chunk; the products inside a chunk grow with its square
_CHUNK = 32


class Chunks:
    """A sequence in chunks of L steps, of finite numbers, and what keeps its episodes apart.

    Attributes:
        q, k, v: `[B, N, L, K]`, `[B, N, L, K]` and `[B, N, L, V]`, zero behind the end.
        gates: `[B, N, L]` each.
        first: bool `[B, N, L]`, the first steps of episodes, or `None` for none.
        reset: bool `[B, N]`, the chunks with such a step, or `None` for none.
        alive: `[B, N, L]`, 1 where what enters the chunk is still remembered, else 0.
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
        self.gates = [_cut(finite(x), behind) for x, behind in gates]
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
        spoilt = _cut(~written.isfinite())
        self.broken = (self.same * spoilt.unsqueeze(-2)).amax(-1) > 0
        self.unread = _cut(~q.detach().sum(-1).isfinite())

    def close(self, written: Tensor) -> Tensor:
        """Writes `[B, N, V, K]` that last beyond the chunk: NaN where there was one."""
        return written.masked_fill(self.broken[:, :, -1, None, None], math.nan)

    def open(self, y: Tensor, entering: Tensor) -> Tensor:
        """Readings `[B, T, V]`: NaN where there was one, or in the memory that entered."""
        lost = ~entering.detach().sum((-1, -2)).isfinite().unsqueeze(-1) & (self.alive > 0)
        bad = self.broken | self.unread | lost
        return y.masked_fill(bad.unsqueeze(-1), math.nan).flatten(1, 2)[:, : self.steps]


def _cut(x: Tensor, behind: float = 0.0) -> Tensor:
    return cut(x, min(_CHUNK, x.shape[1]), behind)


def cut(x: Tensor, size: int, behind: float = 0.0) -> Tensor:
    """`[B, T, ...]` to `[B, T / size, size, ...]`, with a value behind the end."""
    missing = -x.shape[1] % size
    if missing:
        tail = x.new_full((x.shape[0], missing, *x.shape[2:]), behind)
        x = torch.cat([x, tail], 1)
    return x.unflatten(1, (-1, size))


def finite(x: Tensor) -> Tensor:
    """Put zero in the place of NaN and inf."""
    return x.nan_to_num(0.0, 0.0, 0.0)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast from rounding what matrix products read."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
