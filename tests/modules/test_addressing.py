"""NTM and DNC against the equations of their papers in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from tests.modules._addressing import STEPS, make_cell, make_state
from tests.modules._helpers import EXACT

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


@every_cell
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cells": 0}, "num_cells=0 must be at least 1"),
        ({"cell_size": 0}, "cell_size=0 must be at least 1"),
        ({"num_reads": 0}, "num_reads=0 must be at least 1"),
        ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
        ({"controller": "gru"}, "controller='gru' is unknown; choose one of"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(kind: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(3, 4, **options)
