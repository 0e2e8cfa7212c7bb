"""Windows over the last steps against slices of a list."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from torchrl_shm.ops import causal_windows


def loop(x: Tensor, past: Tensor, is_init: Tensor | None = None) -> tuple[Tensor, Tensor]:
    size, windows = past.shape[1] + 1, list[Tensor]()
    for t in range(x.shape[1]):
        if is_init is not None:
            past = torch.where(is_init[:, t, None, None], 0, past)
        window = torch.cat([past, x[:, t : t + 1]], 1)
        windows.append(window)
        past = window[:, 1:]
    return torch.stack(windows, 1) if windows else x.new_zeros(len(x), 0, size, x.shape[2]), past


def make(batch: int, steps: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, steps, 3, dtype=torch.float64, requires_grad=True)
    past = torch.randn(batch, size - 1, 3, dtype=torch.float64, requires_grad=True)
    return x, past, torch.rand(batch, steps) < 0.2


@pytest.mark.parametrize(
    ("batch", "steps", "size", "resets"),
    [
        (3, 0, 4, True), (0, 3, 2, True), (1, 1, 4, True), (3, 2, 4, False), (3, 20, 1, True),
        (3, 20, 2, True), (3, 20, 4, True),
    ],
)  # fmt: skip
def test_against_loop(batch: int, steps: int, size: int, resets: bool) -> None:
    x, past, is_init = make(batch, steps, size)
    results: list[Any] = []
    for function in (causal_windows, loop):
        windows, last = function(x, past, is_init if resets else None)
        loss = windows.square().sum() + last.pow(3).sum()
        grads = torch.autograd.grad(loss, (x, past), materialize_grads=True)
        results.append([windows, last, *grads])
    assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("reset", "value"), [(0, float("nan")), (1, float("inf")), (5, float("nan"))]
)
def test_nothing_passes_a_reset(reset: int, value: float) -> None:
    x, past, is_init = make(1, 8, 4)
    is_init[:] = False
    is_init[:, reset] = True
    results: list[Any] = []
    for spoil in (False, True):
        now, before = x.detach().clone(), past.detach().clone()
        if spoil:
            now[:, :reset] = value
            before[:] = value
        now.requires_grad_()
        windows, last = causal_windows(now, before, is_init)
        loss = windows[:, reset:].square().sum() + last.square().sum()
        (grad,) = torch.autograd.grad(loss, now)
        results.append([windows[:, reset:], last, grad[:, reset:]])
    assert_close(*results)


def test_nothing_looks_ahead() -> None:
    step = 5
    x, past, is_init = make(1, 8, 4)
    spoiled = x.detach().clone()
    spoiled[:, step] = float("nan")
    actual, expected = (causal_windows(z, past, is_init)[0][:, :step] for z in (spoiled, x))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(("size", "split"), [(1, 7), (4, 1), (4, 7), (4, 19)])
def test_resumes(split: int, size: int) -> None:
    x, past, is_init = make(3, 20, size)
    whole, last = causal_windows(x, past, is_init)
    first, middle = causal_windows(x[:, :split], past, is_init[:, :split])
    second, end = causal_windows(x[:, split:], middle, is_init[:, split:])
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(end, last)


def test_past_keeps_no_buffer_alive() -> None:
    x, past, is_init = make(1, 100, 4)
    with torch.no_grad():
        _, last = causal_windows(x, past, is_init)
    assert last.untyped_storage().nbytes() == last.nbytes


@pytest.mark.parametrize("resets", [False, True])
def test_compiles(resets: bool) -> None:
    torch.compiler.reset()
    x, past, is_init = make(2, 9, 4)
    compiled = torch.compile(causal_windows, backend="aot_eager", fullgraph=True)
    results: list[Any] = []
    for function in (compiled, causal_windows):
        windows, last = function(x, past, is_init if resets else None)
        loss = windows.square().sum() + last.sum()
        results.append([windows, last, *torch.autograd.grad(loss, (x, past))])
    assert_close(*results)


def test_vmap() -> None:
    x, past, is_init = make(3, 9, 4)
    expected = causal_windows(x, past, is_init)
    rows = (z.unsqueeze(1) for z in (x, past, is_init))
    actual = torch.vmap(causal_windows)(*rows)
    assert_close(tuple(z.squeeze(1) for z in actual), expected)


def refuse(error: type[Exception], message: str, *arguments: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        causal_windows(*arguments)


def test_errors() -> None:
    x, past, is_init = make(2, 5, 4)
    text = "must be [B, T, D] and [B, k - 1, D]"
    refuse(ValueError, f"x [5, 3] and past [2, 3, 3] {text}", x[0], past)
    refuse(ValueError, f"x [2, 5, 3] and past [3, 3] {text}", x, past[0])
    refuse(ValueError, f"x [2, 5, 3] and past [1, 3, 3] {text}", x, past[:1])
    refuse(ValueError, f"x [2, 5, 3] and past [2, 3, 1] {text}", x, past[..., :1])
    refuse(TypeError, "is_init is torch.int64, expected torch.bool", x, past, is_init.long())
    text = "is_init has shape [2, 4], expected [B, T] = [2, 5]"
    refuse(ValueError, text, x, past, is_init[:, :4])
    refuse(RuntimeError, "is_init is on meta", x, past, is_init.to("meta"))
