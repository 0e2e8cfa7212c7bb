"""Fast weight programmers: both rules against their equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.modules._helpers import assert_same, make_inputs
from torchrl_shm.modules.fast_weights import FastWeights, Rule

both = pytest.mark.parametrize("rule", ["delta", "additive"])


def make(rule: Rule, **options: Any) -> Any:
    return FastWeights(5, 3, memory_size=6, rule=rule, dtype=torch.float64, **options)


def project(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normed = nn.functional.layer_norm(x, (5,), cell.norm.weight, cell.norm.bias)
    q, k = (normed @ layer.weight.T for layer in (cell.query, cell.key))
    # exp(a) below zero, a + 1 above
    q, k = (torch.where(a > 0, a + 1, a.exp()) for a in (q, k))
    q, k = (a / (1e-5 + a.sum(-1, keepdim=True)) for a in (q, k))
    return normed, q, k, normed @ cell.value.weight.T


def write_strength(cell: Any, normed: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-normed @ cell.beta.weight[0]))


def recurrence(cell: Any, x: Tensor, memory: Tensor, is_init: Tensor) -> tuple[Tensor, Tensor]:
    """Section 4.2: retrieve what the key finds, mix it with the new value, replace it."""
    normed, q, k, v = project(cell, x)
    outputs, ends = [], []
    for b in range(len(x)):
        w = memory[b]
        for t in range(x.shape[1]):
            if is_init[b, t]:
                w = torch.zeros_like(w)
            new, old = v[b, t], torch.zeros_like(v[b, t])
            if cell.rule == "delta":
                beta, old = write_strength(cell, normed[b, t]), w @ k[b, t]
                new = beta * new + (1 - beta) * old
            w = w - torch.outer(old, k[b, t]) + torch.outer(new, k[b, t])
            outputs.append(w @ q[b, t])
        ends.append(w)
    y = torch.stack(outputs).view(len(x), -1, 6)
    y = y + normed @ cell.shortcut.weight.T + cell.shortcut.bias
    return y @ cell.out.weight.T + cell.out.bias, torch.stack(ends)


@both
def test_recurrence_of_the_paper(rule: Rule) -> None:
    cell = make(rule)
    x, memory, is_init = make_inputs(cell, steps=45)
    expected = recurrence(cell, x, memory, is_init)
    assert_same(cell(x, memory, is_init)[:2], expected, [x, memory, *cell.parameters()])


@both
def test_options_are_shown(rule: Rule) -> None:
    cell = make(rule)
    assert (cell.beta is None) == (rule == "additive")
    assert f"memory_size=6, rule={rule!r}" in repr(cell)
