"""The mLSTM against the equations of the paper, which know of no stabilizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.modules._helpers import EXACT, assert_same, make_inputs, run_steps
from torchrl_shm.modules.mlstm import MLSTM, ForgetGate

HEADS, SIZE = 2, 6

both = pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])


def make(forget_gate: ForgetGate = "sigmoid", input_bias: float = 0.0) -> Any:
    sizes = {"memory_size": SIZE, "num_heads": HEADS}
    cell = MLSTM(5, 3, **sizes, forget_gate=forget_gate, dtype=torch.float64)
    with torch.no_grad():
        # at first, gates do not depend on the input
        cell.input.weight.normal_(std=0.5)
        cell.forget.weight.normal_(std=0.5)
        cell.input.bias.fill_(input_bias)
    return cell


def split(memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C and n as the paper means them, and the stabilizer."""
    m = memory[..., -1]
    c = memory[..., : SIZE * SIZE].unflatten(-1, (SIZE, SIZE)) * m.exp()[..., None, None]
    return c, memory[..., SIZE * SIZE : -1] * m.exp().unsqueeze(-1), m


def linear(layer: Any, x: Tensor, parts: int = HEADS) -> Tensor:
    return (x @ layer.weight.T + layer.bias).unflatten(-1, (parts, -1))


def recurrence(cell: Any, x: Tensor, memory: Tensor, is_init: Tensor) -> tuple[Tensor, ...]:
    """Equations 19 to 27: for each sequence, head and step."""
    normed = nn.functional.layer_norm(x, (5,), cell.norm.weight, cell.norm.bias)
    q, v, o = (linear(layer, normed) for layer in (cell.query, cell.value, cell.output))
    k = linear(cell.key, normed) / SIZE**0.5
    i, f = (linear(layer, normed).squeeze(-1).exp() for layer in (cell.input, cell.forget))
    if cell.forget_gate == "sigmoid":
        f = f / (1 + f)
    h = torch.zeros_like(v)
    ends = [torch.zeros_like(part) for part in split(memory)[:2]]
    for b in range(len(x)):
        for a in range(HEADS):
            c, n = (part[b, a] for part in split(memory)[:2])
            for t in range(x.shape[1]):
                if is_init[b, t]:
                    c, n = torch.zeros_like(c), torch.zeros_like(n)
                c = f[b, t, a] * c + i[b, t, a] * torch.outer(v[b, t, a], k[b, t, a])
                n = f[b, t, a] * n + i[b, t, a] * k[b, t, a]
                written = (n @ q[b, t, a]).abs().clamp(min=1)
                h[b, t, a] = torch.sigmoid(o[b, t, a]) * (c @ q[b, t, a]) / written
            ends[0][b, a], ends[1][b, a] = c, n
    y = h.flatten(-2) + normed @ cell.shortcut.weight.T + cell.shortcut.bias
    return y @ cell.out.weight.T + cell.out.bias, *ends


@both
@pytest.mark.parametrize("input_bias", [-4.0, 0.0, 3.0])
def test_recurrence_of_the_paper(forget_gate: ForgetGate, input_bias: float) -> None:
    cell = make(forget_gate, input_bias)
    x, memory, is_init = make_inputs(cell, steps=45)
    y, final, _ = cell(x, memory, is_init)
    expected = recurrence(cell, x, memory, is_init)

    # m says how the others are scaled, and is no quantity of the paper
    def scaled(memory: Tensor) -> tuple[Tensor, Tensor]:
        scale = memory.detach()[..., -1].exp().unsqueeze(-1)
        c, n = memory[..., : SIZE * SIZE] * scale, memory[..., SIZE * SIZE : -1] * scale
        return c.unflatten(-1, (SIZE, SIZE)), n

    assert_same((y, *scaled(final)), expected, [x, memory, *cell.parameters()])


@both
def test_steps_keep_the_stabilizer_of_the_sequence(forget_gate: ForgetGate) -> None:
    # little is written, so that what the forget gate leaves of m decides
    cell = make(forget_gate, input_bias=-5.0)
    x, memory, is_init = make_inputs(cell, steps=45)
    for steps in (1, 20, 45):
        start = x[:, :steps], memory, is_init[:, :steps]
        assert_close(cell(*start)[1], run_steps(cell, *start, None)[1], **EXACT)


def test_stabilizer_of_the_paper() -> None:
    """Equation 15, and zero where an episode starts."""
    cell = make(input_bias=-2.0)
    x, memory, is_init = make_inputs(cell, steps=45)
    forget, gate = (layer(cell.norm(x)) for layer in (cell.forget, cell.input))
    m = memory[..., -1]
    for t in range(x.shape[1]):
        m = torch.where(is_init[:, t, None], 0, m)
        m = torch.maximum(nn.functional.logsigmoid(forget[:, t]) + m, gate[:, t])
    assert_close(cell(x, memory, is_init)[1][..., -1], m, **EXACT)


def test_any_stabilizer_is_empty_without_a_memory() -> None:
    cell = make()
    x, memory, _ = make_inputs(cell, steps=45)
    empty = torch.cat([torch.zeros_like(memory[..., :-1]), memory[..., -1:]], -1)
    assert_close(cell(x, empty)[0], cell(x)[0], **EXACT)


@both
def test_gates_that_overflow(forget_gate: ForgetGate) -> None:
    """Where much was written, a common factor of all that is written has no influence."""
    cell, other = make(forget_gate, 300.0), make(forget_gate, 900.0)
    other.load_state_dict({**cell.state_dict(), "input.bias": other.input.bias})
    x, _, _ = make_inputs(cell, steps=45)
    for last in (cell(x)[0], cell.step(x[:, 0])[0].unsqueeze(1)):
        expected = other(x)[0][:, : last.shape[1]]
        assert last.isfinite().all()
        assert_close(last, expected, **EXACT)
    for parameter in torch.autograd.grad(other(x)[0].sum(), list(other.parameters())):
        assert parameter.isfinite().all()


def test_it_remembers_from_the_start() -> None:
    cell = MLSTM(5, 3, memory_size=4, num_heads=4)
    assert_close(cell.forget.bias.detach(), torch.tensor([3.0, 4.0, 5.0, 6.0]))
    assert cell.input.bias.abs().max() < 0.5
    assert not cell.forget.weight.any()
    assert not cell.input.weight.any()
    assert not MLSTM(5, 3, memory_size=4, forget_gate="exp").forget.bias.any()


def test_shape_of_the_memory() -> None:
    cell = make()
    assert cell.memory_shape == (2, 43)
    assert "memory_size=6, num_heads=2, forget_gate='sigmoid'" in repr(cell)
