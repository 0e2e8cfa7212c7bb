"""The LRU cell: the equations of the paper, its initialization and what it promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.modules._helpers import assert_same, make_inputs
from torchrl_shm.modules.lru import LRU

CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}


def make(**options: Any) -> LRU:
    torch.manual_seed(0)
    cell = LRU(3, 5, memory_size=6, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return cell


def reference(cell: LRU, x: Tensor, memory: Tensor, is_init: Tensor) -> tuple[Tensor, Tensor]:
    """Section 3 and figure 1 of the paper, step by step, with complex matrices."""
    factor = torch.exp(-torch.exp(cell.nu_log) + 1j * torch.exp(cell.theta_log))
    b = cell.write.weight[0::2] + 1j * cell.write.weight[1::2]
    c = cell.read.weight[:, 0::2] - 1j * cell.read.weight[:, 1::2]
    state = memory[..., 0] + 1j * memory[..., 1]
    outputs: list[Tensor] = []
    for t in range(x.shape[1]):
        u = x[:, t] - x[:, t].mean(-1, keepdim=True)
        u = u / torch.sqrt(u.square().mean(-1, keepdim=True) + 1e-5)
        u = u * cell.norm.weight + cell.norm.bias
        state = torch.where(is_init[:, t, None], 0, state)
        state = factor * state + torch.exp(cell.gamma_log) * (u.to(b.dtype) @ b.T)
        o = (state @ c.T).real + cell.skip * u
        o = o * (1 + torch.erf(o / math.sqrt(2))) / 2
        left, right = (o @ cell.glu.weight.T + cell.glu.bias).chunk(2, -1)
        h = x[:, t] + left / (1 + torch.exp(-right))
        outputs.append(h @ cell.out.weight.T + cell.out.bias)
    return torch.stack(outputs, 1), torch.stack([state.real, state.imag], -1)


@pytest.mark.parametrize("steps", [1, 6, 30])
def test_equals_the_equations(steps: int) -> None:
    cell = make(r_min=0.5, r_max=0.99)
    x, memory, is_init = make_inputs(cell, steps=steps)
    expected = reference(cell, x, memory, is_init)
    actual = cell(x, memory, is_init)[:2]
    assert_same(actual, expected, [x, memory, *cell.parameters()], **CLOSE)


def eigenvalues(cell: LRU) -> tuple[Tensor, Tensor]:
    return torch.exp(-torch.exp(cell.nu_log)).detach(), torch.exp(cell.theta_log).detach()


def test_the_ring_is_filled_evenly() -> None:
    torch.manual_seed(0)
    cell = LRU(3, 5, memory_size=4000, r_min=0.6, r_max=0.9, max_phase=1.5, dtype=torch.float64)
    modulus, phase = eigenvalues(cell)
    assert 0.6 <= modulus.min() < 0.601
    assert 0.899 < modulus.max() <= 0.9
    assert 0 < phase.min() < 0.01
    assert 1.49 < phase.max() <= 1.5
    # half of the area lies within the radius whose square is half way
    middle = math.sqrt((0.6**2 + 0.9**2) / 2)
    assert (modulus < middle).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert phase.mean().item() == pytest.approx(0.75, abs=0.03)
    assert_close(torch.exp(cell.gamma_log).square() + modulus.square(), torch.ones_like(modulus))


def test_the_whole_disk_by_default() -> None:
    torch.manual_seed(0)
    cell = LRU(3, 5, memory_size=4000)
    modulus, phase = eigenvalues(cell)
    assert modulus.min() < 0.1
    assert modulus.max() < 1
    assert phase.max().item() == pytest.approx(2 * math.pi, abs=0.01)
    assert all(p.isfinite().all() for p in cell.parameters())


@pytest.mark.parametrize("shift", [-20.0, 0.0, 5.0])
def test_it_cannot_explode(shift: float) -> None:
    cell = make()
    with torch.no_grad():
        cell.nu_log.add_(shift)
    assert eigenvalues(cell)[0].max() < 1


def test_states_are_equally_large_on_white_noise() -> None:
    torch.manual_seed(0)
    cell = LRU(16, 5, memory_size=8, r_min=0.1, r_max=0.95, dtype=torch.float64)
    with torch.no_grad():
        # the same rows for all, to compare the recurrences only
        cell.write.weight.copy_(cell.write.weight[:2].repeat(8, 1))
        _, last, _ = cell(torch.randn(2000, 100, 16, dtype=torch.float64))
    size = last.square().sum(-1).mean(0)
    assert_close(size, size.mean().expand(8), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_min": -0.1}, r"r_min=-0.1 and r_max=1.0 must be 0 <= r_min < r_max <= 1"),
        ({"r_max": 1.1}, r"r_min=0.0 and r_max=1.1 must be"),
        ({"r_min": 0.9, "r_max": 0.9}, r"r_min=0.9 and r_max=0.9 must be"),
        ({"max_phase": 0.0}, r"max_phase=0.0 must be positive"),
        ({"max_phase": float("inf")}, r"max_phase=inf must be positive and finite"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LRU(3, 5, **options)
