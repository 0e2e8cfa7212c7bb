"""Scans of matrix memories that are written by outer products, by chunks of steps.

Within a chunk of L steps, one masked `[L, L]` matrix product connects all writes with all reads, as
in attention; from chunk to chunk only the memory is carried. So a sequence takes `T / L` small
steps and otherwise large matrix products, and the memories of single steps are never formed.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from torchrl_shm.ops._chunks import Chunks, finite, full_precision
from torchrl_shm.ops.checks import check_is_init
from torchrl_shm.ops.linear_scan import scan_checked


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

    With the value axis first, for every sequence and step:

        m <- max(log_decay + m', log_input)
        M <- M' * exp(log_decay + m' - m) + v (outer) k * exp(log_input - m)
        y  = M q

    `M * exp(m)` is the true memory; `m`, the stabilizer, keeps the exponentials bounded and does
    not change it. Without gates, M is the sum of the outer products and m stays as it is.

    Source: Katharopoulos et al., Transformers are RNNs (2020), equations 16 to 20, without gates;
    Beck et al., xLSTM (2024), equations 19 to 27, with them.

    Args:
        q: queries of shape `[B, T, K]`.
        k: keys of shape `[B, T, K]`.
        v: values of shape `[B, T, V]`.
        log_decay: logarithm of the forget gate of shape `[B, T]`; `None` for no gates.
        log_input: logarithm of the input gate of shape `[B, T]`, if and only if `log_decay` is
            given.
        memory: initial `M` of shape `[B, V, K]`; `None` starts from zeros.
        stabilizer: initial `m` of shape `[B]`; `None` starts from zeros.
        is_init: bool of shape `[B, T]`. Where true, memory and stabilizer that enter the step are
            zero. They are replaced, so a NaN before a reset stays there.

    Returns:
        The readings `[B, T, V]`, the stabilizers of all steps `[B, T]`, through which no gradient
        flows, and the final memory `[B, V, K]`, in the widest dtype of the inputs and at least
        float32, under autocast too. A gate of `-inf` lets nothing through; after any other NaN or
        inf all readings until the end of the episode are NaN.

    Raises:
        ValueError: a shape does not fit, or one gate is given without the other.
        TypeError: `is_init` is not bool.
        RuntimeError: `is_init` is on another device.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import gated_scan
        >>> q, k, v = torch.randn(3, 2, 7, 4).unbind(0)
        >>> y, _, memory = gated_scan(q, k, v)
        >>> torch.allclose(memory, (v.unsqueeze(-1) * k.unsqueeze(-2)).sum(1), atol=1e-5)
        True
    """
    if (log_decay is None) != (log_input is None):
        raise ValueError("pass log_decay and log_input together, or neither")
    gates = {"log_decay": log_decay, "log_input": log_input}
    q, k, v, memory = _check(q, k, v, gates, memory, is_init)
    batch, steps = q.shape[:2]
    if stabilizer is None:
        stabilizer = q.new_zeros(batch)
    elif stabilizer.shape != (batch,):
        raise ValueError(f"stabilizer is {list(stabilizer.shape)}, expected {[batch]}")
    if not steps:
        return v.clone(), q.new_zeros(batch, 0), memory.clone()

    # in place of -inf, because sums of it stay finite
    closed = torch.finfo(q.dtype).min / 1024
    stabilizer = stabilizer.to(q.dtype).clamp_min(closed)
    # a memory whose scale is not finite is unknown
    memory = memory.masked_fill(~stabilizer.isfinite()[:, None, None], math.nan)
    stabilizer = finite(stabilizer)
    # after the end of the sequence nothing decays and nothing is written
    closable = [
        (x.to(q.dtype).clamp_min(closed), padding)
        for x, padding in ((log_decay, 0.0), (log_input, closed))
        if x is not None
    ]
    chunks = Chunks(q, k, v, closable, is_init)
    if chunks.gates:
        m, weights, from_start = _gate(chunks, stabilizer)
        m = m.flatten(1)[:, :steps]
    else:
        m = _keep(stabilizer, steps, is_init)
        weights, from_start = chunks.same, chunks.alive
    with full_precision(q.device):
        written = (chunks.v * weights[:, :, -1].unsqueeze(-1)).mT @ chunks.k
        states, final = scan_checked(
            from_start[:, :, -1, None, None], chunks.close(written), memory, chunks.reset
        )
        entering = torch.cat([memory.unsqueeze(1), states[:, :-1]], 1)
        y = (chunks.q @ chunks.k.mT * weights) @ chunks.v
        y = y + from_start.unsqueeze(-1) * (chunks.q @ finite(entering).mT)
    return chunks.open(y, entering), m, final


def _keep(stabilizer: Tensor, steps: int, is_init: Tensor | None) -> Tensor:
    """Stabilizers `[B, T]` without gates: the given one, and zero from a reset on."""
    m = stabilizer.detach().unsqueeze(1).expand(-1, steps)
    return m if is_init is None else torch.where(is_init.cumsum(1) > 0, 0, m)


