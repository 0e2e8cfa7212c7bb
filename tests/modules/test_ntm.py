"""The NTM: how its heads move, and what it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.modules._addressing import make_cell
from torchrl_shm.modules.ntm import NTM, sharpen, shift


def test_shift_moves_in_a_circle() -> None:
    weights = torch.tensor([[[0.0, 0.2, 0.8]]])
    for move, expected in enumerate(([0.2, 0.8, 0.0], [0.0, 0.2, 0.8], [0.8, 0.0, 0.2])):
        shifts = F.one_hot(torch.tensor([[move]]), 3).float()
        assert_close(shift(weights, shifts), torch.tensor([[expected]]))


def test_sharpen_raises_to_a_power() -> None:
    weights = torch.rand(2, 3, 5, dtype=torch.float64)
    for power in (1.0, 2.5, 7.0):
        expected = weights**power / (weights**power).sum(-1, keepdim=True)
        sharpness = torch.full((2, 3), power, dtype=torch.float64)
        assert_close(sharpen(weights, sharpness), expected, rtol=1e-5, atol=1e-8)


def test_sharpen_is_finite_where_powers_vanish() -> None:
    weights = torch.tensor([[[1e-6, 1e-5, 0.0]]], requires_grad=True)
    sharpness = torch.full((1, 1), 50.0, requires_grad=True)
    sharp = sharpen(weights, sharpness)
    assert_close(sharp, torch.tensor([[[0.0, 1.0, 0.0]]]))
    for gradient in torch.autograd.grad(sharp[..., 0].sum(), (weights, sharpness)):
        assert gradient.isfinite().all()
    assert_close(sharpen(torch.zeros(1, 1, 4), sharpness), torch.full((1, 1, 4), 0.25))


def ask(key: list[float], **wishes: Any) -> tuple[Tensor, ...]:
    """What a controller asks of three heads: one key, sharp; nothing is erased."""
    wishes = {"value": [0.0, 0, 0], "gate": 99.0, "move": 1} | wishes
    keys = torch.tensor([key * 3], dtype=torch.float64)
    strengths = torch.tensor([[99.0] * 3 + [9.0] * 3], dtype=torch.float64)
    shifts = 99.0 * F.one_hot(torch.tensor(wishes["move"]), 3).double().repeat(1, 3)
    value = torch.tensor([wishes["value"]], dtype=torch.float64)
    gates = torch.tensor([[wishes["gate"]] * 3 + [-99.0] * 3], dtype=torch.float64)
    return keys, strengths, shifts, value, gates


def test_heads_walk_along_the_cells() -> None:
    cell = make_cell(NTM)
    parts = cell.unpack(torch.zeros(1, *cell.memory_shape, dtype=torch.float64))
    target = cell.content[3].tolist()
    # find a cell by content, then walk on over the end of the tape, and one step back
    for gate, move, expected in ((99.0, 1, 3), (-99.0, 2, 4), (-99.0, 2, 0), (-99.0, 0, 4)):
        parts = cell.access(ask(target, gate=gate, move=move), parts)
        assert (parts["weights"].argmax(-1) == expected).all()
        assert_close(parts["reads"][0, 0], cell.content[expected].detach(), rtol=0, atol=1e-2)


def test_empty_memory_is_found_by_content_whatever_the_gate() -> None:
    cell = make_cell(NTM)
    parts = cell.unpack(torch.zeros(1, *cell.memory_shape, dtype=torch.float64))
    target = cell.content[2].tolist()
    for gate in (99.0, -3.0):
        found = cell.access(ask(target, gate=gate), parts)
        assert (found["weights"].argmax(-1) == 2).all()
        assert_close(found["weights"].sum(-1), torch.ones(1, 3, dtype=torch.float64))


def test_reads_what_was_written() -> None:
    cell = make_cell(NTM)
    parts = cell.unpack(torch.zeros(1, *cell.memory_shape, dtype=torch.float64))
    value = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    parts = cell.access(ask(cell.content[1].tolist(), value=value.tolist()), parts)
    expected = cell.content[1].detach() + value
    assert_close(parts["reads"][0], expected.expand(2, 3), rtol=0, atol=2e-2)


def test_weights_sum_to_one() -> None:
    cell = make_cell(NTM, scale=20.0)
    memory = None
    for _ in range(100):
        memory = cell.step(torch.randn(4, 3, dtype=torch.float64), memory)[1]
        weights = cell.unpack(memory)["weights"]
        assert (weights >= 0).all()
        assert_close(weights.sum(-1), torch.ones(4, 3, dtype=torch.float64))


def test_initial_content_is_learned() -> None:
    cell = make_cell(NTM)
    y, _, _ = cell(torch.randn(2, 6, 3, dtype=torch.float64))
    y.square().sum().backward()
    assert (cell.content.grad != 0).all()
