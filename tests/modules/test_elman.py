"""Elman's network against torch's own network, episode by episode."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.modules._helpers import EXACT, assert_same, make_inputs
from torchrl_shm.modules.elman import Elman, Nonlinearity

every_nonlinearity = pytest.mark.parametrize("nonlinearity", get_args(Nonlinearity))
every_depth = pytest.mark.parametrize("num_layers", [1, 3])


def make(**options: Any) -> Any:
    options.setdefault("dtype", torch.float64)
    return Elman(3, 5, **options)


@every_nonlinearity
@every_depth
def test_equals_the_recurrence(nonlinearity: Nonlinearity, num_layers: int) -> None:
    cell = make(nonlinearity=nonlinearity, num_layers=num_layers)
    x, memory, is_init = make_inputs(cell, 4, 13)
    function = torch.tanh if nonlinearity == "tanh" else torch.relu
    outputs: list[Tensor] = []
    states = memory.unbind(1)
    for t in range(13):
        below, new = x[:, t], []
        for weights, state in zip(cell.rnn.all_weights, states, strict=True):
            w_ih, w_hh, b_ih, b_hh = weights
            state = torch.where(is_init[:, t, None], 0, state)
            below = function(below @ w_ih.T + b_ih + state @ w_hh.T + b_hh)
            new.append(below)
        outputs.append(below)
        states = new
    expected = torch.stack(outputs, 1), torch.stack(states, 1)
    assert_same(cell(x, memory, is_init)[:2], expected, [x, memory, *cell.parameters()])


def test_parameters_are_those_of_torchs_network() -> None:
    cell = make(num_layers=3)
    theirs = nn.RNN(3, 5, 3, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(cell.rnn.state_dict())
    x, _, _ = make_inputs(cell, 4, 13)
    assert_close(cell(x)[0], theirs(x)[0], **EXACT)


def test_few_calls_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make()
    x, memory, is_init = make_inputs(cell, 4, 13)
    calls: list[torch.Size] = []
    kernel = torch.rnn_tanh

    def count(data: Tensor, *args: Any) -> Any:
        calls.append(data.shape[:-1])
        return kernel(data, *args)

    monkeypatch.setattr(torch, "rnn_tanh", count)
    cell(x, memory)
    assert calls == [(4, 13)]
    calls.clear()
    cell(x, memory, is_init)
    # one call for each power of two of lengths, and less than half of the steps are padding
    assert len(calls) <= 4
    assert len({(length - 1).bit_length() for _, length in calls}) == len(calls)
    assert sum(shape.numel() for shape in calls) < 2 * 4 * 13


def test_gradients_in_evaluation_mode() -> None:
    cell = make().eval()
    x, memory, is_init = make_inputs(cell, 4, 13)
    cell(x, memory, is_init)[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in cell.parameters())


def test_a_linear_map_makes_any_output_of_the_hidden_state() -> None:
    plain, mapped = make(), Elman(3, 2, hidden_size=5, dtype=torch.float64)
    mapped.rnn.load_state_dict(plain.rnn.state_dict())
    assert mapped.out is not None
    assert mapped.memory_shape == plain.memory_shape == (1, 5)
    x, memory, is_init = make_inputs(plain)
    hidden, final, _ = plain(x, memory, is_init)
    assert_close(mapped(x, memory, is_init)[:2], (mapped.out(hidden), final), **EXACT)
    assert_close(mapped.step(x[:, 0], memory)[0], mapped.out(plain.step(x[:, 0], memory)[0]))
