"""NTM and DNC: against the equations of their papers in numpy, and what their weights sum to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from tests.modules._addressing import STEPS, make_cell, make_state
from tests.modules._helpers import EXACT
from torchrl_shm.modules import _addressing, dnc
from torchrl_shm.modules.dnc import DNC, allocation
from torchrl_shm.modules.ntm import NTM, sharpen

every_cell = pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.__name__)
every_controller = pytest.mark.parametrize("controller", ["lstm", "linear"])


@every_cell
@every_controller
@pytest.mark.parametrize("start", ["empty", "used"])
def test_equals_the_paper(kind: Any, controller: str, start: str) -> None:
    cell = make_cell(kind, controller, scale=4.0)
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    memory = make_state(cell)
    if start == "empty":
        memory = torch.zeros_like(memory)
    y, final, _ = cell(x, memory)
    parameters = {name: p.detach().numpy() for name, p in cell.named_parameters()}
    for b in range(2):
        state = {name: part[b].clone().numpy() for name, part in cell.unpack(memory).items()}
        expected = [STEPS[kind](parameters, step, state) for step in x[b].numpy()]
        assert_close(y[b], torch.tensor(np.array(expected)), **EXACT)
        for name, part in cell.unpack(final).items():
            assert_close(part[b], torch.tensor(state[name]), **EXACT)


@every_cell
@every_controller
def test_gradients_equal_finite_differences(kind: Any, controller: str) -> None:
    cell = make_cell(kind, controller, scale=3.0, hidden_size=3)
    names, values = zip(*cell.named_parameters(), strict=True)
    is_init = torch.zeros(2, 3, dtype=torch.bool)
    is_init[0, 1] = True

    def run(x: Tensor, memory: Tensor, *parameters: Tensor) -> Any:
        given = dict(zip(names, parameters, strict=True))
        return functional_call(cell, given, (x, memory, is_init))[:2]

    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    used = make_state(cell).requires_grad_()
    # in an empty memory usages are equal, where the order of cells has no derivative
    for memory in (used, torch.zeros_like(used)):
        inputs = (x, memory, *values)
        torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


@every_cell
def test_linear_controller_keeps_nothing_by_itself(kind: Any) -> None:
    lstm, linear = (make_cell(kind, controller) for controller in ("lstm", "linear"))
    assert lstm.memory_shape[0] - linear.memory_shape[0] == 2 * 7
    parts = lstm.unpack(torch.zeros(1, *lstm.memory_shape))
    assert parts.keys() - linear.unpack(torch.zeros(1, *linear.memory_shape)) == {"hidden", "cell"}


def test_weights_of_the_ntm_sum_to_one() -> None:
    cell = make_cell(NTM, scale=20.0)
    memory = None
    for _ in range(100):
        memory = cell.step(torch.randn(4, 3, dtype=torch.float64), memory)[1]
        weights = cell.unpack(memory)["weights"]
        assert (weights >= 0).all()
        assert_close(weights.sum(-1), torch.ones(4, 3, dtype=torch.float64))


def test_sharpen_is_finite_where_powers_vanish() -> None:
    weights = torch.tensor([[[1e-6, 1e-5, 0.0]]], requires_grad=True)
    sharpness = torch.full((1, 1), 50.0, requires_grad=True)
    sharp = sharpen(weights, sharpness)
    assert_close(sharp, torch.tensor([[[0.0, 1.0, 0.0]]]))
    for gradient in torch.autograd.grad(sharp[..., 0].sum(), (weights, sharpness)):
        assert gradient.isfinite().all()
    assert_close(sharpen(torch.zeros(1, 1, 4), sharpness), torch.full((1, 1, 4), 0.25))


def test_weights_of_the_dnc_sum_to_one_at_most() -> None:
    cell = make_cell(DNC, scale=20.0)
    memory = None
    tiny = 1e-12
    for _ in range(100):
        memory = cell.step(torch.randn(4, 3, dtype=torch.float64), memory)[1]
        parts = cell.unpack(memory)
        for name in ("usage", "precedence", "link", "write_weights", "read_weights"):
            assert (parts[name] >= -tiny).all(), name
        assert (parts["usage"] <= 1 + tiny).all()
        for name in ("write_weights", "precedence", "read_weights", "link"):
            assert (parts[name].sum(-1) <= 1 + tiny).all(), name
        assert (parts["link"].sum(-2) <= 1 + tiny).all()
        assert (parts["link"].diagonal(dim1=-2, dim2=-1) == 0).all()


def test_allocation_of_equal_usage_takes_the_first() -> None:
    usage = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    weights = allocation(usage)
    assert_close(weights[0], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), rtol=0, atol=2e-6)
    assert torch.autograd.grad(weights.square().sum(), usage)[0].isfinite().all()
    assert_close(allocation(torch.ones(1, 4)), torch.zeros(1, 4))


def test_dnc_equals_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("dnc.memory")
    # each guards its divisions in another way
    monkeypatch.setattr(package, "δ", 0.0)
    monkeypatch.setattr("dnc.util.δ", 0.0)
    monkeypatch.setattr(_addressing, "_EPS", 0.0)
    monkeypatch.setattr(dnc, "_EPS", 0.0)
    cell = make_cell(DNC)
    theirs = package.Memory(7, mem_size=5, cell_size=3, read_heads=2)
    parts = cell.unpack(make_state(cell))
    hidden = {name: parts[name].clone() for name in ("memory", "precedence", "write_weights")}
    hidden |= {"read_weights": parts["read_weights"].clone()}
    hidden |= {"usage_vector": parts["usage"].clone(), "link_matrix": parts["link"].unsqueeze(1)}
    for name in ("precedence", "write_weights"):
        hidden[name] = hidden[name].unsqueeze(1)

    for _ in range(5):
        asked = torch.randn(2, sum(cell._interface), dtype=torch.float64).split(cell._interface, 1)
        parts = cell.access(asked, parts)
        write_key, read_keys, strengths, value, gates, modes = asked
        strengths = 1 + F.softplus(strengths)
        erase, free, allocation_gate, write_gate = gates.sigmoid().split((3, 2, 1, 1), 1)
        hidden = theirs.write(
            write_key.unsqueeze(1), value.unsqueeze(1), erase.unsqueeze(1), free,
            strengths[:, 1:], strengths[:, :1], write_gate, allocation_gate, hidden,
        )  # fmt: skip
        # they count backward, forward, content
        modes = modes.view(2, 2, 3).softmax(-1)[..., [0, 2, 1]]
        reads, hidden = theirs.read(read_keys.view(2, 2, 3), strengths[:, 1:], modes, hidden)
        assert_close(parts["reads"], reads, **EXACT)
    their_names = {"usage": "usage_vector", "link": "link_matrix"}
    for name in ("memory", "usage", "link", "precedence", "write_weights", "read_weights"):
        theirs_now = hidden[their_names.get(name, name)]
        assert_close(parts[name], theirs_now.reshape(parts[name].shape), **EXACT)
