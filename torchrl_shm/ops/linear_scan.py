"""`state_t = a_t * state_{t-1} + b_t`, the scan that the linear memories share.

Two levels, no loop over time: the sequence is cut into about `sqrt(T)` pieces of `sqrt(T)` steps.
All pieces run side by side from zero, then the ends of the pieces are carried from one to the
next, then every step adds what was carried to it. The backward is the same scan, backwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# below, the plain recurrence has fewer operations
_SHORT = 8


def linear_scan(
    a: Tensor, b: Tensor, state: Tensor | None = None, is_init: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run an element-wise linear recurrence over a whole sequence.

    For every row and step, element by element:

        state <- a * state + b

    with a scalar, vector, matrix or complex `a`, whatever broadcasts. Products of `a` over a part
    of the sequence are formed, so `|a|` should not be much above 1.

    Args:
        a: factors that broadcast to `b`: shape `[B or 1, T or 1, ...]`; one step stands for all.
        b: inputs of shape `[B, T, ...]`, float32, float64, complex64 or complex128.
        state: initial state of shape `[B, ...]`; `None` starts from zeros.
        is_init: bool of shape `[B, T]`. Where true, the state that enters the step is zero, at
            `t = 0` too, by selection: a NaN before a reset stays there.

    Returns:
        The states `[B, T, ...]` after each step and the last one `[B, ...]`.

    Raises:
        ValueError: a shape does not fit.
        TypeError: `is_init` is not bool.

    Examples:
        >>> import torch
        >>> from torchrl_shm.ops import linear_scan
        >>> states, last = linear_scan(torch.tensor(0.5).view(1, 1, 1), torch.ones(1, 3, 1))
        >>> states.flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    if b.ndim < 2 or a.ndim != b.ndim:
        raise ValueError(
            f"a {list(a.shape)} and b {list(b.shape)} must have the same number of dimensions, "
            "[B, T, ...]"
        )
    if any(n not in (1, m) for n, m in zip(a.shape, b.shape, strict=True)):
        raise ValueError(f"a {list(a.shape)} does not broadcast to b {list(b.shape)}")
    row = (b.shape[0], *b.shape[2:])
    if state is None:
        state = b.new_zeros(row)
    elif state.shape != row:
        raise ValueError(f"state is {list(state.shape)}, expected {list(row)}")
    if is_init is not None:
        if is_init.dtype != torch.bool:
            raise TypeError(f"is_init is {is_init.dtype}, expected torch.bool")
        if is_init.shape != b.shape[:2]:
            raise ValueError(f"is_init is {list(is_init.shape)}, expected {list(b.shape[:2])}")
    if not b.shape[1]:
        return b.clone(), state.clone()
    states: Any = _LinearScan.apply(a, b, state, is_init)
    return states, states[:, -1]


class _LinearScan(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, state: Tensor, is_init: Tensor | None) -> Tensor:
        return _scan(a, b, state, is_init)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, state, is_init = inputs
        ctx.save_for_backward(a, state, is_init, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        a, state, is_init, states = ctx.saved_tensors
        (gradient,) = gradients
        # what step t sends back to step t - 1 goes through a_t, and not over a reset
        later = a.conj() if a.shape[1] == 1 else a.conj().roll(-1, 1).flip(1)
        resets = None
        if is_init is not None:
            resets = is_init.roll(-1, 1).flip(1)
        db, _ = linear_scan(later, gradient.flip(1), None, resets)
        db = db.flip(1)
        carried = db if is_init is None else _select(~is_init, db)
        da = None
        if ctx.needs_input_grad[0]:
            before = torch.cat([state.unsqueeze(1), states[:, :-1]], 1)
            if is_init is not None:
                before = _select(~is_init, before)
            # sums over the dimensions that were broadcast
            da = (carried * before.conj()).sum_to_size(a.shape)
            da = da if a.is_complex() else da.real if da.is_complex() else da
        dstate = (a.conj()[:, :1] * carried[:, :1]).expand_as(carried[:, :1]).squeeze(1)
        return da, db, dstate, None


def _scan(a: Tensor, b: Tensor, state: Tensor, is_init: Tensor | None) -> Tensor:
    steps = b.shape[1]
    constant = a.shape[1] == 1
    if steps <= _SHORT:
        keep = None if is_init is None else ~is_init
        states, last = [], state
        for t in range(steps):
            last = last if keep is None else _select(keep[:, t], last)
            last = a[:, 0 if constant else t] * last + b[:, t]
            states.append(last)
        return torch.stack(states, 1)

    size = math.ceil(math.sqrt(steps))
    pieces = math.ceil(steps / size)
    b = _cut(b, pieces, size)
    a = a.unsqueeze(2) if constant else _cut(a, pieces, size)
    # alive: no reset in the piece up to and including this step
    keep = alive = None
    if is_init is not None:
        keep = ~_cut(is_init, pieces, size)
        alive = torch.cumprod(keep, 2).bool()

    local, product = [b[:, :, 0]], [a[:, :, 0]]
    for t in range(1, size):
        factor = a[:, :, 0 if constant else t]
        before = local[-1] if keep is None else _select(keep[:, :, t], local[-1])
        local.append(torch.addcmul(b[:, :, t], factor, before))
        product.append(product[-1] * factor)
    entering, last = [], state
    for n in range(pieces):
        entering.append(last)
        last = last if alive is None else _select(alive[:, n, -1], last)
        last = local[-1][:, n] + product[-1][:, 0 if constant else n] * last
    carried = torch.stack(entering, 1).unsqueeze(2)
    if alive is not None:
        carried = _select(alive, carried.expand(-1, -1, size, *carried.shape[3:]))
    states = torch.addcmul(torch.stack(local, 2), torch.stack(product, 2), carried)
    return states.flatten(1, 2)[:, :steps]


def _cut(x: Tensor, pieces: int, size: int) -> Tensor:
    """`[B, T, ...]` to `[B, pieces, size, ...]`, with zeros behind the end."""
    missing = pieces * size - x.shape[1]
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)
    return x.unflatten(1, (pieces, size))


def _select(keep: Tensor, x: Tensor) -> Tensor:
    """Take `x` where `keep` is true and zero elsewhere, even from NaN."""
    return torch.where(keep.reshape(*keep.shape, *(1 for _ in x.shape[keep.ndim :])), x, 0)
