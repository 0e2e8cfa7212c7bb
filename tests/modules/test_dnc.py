"""The DNC: the equations of the paper in numpy, another package, and what its parts promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from tests.modules._helpers import EXACT
from torchrl_shm.modules import _addressing, dnc
from torchrl_shm.modules.dnc import DNC, allocation

PARTS = ("memory", "usage", "precedence", "link", "write_weights", "read_weights")

every_controller = pytest.mark.parametrize("controller", ["lstm", "linear"])


def make(controller: Any = "lstm", *, scale: float = 1.0, **options: Any) -> Any:
    """A small cell; the larger the scale, the more its gates do."""
    options = {"num_reads": 2, "hidden_size": 7, "dtype": torch.float64} | options
    cell = DNC(3, 4, 5, 3, controller=controller, **options)
    with torch.no_grad():
        cell.interface.weight.mul_(scale)
    return cell


def make_state(cell: Any, batch: int = 2) -> Tensor:
    """Random states as they may occur: weights sum to at most one."""
    parts = cell.unpack(torch.randn(batch, *cell.memory_shape, dtype=torch.float64))
    for name in ("usage", "precedence", "link", "write_weights", "read_weights"):
        weights = parts[name].softmax(-1)
        parts[name].copy_(0.9 * weights)
    parts["usage"].copy_(torch.rand(batch, 5))
    parts["link"].copy_(parts["link"] * (1 - torch.eye(5)))
    return torch.cat([part.flatten(1) for part in parts.values()], 1)


# the equations of the paper, one row and one step at a time


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: Any) -> Any:
    return np.exp(x) / np.exp(x).sum()


def content(memory: Any, key: Any, strength: Any) -> Any:
    def length(x: Any) -> Any:
        return np.sqrt(np.dot(x, x) + 1e-6)

    cosines = [np.dot(row, key) / (length(row) * length(key)) for row in memory]
    return softmax(strength * np.array(cosines))


def allocate(usage: Any) -> Any:
    order = np.argsort(usage, kind="stable")
    usage = 1e-6 + (1 - 1e-6) * usage
    weights = np.zeros_like(usage)
    for place, cell in enumerate(order):
        weights[cell] = (1 - usage[cell]) * usage[order[:place]].prod()
    return weights


def control(p: Any, z: Any, s: Any) -> Any:
    if "controller.weight" in p:
        return np.tanh(p["controller.weight"] @ z + p["controller.bias"])
    gates = p["controller.weight_ih"] @ z + p["controller.bias_ih"]
    gates += p["controller.weight_hh"] @ s["hidden"] + p["controller.bias_hh"]
    i, f, g, o = np.split(gates, 4)
    s["cell"] = sigmoid(f) * s["cell"] + sigmoid(i) * np.tanh(g)
    s["hidden"] = sigmoid(o) * np.tanh(s["cell"])
    return s["hidden"]


def numpy_step(p: Any, x: Any, s: Any, cells: int = 5, size: int = 3, reads: int = 2) -> Any:
    h = control(p, np.concatenate([x, s["reads"].ravel()]), s)
    asked = p["interface.weight"] @ h + p["interface.bias"]
    ends = np.cumsum([size, reads * size, 1 + reads, size, size, reads, 1, 1])
    pieces = np.split(asked, ends)
    write_key, read_keys, strengths, value, erase, free, g_a, g_w, modes = pieces
    strengths = 1 + np.log1p(np.exp(strengths))
    erase, free, g_a, g_w = (sigmoid(piece) for piece in (erase, free, g_a, g_w))

    usage = s["usage"] + s["write_weights"] - s["usage"] * s["write_weights"]
    for head in range(reads):
        usage = usage * (1 - free[head] * s["read_weights"][head])
    found = content(s["memory"], write_key, strengths[0])
    w = g_w * (g_a * allocate(usage) + (1 - g_a) * found)
    memory, link = s["memory"].copy(), s["link"].copy()
    for i in range(cells):
        for j in range(size):
            memory[i, j] = memory[i, j] * (1 - w[i] * erase[j]) + w[i] * value[j]
        for j in range(cells):
            link[i, j] = (1 - w[i] - w[j]) * link[i, j] + w[i] * s["precedence"][j]
        link[i, i] = 0
    s["precedence"] = (1 - w.sum()) * s["precedence"] + w
    for head in range(reads):
        old = s["read_weights"][head].copy()
        back, look, on = softmax(modes[3 * head : 3 * head + 3])
        found = content(memory, read_keys[head * size :][:size], strengths[1 + head])
        s["read_weights"][head] = back * (link.T @ old) + look * found + on * (link @ old)
        s["reads"][head] = s["read_weights"][head] @ memory
    s.update(usage=usage, memory=memory, link=link, write_weights=w)
    return p["out.weight"] @ np.concatenate([h, s["reads"].ravel()]) + p["out.bias"]


@every_controller
@pytest.mark.parametrize("start", ["empty", "used"])
def test_equals_the_paper(controller: str, start: str) -> None:
    cell = make(controller, scale=4.0)
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    memory = make_state(cell)
    if start == "empty":
        memory = torch.zeros_like(memory)
    y, final, _ = cell(x, memory)
    parameters = {name: p.detach().numpy() for name, p in cell.named_parameters()}
    for row in range(2):
        state = {name: part[row].clone().numpy() for name, part in cell.unpack(memory).items()}
        expected = [numpy_step(parameters, step, state) for step in x[row].numpy()]
        assert_close(y[row], torch.tensor(np.array(expected)), **EXACT)
        for name, part in cell.unpack(final).items():
            assert_close(part[row], torch.tensor(state[name]), **EXACT)


@every_controller
def test_gradients_equal_finite_differences(controller: str) -> None:
    cell = make(controller, scale=3.0, hidden_size=3)
    names, values = zip(*cell.named_parameters(), strict=True)
    is_init = torch.zeros(2, 3, dtype=torch.bool)
    is_init[0, 1] = True

    def run(x: Tensor, memory: Tensor, *parameters: Tensor) -> Any:
        given = dict(zip(names, parameters, strict=True))
        return functional_call(cell, given, (x, memory, is_init))[:2]

    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    memory = make_state(cell).requires_grad_()
    torch.autograd.gradcheck(
        run, (x, memory, *values), eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True
    )
    # nothing is used, and every cell is empty
    empty = torch.zeros_like(memory)
    torch.autograd.gradcheck(
        run, (x, empty, *values), eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True
    )


def test_equals_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("dnc.memory")
    # each guards its divisions in another way
    monkeypatch.setattr(package, "δ", 0.0)
    monkeypatch.setattr("dnc.util.δ", 0.0)
    monkeypatch.setattr(_addressing, "_EPS", 0.0)
    monkeypatch.setattr(dnc, "_EPS", 0.0)
    cell = make()
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
            write_key.unsqueeze(1),
            value.unsqueeze(1),
            erase.unsqueeze(1),
            free,
            strengths[:, 1:],
            strengths[:, :1],
            write_gate,
            allocation_gate,
            hidden,
        )
        # they count backward, forward, content
        modes = modes.view(2, 2, 3).softmax(-1)[..., [0, 2, 1]]
        reads, hidden = theirs.read(read_keys.view(2, 2, 3), strengths[:, 1:], modes, hidden)
        assert_close(parts["reads"], reads, **EXACT)
    for name in PARTS:
        their_name = {"usage": "usage_vector", "link": "link_matrix"}.get(name, name)
        assert_close(parts[name], hidden[their_name].reshape(parts[name].shape), **EXACT)


# what the parts promise


def test_weights_stay_weights() -> None:
    cell = make(scale=20.0)
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
    cell = make()
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
    cell = make()
    values = torch.eye(3).tolist()
    parts = cell.unpack(torch.zeros(1, *cell.memory_shape, dtype=torch.float64))
    for value in values:
        parts = cell.access(ask(cell, value=value), parts)
    # find the first by content, then go on twice and back once
    for mode, expected in ((1, 0), (2, 1), (2, 2), (0, 1)):
        parts = cell.access(ask(cell, key=values[0], mode=mode, write=-99.0), parts)
        assert_close(parts["reads"][0, 0].tolist(), values[expected], rtol=0, atol=1e-4)


def test_freed_cells_are_written_again() -> None:
    cell = make()
    parts = cell.unpack(make_state(cell, 1))
    parts["usage"].fill_(1.0)
    parts["read_weights"].copy_(F.one_hot(torch.tensor([3, 1]), 5))
    asked = list(ask(cell))
    asked[4][:, 3] = 99.0
    parts = cell.access(tuple(asked), parts)
    assert_close(parts["usage"][0], torch.tensor([1.0, 1, 1, 0, 1], dtype=torch.float64))
    assert parts["write_weights"].argmax() == 3


def test_linear_controller_keeps_nothing_by_itself() -> None:
    assert make("lstm").memory_shape[0] - make("linear").memory_shape[0] == 2 * 7
    assert set(make("linear").unpack(torch.zeros(1, *make("linear").memory_shape))) == {
        *PARTS,
        "reads",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cells": 0}, "num_cells=0 must be at least 1"),
        ({"cell_size": 0}, "cell_size=0 must be at least 1"),
        ({"num_reads": 0}, "num_reads=0 must be at least 1"),
        ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
        ({"controller": "gru"}, "controller='gru' is unknown; choose one of"),
    ],
)
def test_refuses(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DNC(3, 4, **options)
