"""The DNC: what its parts promise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.modules._addressing import make_cell, make_state
from tests.modules._helpers import EXACT
from torchrl_shm.modules.dnc import DNC, allocation

PARTS = ("memory", "usage", "precedence", "link", "write_weights", "read_weights")


def test_weights_stay_weights() -> None:
    cell = make_cell(DNC, scale=20.0)
    memory = None
    tiny = 1e-12
    for _ in range(100):
        memory = cell.step(torch.randn(4, 3, dtype=torch.float64), memory)[1]
        parts = cell.unpack(memory)
        for name in PARTS[1:]:
            assert (parts[name] >= -tiny).all(), name
        assert (parts["usage"] <= 1 + tiny).all()
        for name in ("write_weights", "precedence", "read_weights", "link"):
            assert (parts[name].sum(-1) <= 1 + tiny).all(), name
        assert (parts["link"].sum(-2) <= 1 + tiny).all()
        assert (parts["link"].diagonal(dim1=-2, dim2=-1) == 0).all()


def test_allocation_follows_the_order_of_usage() -> None:
    usage = torch.rand(50, 9, dtype=torch.float64)
    weights = allocation(usage)
    order = usage.argsort(1)
    lower = torch.cat([torch.ones(50, 1), usage.gather(1, order).cumprod(1)[:, :-1]], 1)
    expected = (1 - usage.gather(1, order)) * lower
    assert_close(weights.gather(1, order), expected, rtol=0, atol=1e-5)
    assert (weights.sum(1) <= 1 + 1e-12).all()


def test_allocation_of_equal_usage_takes_the_first() -> None:
    usage = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    weights = allocation(usage)
    assert_close(weights[0], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), rtol=0, atol=2e-6)
    assert torch.autograd.grad(weights.square().sum(), usage)[0].isfinite().all()
    assert_close(allocation(torch.ones(1, 4)), torch.zeros(1, 4))


def ask(cell: Any, **wishes: Any) -> tuple[Tensor, ...]:
    """What a controller asks for that writes to free cells only and forgets nothing."""
    wishes = {"value": [0.0, 0, 0], "key": [0.0, 0, 0], "write": 99.0, "mode": 1} | wishes
    value, key = (torch.tensor([wishes[name]], dtype=torch.float64) for name in ("value", "key"))
    gates = torch.tensor([[-99.0] * 5 + [99.0, wishes["write"]]], dtype=torch.float64)
    modes = 99.0 * F.one_hot(torch.tensor(wishes["mode"]), 3).double().repeat(1, 2)
    strengths = torch.full((1, 3), 99.0, dtype=torch.float64)
    return key, key.repeat(1, 2), strengths, value, gates, modes


def test_writes_to_the_cell_used_least() -> None:
    cell = make_cell(DNC)
    parts = cell.unpack(make_state(cell, 1))
    parts["usage"].copy_(torch.tensor([[0.9, 0.8, 0.0, 0.7, 1.0]]))
    parts["write_weights"].zero_()
    parts = cell.access(ask(cell, value=[1.0, 2, 3]), parts)
    expected = F.one_hot(torch.tensor([2]), 5).double()
    assert_close(parts["write_weights"], expected, rtol=0, atol=1e-5)
    before = parts["memory"].clone()
    parts = cell.access(ask(cell, value=[1.0, 2, 3], write=-99.0), parts)
    assert_close(parts["memory"], before, **EXACT)
    assert_close(parts["usage"][0, 2].item(), 1.0, rtol=0, atol=1e-5)


def test_reads_what_was_written_next_and_before() -> None:
    cell = make_cell(DNC)
    values = torch.eye(3).tolist()
    parts = cell.unpack(torch.zeros(1, *cell.memory_shape, dtype=torch.float64))
    for value in values:
        parts = cell.access(ask(cell, value=value), parts)
    # find the first by content, then go on twice and back once
    for mode, expected in ((1, 0), (2, 1), (2, 2), (0, 1)):
        parts = cell.access(ask(cell, key=values[0], mode=mode, write=-99.0), parts)
        assert_close(parts["reads"][0, 0].tolist(), values[expected], rtol=0, atol=1e-4)


def test_freed_cells_are_written_again() -> None:
    cell = make_cell(DNC)
    parts = cell.unpack(make_state(cell, 1))
    parts["usage"].fill_(1.0)
    parts["read_weights"].copy_(F.one_hot(torch.tensor([3, 1]), 5))
    asked = list(ask(cell))
    asked[4][:, 3] = 99.0
    parts = cell.access(tuple(asked), parts)
    assert_close(parts["usage"][0], torch.tensor([1.0, 1, 1, 0, 1], dtype=torch.float64))
    assert parts["write_weights"].argmax() == 3
