"""Scans of matrix memories that are written by outer products, in chunks of matrix products.

Inside a chunk the writes of all steps meet the reads of all steps in one masked `[L, L]` product,
as in attention; between chunks only a matrix is carried. So a sequence costs `T / L` small steps
and otherwise large matrix products, and no state per step is ever made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_shm.ops.linear_scan import linear_scan

# steps per chunk; the products inside a chunk grow with its square
_CHUNK = 32


def gated_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    log_input: Tensor | None = None,
    memory: Tensor | None = None,
    stabilizer: Tensor | None = None,
    is_init: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write and read a matrix memory whose gates are one number per step.

    With the value axis first, for every row and step:

        m <- max(log_decay + m', log_input)
        M <- M' * exp(log_decay + m' - m) + v (outer) k * exp(log_input - m)
        y  = M q

    `M * exp(m)` is the true memory; `m`, the stabilizer, keeps the exponentials bounded and has no
    influence on it. Without gates, M is the sum of the outer products and m stays as it is.

    Source: Katharopoulos et al., Transformers are RNNs (2020), equations 16 to 20, without gates;
    Beck et al., xLSTM (2024), equations 19 to 27, with them.

    Args:
        q: queries of shape `[B, T, K]`, float32 or float64.
        k: keys of shape `[B, T, K]`, same dtype.
        v: values of shape `[B, T, V]`, same dtype.
        log_decay: logarithm of the forget gate, at most 0, of shape `[B, T]`; `None` is no gate.
        log_input: logarithm of the input gate, of shape `[B, T]`; given with `log_decay`.
        memory: initial `M` of shape `[B, V, K]`; `None` starts from zeros.
        stabilizer: initial `m` of shape `[B]`; `None` starts from zeros.
        is_init: bool of shape `[B, T]`. Where true, memory and stabilizer that enter the step are
            zero, by selection.

    Returns:
        The readings `[B, T, V]`, the stabilizers of all steps `[B, T]`, through which no gradient
        flows, and the final memory `[B, V, K]`.

    Raises:
        ValueError: a shape does not fit, or one gate is given without the other.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import gated_scan
        >>> q, k, v = torch.randn(3, 2, 7, 4).unbind(0)
        >>> y, _, memory = gated_scan(q, k, v)
        >>> torch.allclose(memory, (v.unsqueeze(-1) * k.unsqueeze(-2)).sum(1), atol=1e-5)
        True
    """
    memory = _check(q, k, v, memory, is_init)
    if (log_decay is None) != (log_input is None):
        raise ValueError("pass log_decay and log_input together, or neither")
    steps = q.shape[1]
    if stabilizer is None:
        stabilizer = q.new_zeros(len(q))
    if not steps:
        return v.clone(), q.new_zeros(q.shape[:2]), memory.clone()

    q, k, v = (_cut(x) for x in (q, k, v))
    alive, same = _resets(is_init, q.shape[:3])
    if log_decay is None or log_input is None:
        m = stabilizer.detach().unsqueeze(1).expand(-1, steps)
        if is_init is not None:
            m = torch.where(is_init.cumsum(1) > 0, 0, m)
        weights, into_end = _zero_one(same, q.dtype), _zero_one(same[:, :, -1], q.dtype)
        from_start = _zero_one(alive, q.dtype)
    else:
        # behind the end nothing is written, and nothing decays
        decay = _cut(log_decay).cumsum(-1)
        gate = _cut(log_input, -math.inf)
        # log weight of the write of step s in the memory after step t
        logs = decay.unsqueeze(-1) - decay.unsqueeze(-2) + gate.unsqueeze(-2)
        logs = torch.where(same, logs, -math.inf)
        chunk_m, entering_m = _stabilize(logs.detach(), decay.detach(), alive, stabilizer.detach())
        # the given stabilizer is part of the given memory, the others cancel
        entering = torch.cat([stabilizer.unsqueeze(1), entering_m[:, 1:]], 1)
        carried = decay + entering.unsqueeze(-1) - chunk_m
        from_start = torch.exp(torch.where(alive, carried, -math.inf))
        weights = torch.exp(logs - chunk_m.unsqueeze(-1))
        into_end = weights[:, :, -1]
        m = chunk_m.flatten(1)[:, :steps]
    written = (v * into_end.unsqueeze(-1)).transpose(-1, -2) @ k
    factor = from_start[:, :, -1, None, None]
    # the resets are in the factors; NaN of a dropped memory must not meet their zero
    states, final = linear_scan(factor, written, memory, ~alive[:, :, -1])
    before = torch.cat([memory.unsqueeze(1), states[:, :-1]], 1)
    read = torch.where(alive.unsqueeze(-1), q @ before.transpose(-1, -2), 0)
    y = (q @ k.transpose(-1, -2) * weights) @ v + from_start.unsqueeze(-1) * read
    return y.flatten(1, 2)[:, :steps], m, final


def delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    memory: Tensor | None = None,
    is_init: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Write a matrix memory by the delta rule, which replaces what stands under a key, and read it.

    With the value axis first, for every row and step:

        M <- M + beta * (v - M k) (outer) k
        y  = M q

    What the steps of a chunk write depends linearly on each other: one triangular system per chunk
    gives all of it at once.

    Source: Schlag et al., Linear Transformers Are Secretly Fast Weight Programmers (2021),
    equations 23 to 25; the chunks are those of Yang et al., Parallelizing Linear Transformers with
    the Delta
    Rule over Sequence Length (2024), section 3.

    Args:
        q: queries of shape `[B, T, K]`, float32 or float64.
        k: keys of shape `[B, T, K]`, same dtype.
        v: values of shape `[B, T, V]`, same dtype.
        beta: write strengths of shape `[B, T]`, same dtype.
        memory: initial memory of shape `[B, V, K]`; `None` starts from zeros.
        is_init: bool of shape `[B, T]`. Where true, the memory that enters the step is zero, by
            selection.

    Returns:
        The readings `[B, T, V]` and the final memory `[B, V, K]`.

    Raises:
        ValueError: a shape does not fit.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import delta_scan
        >>> k = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> v = torch.tensor([[[2.0], [3.0]]])
        >>> y, memory = delta_scan(k, k, v, torch.ones(1, 2))
        >>> memory.tolist()  # the second write replaces the first
        [[[3.0, 0.0]]]
    """
    memory = _check(q, k, v, memory, is_init)
    steps = q.shape[1]
    if not steps:
        return v.clone(), memory.clone()
    q, k, v, beta = (_cut(x) for x in (q, k, v, beta))
    alive, same = _resets(is_init, q.shape[:3])
    causal = _zero_one(same, q.dtype)
    beta = beta.unsqueeze(-1)
    # u_t = beta_t (v_t - M_t k_t), where M_t holds the entering memory and the u before t
    system = beta * (k @ k.transpose(-1, -2)) * causal
    known = torch.cat([beta * v, beta * k * _zero_one(alive, q.dtype).unsqueeze(-1)], -1)
    solved = torch.linalg.solve_triangular(system.tril(-1), known, upper=False, unitriangular=True)
    fresh, removed = solved.split([v.shape[-1], k.shape[-1]], -1)
    into_end = k * causal[:, :, -1].unsqueeze(-1)
    written = fresh.transpose(-1, -2) @ into_end
    faded = removed.transpose(-1, -2) @ into_end
    before: list[Tensor] = []
    for n in range(q.shape[1]):
        before.append(memory)
        kept = torch.where(alive[:, n, -1, None, None], memory, 0)
        # where the memory was dropped in the chunk, `removed` may still be wanted before that
        seen = memory if is_init is None else torch.where(alive[:, n, 0, None, None], memory, 0)
        memory = kept + written[:, n] - seen @ faded[:, n]
    entering = torch.stack(before, 1)
    if is_init is not None:
        entering = torch.where(alive[:, :, :1, None], entering, 0)
    u = fresh - removed @ entering.transpose(-1, -2)
    read = torch.where(alive.unsqueeze(-1), q @ entering.transpose(-1, -2), 0)
    y = (q @ k.transpose(-1, -2) * causal) @ u + read
    return y.flatten(1, 2)[:, :steps], memory


def _check(
    q: Tensor, k: Tensor, v: Tensor, memory: Tensor | None, is_init: Tensor | None
) -> Tensor:
    if q.ndim != 3 or k.shape != q.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} must be [B, T, K], "
            "[B, T, K] and [B, T, V]"
        )
    shape = (q.shape[0], v.shape[2], q.shape[2])
    if is_init is not None and (is_init.dtype != torch.bool or is_init.shape != q.shape[:2]):
        raise ValueError(
            f"is_init is {is_init.dtype} of shape {list(is_init.shape)}, expected torch.bool of "
            f"shape {list(q.shape[:2])}"
        )
    if memory is None:
        return q.new_zeros(shape)
    if memory.shape != shape:
        raise ValueError(f"memory is {list(memory.shape)}, expected {list(shape)}")
    return memory


def _cut(x: Tensor, fill: float = 0.0) -> Tensor:
    """`[B, T, ...]` to `[B, T / L, L, ...]`; what is behind the end is `fill`."""
    size = min(_CHUNK, x.shape[1])
    missing = -x.shape[1] % size
    if missing:
        tail = x.new_full((x.shape[0], missing, *x.shape[2:]), fill)
        x = torch.cat([x, tail], 1)
    return x.unflatten(1, (-1, size))


def _resets(is_init: Tensor | None, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Which steps still hold the entering memory, and which steps `s <= t` share an episode."""
    batch, chunks, size = shape
    device = None if is_init is None else is_init.device
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if is_init is None:
        alive = torch.ones(batch, chunks, size, dtype=torch.bool)
        return alive, causal.expand(batch, chunks, -1, -1)
    episode = _cut(is_init).cumsum(-1)
    return episode == 0, causal & (episode.unsqueeze(-1) == episode.unsqueeze(-2))


def _zero_one(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return mask.to(dtype)


def _stabilize(
    logs: Tensor, decay: Tensor, alive: Tensor, stabilizer: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest exponent of each step `[B, N, L]`, and that which enters each chunk `[B, N]`."""
    largest = logs.amax(-1)
    entering, m = [], stabilizer
    steps: list[Tensor] = []
    for n in range(logs.shape[1]):
        entering.append(m)
        # an episode that starts here starts with a stabilizer of zero
        before = torch.where(alive[:, n], decay[:, n] + m.unsqueeze(-1), -math.inf)
        steps.append(torch.maximum(before, largest[:, n]))
        m = steps[-1][:, -1]
    return torch.stack(steps, 1), torch.stack(entering, 1)
