"""`state_t = a_t * state_{t-1} + b_t`, the scan that the linear memories share.

There are two ways to the same states. A wide state on CPU goes step by step, into one buffer: a
step works in the cache, where allocating memory is what costs time. Otherwise the sequence is cut
into about `sqrt(T)` chunks of `sqrt(T)` steps: all chunks run side by side from zero, their final
states are carried from one chunk to the next, and then each step adds what was carried to it.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from torchrl_shm.ops._chunks import cut
from torchrl_shm.ops.checks import check_is_init

# up to so many steps, chunks take more operations than steps
_SHORT = 8
# from so many numbers per step on, the work of a step on CPU outweighs the calls of its operations
_WIDE = 2048
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def linear_scan(
    a: Tensor, b: Tensor, state: Tensor | None = None, is_init: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run an element-wise linear recurrence over a whole sequence.

    For every sequence and step, element by element:

        state <- a * state + b

    `a` is anything that broadcasts to `b`, real or complex. Products of `a` over many steps are
    formed, so `|a|` should not be much above 1.

    It can be differentiated any number of times, and works under `torch.func.grad` and `vmap`.

    Args:
        a: factors that broadcast to `b`: shape `[B or 1, T or 1, ...]`.
        b: inputs of shape `[B, T, ...]`, real or complex.
        state: initial state of shape `[B, ...]`; `None` starts from zeros.
        is_init: bool of shape `[B, T]`. Where true, the state that enters the step is zero, at
            `t = 0` too. It is replaced, not multiplied, so a NaN before a reset stays there.

    Returns:
        The states `[B, T, ...]` after each step and the last one `[B, ...]`, in the widest dtype
        of the inputs, and at least float32.

    Raises:
        ValueError: a shape does not fit.
        TypeError: `is_init` is not bool.
        RuntimeError: `is_init` is on another device.

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
    shape = (b.shape[0], *b.shape[2:])
    if state is None:
        state = b.new_zeros(shape)
    elif state.shape != shape:
        raise ValueError(f"state is {list(state.shape)}, expected {list(shape)}")
    check_is_init(is_init, b)
    return scan_checked(a, b, state, is_init)


def scan_checked(
    a: Tensor, b: Tensor, state: Tensor, is_init: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run `linear_scan` on arguments that are known to fit."""
    dtype = reduce(torch.promote_types, (a.dtype, b.dtype, state.dtype), torch.float32)
    b, state = b.to(dtype), state.to(dtype)
    a = a.to(dtype if a.is_complex() else b.real.dtype)
    if not b.shape[1]:
        return b.clone(), state.clone()
    states: Any = _LinearScan.apply(a, b, state, is_init)
    return states, states[:, -1].clone()


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor, state: Tensor, is_init: Tensor | None) -> Tensor:
        return (_in_order if _is_wide(b) else _in_chunks)(a, b, state, is_init)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, state, is_init = inputs
        ctx.save_for_backward(a, state, is_init, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # where gradients are on, the backward pass itself is differentiated
        in_place = _is_wide(gradients[0]) and not torch.is_grad_enabled()
        run = _backward_in_order if in_place else _backward
        a, state, is_init, states = ctx.saved_tensors
        return *run(gradients[0], a, state, is_init, states, ctx.needs_input_grad[0]), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor | None) -> Any:
        # the dimension of the vmap is merged with the batch
        def fold(x: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
            if x is None:
                return None
            size = info.batch_size
            x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.expand(size, batch, *x.shape[2:]).flatten(0, 1)

        _, b, _, _ = inputs
        assert b is not None
        batch = b.shape[0] if in_dims[1] is None else b.movedim(in_dims[1], 0).shape[1]
        folded = (fold(x, dim, batch) for x, dim in zip(inputs, in_dims, strict=True))
        states: Any = _LinearScan.apply(*folded)
        return states.unflatten(0, (info.batch_size, batch)), 0


def _is_wide(b: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False  # one operation per step makes a graph that takes long to compile
    return b.shape[1] <= _SHORT or (b.device.type == "cpu" and b[:, 0].numel() >= _WIDE)


def _in_order(a: Tensor, b: Tensor, state: Tensor, is_init: Tensor | None) -> Tensor:
    states = torch.empty_like(b, memory_format=torch.contiguous_format)
    carry = _Carry(state, is_init)
    factors = a.expand(-1, b.shape[1], *a.shape[2:]).unbind(1)
    for t, (b_t, state_t) in enumerate(zip(b.unbind(1), states.unbind(1), strict=True)):
        state = torch.add(b_t, carry.take(factors[t], state, t), out=state_t)
    return states


def _backward_in_order(
    gradient: Tensor,
    a: Tensor,
    state: Tensor,
    is_init: Tensor | None,
    states: Tensor,
    need_da: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    db = torch.empty_like(states)
    carry, product = _Carry(state, is_init), _Carry(state, is_init)
    constant = a.shape[1] == 1
    factors = a.conj().expand(-1, db.shape[1], *a.shape[2:]).unbind(1)
    da = torch.zeros_like(product.value) if constant else db.new_empty(a.shape)
    steps = list(zip(gradient.unbind(1), db.unbind(1), (state, *states.unbind(1)), strict=False))
    later = torch.zeros_like(state)
    for t, (gradient_t, db_t, before) in reversed(list(enumerate(steps))):
        torch.add(gradient_t, later, out=db_t)
        later = carry.take(factors[t], db_t, t)
        if need_da:
            da_t = product.take(before.conj(), db_t, t)
            if constant:
                da.add_(da_t)
            else:
                da[:, t] = da_t.sum_to_size(a[:, 0].shape)
    if constant:
        da = da.unsqueeze(1).sum_to_size(a.shape)
    return (da if a.is_complex() else da.real) if need_da else None, db, later


class _Carry:
    """The product that one step passes to the next, in one buffer; zero over a reset."""

    def __init__(self, like: Tensor, is_init: Tensor | None) -> None:
        self.value = torch.empty_like(like, memory_format=torch.contiguous_format)
        self.keep: tuple[Tensor, ...] | None = None
        if is_init is not None:
            raw = torch.view_as_real(self.value) if like.is_complex() else self.value
            self.raw = raw.view(_BITS[raw.dtype])
            ones = (1,) * (raw.ndim - 1)
            # all bits are set, or none is
            self.keep = (is_init.to(self.raw.dtype) - 1).view(*is_init.shape, *ones).unbind(1)

    def take(self, factor: Tensor, x: Tensor, t: int) -> Tensor:
        torch.mul(factor, x, out=self.value)
        if self.keep is not None:
            # on the bits, because that vectorizes: `torch.where` takes ten times as long on CPU
            torch.bitwise_and(self.raw, self.keep[t], out=self.raw)
        return self.value


def _in_chunks(a: Tensor, b: Tensor, state: Tensor, is_init: Tensor | None) -> Tensor:
    steps = b.shape[1]
    constant = a.shape[1] == 1
    size = math.ceil(math.sqrt(steps))
    b = cut(b, size)
    a = a.unsqueeze(2) if constant else cut(a, size)
    # alive: no reset in the chunk up to and including this step
    keep = alive = None
    if is_init is not None:
        keep = ~cut(is_init, size)
        alive = keep.cumprod(2).bool()

    local, product = [b[:, :, 0]], [a[:, :, 0]]
    for t in range(1, size):
        factor = a[:, :, 0 if constant else t]
        carried = factor * local[-1]
        local.append(b[:, :, t] + (carried if keep is None else _select(keep[:, :, t], carried)))
        product.append(product[-1] * factor)
    entering, last = [state], state
    for n in range(b.shape[1] - 1):
        carried = product[-1][:, 0 if constant else n] * last
        last = local[-1][:, n] + (carried if alive is None else _select(alive[:, n, -1], carried))
        entering.append(last)
    carried = torch.stack(product, 2) * torch.stack(entering, 1).unsqueeze(2)
    states = torch.stack(local, 2) + (carried if alive is None else _select(alive, carried))
    return states.flatten(1, 2)[:, :steps]


def _backward(
    gradient: Tensor,
    a: Tensor,
    state: Tensor,
    is_init: Tensor | None,
    states: Tensor,
    need_da: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    # the gradient that step t passes to step t - 1 is multiplied by a_t and stops at resets, so it
    # is the same scan, backwards in time
    factors = a.conj() if a.shape[1] == 1 else a.conj()[:, 1:].flip(1)
    resets = None if is_init is None else is_init[:, 1:].flip(1)
    last = gradient[:, -1]
    earlier, _ = scan_checked(factors, gradient[:, :-1].flip(1), last, resets)
    db = torch.cat([earlier.flip(1), last.unsqueeze(1)], 1)
    carried, first = db, a.conj()[:, 0]
    before = torch.cat([state.unsqueeze(1), states[:, :-1]], 1)
    if is_init is not None:
        # both factors of each product: this may be differentiated once more
        carried, before = _select(~is_init, db), _select(~is_init, before)
        first = _select(~is_init[:, 0], first)
    da = None
    if need_da:
        # summed over the dimensions that were broadcast
        da = (carried * before.conj()).sum_to_size(a.shape)
        da = da if a.is_complex() else da.real
    return da, db, first * carried[:, 0]


def _select(keep: Tensor, x: Tensor) -> Tensor:
    """Take `x` where `keep` is true and zero elsewhere, even from NaN."""
    return torch.where(keep.reshape(*keep.shape, *(1 for _ in x.shape[keep.ndim :])), x, 0)
