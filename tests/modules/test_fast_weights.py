"""Fast weight programmers: both rules against their equations, and what the rules mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.modules._helpers import EXACT, assert_same, make_inputs
from torchrl_shm.modules.fast_weights import FastWeights, Rule

both = pytest.mark.parametrize("rule", ["delta", "additive"])


def make(rule: Rule, **options: Any) -> Any:
    return FastWeights(5, 3, 6, rule=rule, dtype=torch.float64, **options)


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
def test_what_is_written_again_and_again(rule: Rule) -> None:
    """The delta rule approaches the value and stays there, the additive one piles up."""
    cell = make(rule)
    x = torch.randn(4, 1, 5, dtype=torch.float64)
    normed, _, k, v = (z[:, 0] for z in project(cell, x))
    # what one write changes of what the key finds
    reached = k.square().sum(-1, keepdim=True)
    for steps in (1, 2, 100):
        memory = cell(x.expand(-1, steps, -1))[1]
        found = (memory @ k.unsqueeze(-1)).squeeze(-1)
        if rule == "additive":
            expected = steps * reached * v
        else:
            left = 1 - write_strength(cell, normed).unsqueeze(-1) * reached
            expected = (1 - left**steps) * v
        assert_close(found, expected, **EXACT)


def test_keys_sum_to_one() -> None:
    cell = make("additive")
    x = torch.randn(4, 20, 5, dtype=torch.float64)
    # but for the eps
    assert_close(cell(x)[1].sum(-1), project(cell, x)[3].sum(1), rtol=1e-4, atol=1e-4)


def test_the_delta_rule_only_shrinks_what_is_there() -> None:
    """Without values, no direction of the memory grows: |k| <= 1 and beta < 1."""
    cell = make("delta")
    with torch.no_grad():
        cell.value.weight.zero_()
    memory = torch.randn(4, 6, 6, dtype=torch.float64)
    after = cell(5 * torch.randn(4, 30, 5, dtype=torch.float64), memory)[1]
    before, after = (torch.linalg.matrix_norm(m, 2) for m in (memory, after))
    assert (after < before).all()


@both
def test_options_are_shown(rule: Rule) -> None:
    cell = make(rule)
    assert (cell.beta is None) == (rule == "additive")
    assert f"memory_size=6, rule={rule!r}" in repr(cell)
