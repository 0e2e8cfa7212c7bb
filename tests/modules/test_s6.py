"""The S6 cell: the equations of the Mamba paper, its initialization."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.modules._helpers import assert_same, make_inputs
from torchrl_shm.modules.s6 import S6

CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}


def make(memory_size: int = 4, **options: Any) -> S6:
    torch.manual_seed(0)
    options = {"inner_size": 6, "dt_rank": 2, "dtype": torch.float64} | options
    cell = S6(3, 5, memory_size=memory_size, **options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        # steps of a size at which the recurrence matters
        cell.dt_proj.bias.add_(3)
    return cell


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def reference(cell: S6, x: Tensor, memory: Tensor, is_init: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 2 in the block of figure 3, step by step."""
    n, r = cell.memory_size, cell.dt_rank
    a = -torch.exp(cell.A_log)
    outputs: list[Tensor] = []
    for t in range(x.shape[1]):
        memory = torch.where(is_init[:, t, None, None], 0, memory)
        state, past = memory[..., :n], memory[..., n:]
        normed = x[:, t] - x[:, t].mean(-1, keepdim=True)
        normed = normed / torch.sqrt(normed.square().mean(-1, keepdim=True) + 1e-5)
        normed = normed * cell.norm.weight + cell.norm.bias
        u, z = (normed @ cell.in_proj.weight.T).tensor_split(2, -1)
        window = torch.cat([past, u[..., None]], -1)
        u = silu((window * cell.conv_weight).sum(-1) + cell.conv_bias)
        projected = u @ cell.x_proj.weight.T
        rank, b, c = projected[:, :r], projected[:, r : r + n], projected[:, r + n :]
        delta = torch.log1p(torch.exp(rank @ cell.dt_proj.weight.T + cell.dt_proj.bias))
        state = torch.exp(delta[..., None] * a) * state + (delta * u)[..., None] * b[:, None]
        y = ((state * c[:, None]).sum(-1) + cell.skip * u) * silu(z)
        h = x[:, t] + y @ cell.out_proj.weight.T
        outputs.append(h @ cell.out.weight.T + cell.out.bias)
        memory = torch.cat([state, window[..., 1:]], -1)
    return torch.stack(outputs, 1), memory


@pytest.mark.parametrize(("steps", "kernel_size"), [(1, 4), (6, 2), (30, 1), (30, 4)])
def test_equals_the_equations(steps: int, kernel_size: int) -> None:
    cell = make(kernel_size=kernel_size)
    x, memory, is_init = make_inputs(cell, steps=steps)
    expected = reference(cell, x, memory, is_init)
    actual = cell(x, memory, is_init)[:2]
    assert_same(actual, expected, [x, memory, *cell.parameters()], **CLOSE)


def test_initialization() -> None:
    torch.manual_seed(0)
    cell = S6(3, 5, memory_size=7, inner_size=2000, dt_min=0.01, dt_max=0.2, dtype=torch.float64)
    logarithms = torch.arange(1, 8, dtype=torch.float64).log()
    assert_close(cell.A_log.detach(), logarithms.expand(2000, 7), **CLOSE)
    steps = torch.nn.functional.softplus(cell.dt_proj.bias.detach())
    assert 0.01 <= steps.min() < 0.0101
    assert 0.198 < steps.max() <= 0.2
    # evenly in their logarithm
    middle = (math.log(0.01) + math.log(0.2)) / 2
    assert steps.log().mean().item() == pytest.approx(middle, abs=0.05)
    assert (cell.skip == 1).all()


def test_without_a_kernel_the_memory_is_the_state() -> None:
    assert make(kernel_size=1).memory_shape == (6, 4)
    assert make(kernel_size=4).memory_shape == (6, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt_min": 0.0}, r"dt_min=0.0 and dt_max=0.1 must be positive and in order"),
        ({"dt_min": 0.2}, r"dt_min=0.2 and dt_max=0.1 must be positive and in order"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S6(3, 5, **options)
