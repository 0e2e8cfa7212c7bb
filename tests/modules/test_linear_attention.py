"""Linear attention against its recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.modules._helpers import assert_same, make_inputs
from torchrl_shm.modules.linear_attention import LinearAttention

both = pytest.mark.parametrize("normalized", [True, False])


def make(**options: Any) -> Any:
    return LinearAttention(5, 3, memory_size=6, dtype=torch.float64, **options)


def project(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normed = nn.functional.layer_norm(x, (5,), cell.norm.weight, cell.norm.bias)
    q, k = (normed @ layer.weight.T for layer in (cell.query, cell.key))
    # exp(a) below zero, a + 1 above, over the root of the size
    q, k = (torch.where(a > 0, a + 1, a.exp()) / 6**0.5 for a in (q, k))
    return normed, q, k, normed @ cell.value.weight.T


def read_out(cell: Any, y: Tensor, normed: Tensor) -> Tensor:
    y = y + normed @ cell.shortcut.weight.T + cell.shortcut.bias
    return y @ cell.out.weight.T + cell.out.bias


def recurrence(cell: Any, x: Tensor, memory: Tensor, is_init: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 16 to 20, sequence by sequence and step by step."""
    normed, q, k, v = project(cell, x)
    outputs, ends = [], []
    for b in range(len(x)):
        s, z = memory[b, :6], memory[b, 6:].sum(0)
        for t in range(x.shape[1]):
            if is_init[b, t]:
                s, z = torch.zeros_like(s), torch.zeros_like(z)
            s, z = s + torch.outer(v[b, t], k[b, t]), z + k[b, t]
            y = s @ q[b, t]
            if cell.normalized:
                y = y / (z @ q[b, t])
            outputs.append(y)
        ends.append(torch.cat([s, z.unsqueeze(0)]) if cell.normalized else s)
    return read_out(cell, torch.stack(outputs).view(len(x), -1, 6), normed), torch.stack(ends)


@both
def test_recurrence_of_the_paper(normalized: bool) -> None:
    cell = make(normalized=normalized)
    x, memory, is_init = make_inputs(cell, steps=45)
    expected = recurrence(cell, x, memory, is_init)
    assert_same(cell(x, memory, is_init)[:2], expected, [x, memory, *cell.parameters()])


@both
def test_shape_of_the_memory(normalized: bool) -> None:
    cell = make(normalized=normalized)
    assert cell.memory_shape == (7 if normalized else 6, 6)
    assert f"memory_size=6, normalized={normalized}" in repr(cell)


def test_features_that_round_to_zero_make_no_nan() -> None:
    cell: Any = LinearAttention(5, 3, memory_size=4)
    with torch.no_grad():
        for layer in (cell.key, cell.query):
            layer.weight.mul_(60)
    y, memory, _ = cell(torch.randn(64, 20, 5))
    assert y.isfinite().all()
    assert memory.isfinite().all()
