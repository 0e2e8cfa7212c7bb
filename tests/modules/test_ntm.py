"""The NTM: the equations of the paper in numpy, and how its heads move."""

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
from torchrl_shm.modules.ntm import NTM, sharpen, shift

every_controller = pytest.mark.parametrize("controller", ["lstm", "linear"])


def make(controller: Any = "lstm", *, scale: float = 1.0, **options: Any) -> Any:
    """A small cell; the larger the scale, the more its heads do."""
    options = {"num_reads": 2, "hidden_size": 7, "dtype": torch.float64} | options
    cell = NTM(3, 4, 5, 3, controller=controller, **options)
    with torch.no_grad():
        cell.interface.weight.mul_(scale)
    return cell


def make_state(cell: Any, batch: int = 2) -> Tensor:
    """Random states as they may occur: the weights of a head sum to one."""
    state = torch.randn(batch, *cell.memory_shape, dtype=torch.float64)
    weights = cell.unpack(state)["weights"]
    weights.copy_(weights.softmax(-1))
    return state


# the equations of the paper, one row and one step at a time


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: Any) -> Any:
    return np.exp(x) / np.exp(x).sum()


def softplus(x: Any) -> Any:
    return np.log1p(np.exp(x))


def control(p: Any, z: Any, s: Any) -> Any:
    if "controller.weight" in p:
        return np.tanh(p["controller.weight"] @ z + p["controller.bias"])
    gates = p["controller.weight_ih"] @ z + p["controller.bias_ih"]
    gates += p["controller.weight_hh"] @ s["hidden"] + p["controller.bias_hh"]
    i, f, g, o = np.split(gates, 4)
    s["cell"] = sigmoid(f) * s["cell"] + sigmoid(i) * np.tanh(g)
    s["hidden"] = sigmoid(o) * np.tanh(s["cell"])
    return s["hidden"]


def address(memory: Any, last: Any, key: Any, strength: Any, gate: Any, moves: Any, power: Any):
    def length(x: Any) -> Any:
        return np.sqrt(np.dot(x, x) + 1e-6)

    cosines = [np.dot(row, key) / (length(row) * length(key)) for row in memory]
    gated = gate * softmax(strength * np.array(cosines)) + (1 - gate) * last
    cells = len(memory)
    moved = np.zeros(cells)
    for i in range(cells):
        for j, by in enumerate((-1, 0, 1)):
            moved[(i + by) % cells] += moves[j] * gated[i]
    powers = (moved + 1e-8) ** power
    return powers / powers.sum()


def numpy_step(p: Any, x: Any, s: Any, size: int = 3, reads: int = 2) -> Any:
    h = control(p, np.concatenate([x, s["reads"].ravel()]), s)
    asked = p["interface.weight"] @ h + p["interface.bias"]
    heads = 1 + reads
    ends = np.cumsum([heads * size, heads, heads, heads * 3, size, heads])
    keys, strengths, powers, moves, value, gates, erase = np.split(asked, ends)
    old = p["content"] + s["memory"]
    for head in range(heads):
        s["weights"][head] = address(
            old,
            s["weights"][head],
            keys[head * size :][:size],
            softplus(strengths[head]),
            sigmoid(gates[head]),
            softmax(moves[3 * head :][:3]),
            1 + softplus(powers[head]),
        )
    write = s["weights"][0]
    memory = old * (1 - np.outer(write, sigmoid(erase))) + np.outer(write, value)
    s["memory"] = memory - p["content"]
    s["reads"] = s["weights"][1:] @ memory
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


# how heads move


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
    cell = make()
    parts = cell.unpack(torch.zeros(1, *cell.memory_shape, dtype=torch.float64))
    target = cell.content[3].tolist()
    # find a cell by content, then walk on over the end of the tape, and one step back
    for gate, move, expected in ((99.0, 1, 3), (-99.0, 2, 4), (-99.0, 2, 0), (-99.0, 0, 4)):
        parts = cell.access(ask(target, gate=gate, move=move), parts)
        assert (parts["weights"].argmax(-1) == expected).all()
        assert_close(parts["reads"][0, 0], cell.content[expected].detach(), rtol=0, atol=1e-2)


def test_empty_memory_is_found_by_content_whatever_the_gate() -> None:
    cell = make()
    parts = cell.unpack(torch.zeros(1, *cell.memory_shape, dtype=torch.float64))
    target = cell.content[2].tolist()
    for gate in (99.0, -3.0):
        found = cell.access(ask(target, gate=gate), parts)
        assert (found["weights"].argmax(-1) == 2).all()
        assert_close(found["weights"].sum(-1), torch.ones(1, 3, dtype=torch.float64))


def test_reads_what_was_written() -> None:
    cell = make()
    parts = cell.unpack(torch.zeros(1, *cell.memory_shape, dtype=torch.float64))
    value = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    parts = cell.access(ask(cell.content[1].tolist(), value=value.tolist()), parts)
    expected = cell.content[1].detach() + value
    assert_close(parts["reads"][0], expected.expand(2, 3), rtol=0, atol=2e-2)


def test_weights_sum_to_one() -> None:
    cell = make(scale=20.0)
    memory = None
    for _ in range(100):
        memory = cell.step(torch.randn(4, 3, dtype=torch.float64), memory)[1]
        weights = cell.unpack(memory)["weights"]
        assert (weights >= 0).all()
        assert_close(weights.sum(-1), torch.ones(4, 3, dtype=torch.float64))


def test_initial_content_is_learned() -> None:
    cell = make()
    y, _, _ = cell(torch.randn(2, 6, 3, dtype=torch.float64))
    y.square().sum().backward()
    assert (cell.content.grad != 0).all()


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
        NTM(3, 4, **options)