def _gate(chunks: Chunks, stabilizer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stabilizers `[B, N, L]`, weights of writes `[B, N, L, L]` and of the entering memory."""
    decay, gate = chunks.gates
    # sums over the steps between a write and a read. Differences of sums from the start would lose
    # their digits where a gate closes
    between = (decay.unsqueeze(-1) * chunks.same.new_ones(decay.shape[-1:] * 2).tril(-1)).cumsum(-2)
    between = between + chunks.same.log()
    largest = between.detach() + gate.detach().unsqueeze(-2)
    total = decay.cumsum(-1)
    if chunks.first is not None:
        # at the start of an episode the stabilizer is zero, and decays like any other
        fresh = torch.where(chunks.first, decay, -math.inf).detach()
        largest = torch.maximum(largest, between.detach() + fresh.unsqueeze(-2))
    largest = largest.amax(-1)
    carried = (total + chunks.alive.log()).detach()
    entering, m = [stabilizer], stabilizer.detach()
    for n in range(decay.shape[1] - 1):
        m = torch.maximum(carried[:, n, -1] + m, largest[:, n, -1])
        entering.append(m)
    # gradients flow through the given stabilizer, which scales the given memory; the others cancel
    start = torch.stack(entering, 1).unsqueeze(-1)
    m = torch.maximum(carried + start.detach(), largest)
    weights = torch.exp(between + (gate.unsqueeze(-2) - m.unsqueeze(-1)))
    return m, weights, torch.exp(total + chunks.alive.log() + start - m)


def delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    memory: Tensor | None = None,
    is_init: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Write a matrix memory by the delta rule, which replaces the value of a key, and read it.

    With the value axis first, for every sequence and step:

        M <- M + beta * (v - M k) (outer) k
        y  = M q

    What a step writes depends linearly on the writes before it, so one triangular system per chunk
    gives the writes of all its steps.

    Source: Schlag et al., Linear Transformers Are Secretly Fast Weight Programmers (2021),
    equations 23 to 25; the chunks are those of Yang et al., Parallelizing Linear Transformers with
    the Delta Rule over Sequence Length (2024), section 3.

    Args:
        q: queries of shape `[B, T, K]`.
        k: keys of shape `[B, T, K]`. With `beta * |k|^2` above 2 the memory may explode.
        v: values of shape `[B, T, V]`.
        beta: write strengths of shape `[B, T]`.
        memory: initial memory of shape `[B, V, K]`; `None` starts from zeros.
        is_init: bool of shape `[B, T]`. Where true, the memory that enters the step is zero. It is
            replaced, so a NaN before a reset stays there.

    Returns:
        The readings `[B, T, V]` and the final memory `[B, V, K]`, in the widest dtype of the
        inputs and at least float32, under autocast too. After a NaN or inf all readings until the
        end of the episode are NaN.

    Raises:
        ValueError: a shape does not fit.
        TypeError: `is_init` is not bool.
        RuntimeError: `is_init` is on another device.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import delta_scan
        >>> k = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> v = torch.tensor([[[2.0], [3.0]]])
        >>> y, memory = delta_scan(k, k, v, torch.ones(1, 2))
        >>> memory.tolist()  # the second write replaces the first
        [[[3.0, 0.0]]]
    """
    q, k, v, start = _check(q, k, v, {"beta": beta}, memory, is_init)
    if not q.shape[1]:
        return v.clone(), start.clone()
    chunks = Chunks(q, k, v, [(beta.to(q.dtype), 0.0)], is_init)
    q, k, v, beta = chunks.q, chunks.k, chunks.v, chunks.gates[0].unsqueeze(-1)
    with full_precision(q.device):
        # u_t = beta_t (v_t - M_t k_t), where M_t is the entering memory plus the writes before t
        known = torch.cat([beta * v, beta * k * chunks.alive.unsqueeze(-1)], -1)
        system = beta * (k @ k.mT) * chunks.same
        solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
        fresh, removed = solved.split([v.shape[-1], k.shape[-1]], -1)
        into_end = k * chunks.same[:, :, -1].unsqueeze(-1)
        written = chunks.close(fresh.mT @ into_end)
        faded = removed.mT @ into_end
        states: list[Tensor] = []
        state = start
        for n in range(q.shape[1]):
            states.append(state)
            if chunks.reset is not None:
                state = torch.where(chunks.reset[:, n, None, None], 0, state)
            state = state - state @ faded[:, n] + written[:, n]
        entering = torch.stack(states, 1)
        held = finite(entering).mT
        u = fresh - removed @ held
        y = (q @ k.mT * chunks.same) @ u + chunks.alive.unsqueeze(-1) * (q @ held)
    return chunks.open(y, entering), state


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: dict[str, Tensor | None],
    memory: Tensor | None,
    is_init: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the shapes and return q, k, v and the initial memory in one dtype."""
    if q.ndim != 3 or k.shape != q.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} must be [B, T, K], "
            "[B, T, K] and [B, T, V]"
        )
    shape = (q.shape[0], v.shape[2], q.shape[2])
    memory = v.new_zeros(shape) if memory is None else memory
    if memory.shape != shape:
        raise ValueError(f"memory is {list(memory.shape)}, expected {list(shape)}")
    for name, gate in gates.items():
        if gate is not None and gate.shape != q.shape[:2]:
            raise ValueError(f"{name} is {list(gate.shape)}, expected {list(q.shape[:2])}")
    check_is_init(is_init, q)
    dtype = reduce(torch.promote_types, (x.dtype for x in (q, k, v, memory)), torch.float32)
    return q.to(dtype), k.to(dtype), v.to(dtype), memory.to(dtype)
