"""Elman's network against its equations; what it shares with GRU and LSTM is in `test_rnn.py`."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.modules._helpers import assert_same, make_inputs
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
