"""Elman's network: against its recurrence, and against torch's own network, episode by episode."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.modules._helpers import EXACT
from torchrl_shm.modules._slices import cut_at_resets
from torchrl_shm.modules.elman import Elman, Nonlinearity

every_nonlinearity = pytest.mark.parametrize("nonlinearity", get_args(Nonlinearity))
every_depth = pytest.mark.parametrize("num_layers", [1, 3])


def make(**options: Any) -> Any:
    return Elman(3, 5, **{"dtype": torch.float64} | options)


def make_inputs(cell: Elman, batch: int = 4, steps: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, initial memory and resets, one of them at the first step, one at the last."""
    x = torch.randn(batch, steps, 3, dtype=torch.float64)
    memory = torch.randn(batch, *cell.memory_shape, dtype=torch.float64)
    is_init = torch.rand(batch, steps) < 0.2
    is_init[0, 0] = is_init[1, -1] = True
    is_init[2] = False
    return x, memory, is_init


@every_nonlinearity
@every_depth
def test_equals_the_recurrence(nonlinearity: Nonlinearity, num_layers: int) -> None:
    cell = make(nonlinearity=nonlinearity, num_layers=num_layers)
    x, memory, is_init = make_inputs(cell)
    weights = {name: p.detach().numpy() for name, p in cell.rnn.named_parameters()}
    expected = np.zeros((4, 13, 5))
    state = memory.numpy().copy()
    for t in range(13):
        state[is_init[:, t].numpy()] = 0
        below = x[:, t].numpy()
        for n in range(num_layers):
            z = below @ weights[f"weight_ih_l{n}"].T + weights[f"bias_ih_l{n}"]
            z += state[:, n] @ weights[f"weight_hh_l{n}"].T + weights[f"bias_hh_l{n}"]
            below = state[:, n] = np.tanh(z) if nonlinearity == "tanh" else np.maximum(z, 0)
        expected[:, t] = below
    y, final, _ = cell(x, memory, is_init)
    assert_close((y, final), (torch.from_numpy(expected), torch.from_numpy(state)), **EXACT)


@every_nonlinearity
@every_depth
def test_equals_torch_per_episode(nonlinearity: Nonlinearity, num_layers: int) -> None:
    cell = make(nonlinearity=nonlinearity, num_layers=num_layers)
    theirs = nn.RNN(3, 5, num_layers, nonlinearity, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(cell.rnn.state_dict())
    x, memory, is_init = make_inputs(cell)
    x.requires_grad_()
    memory.requires_grad_()
    outputs, finals = [], []
    # states of torch are [num_layers, batch, H]
    for b in range(len(x)):
        starts = [0, *(t for t in range(1, 13) if is_init[b, t]), 13]
        state = memory[b].unsqueeze(1) * (not is_init[b, 0])
        for start, end in pairwise(starts):
            y, final = theirs(x[b : b + 1, start:end], state)
            outputs.append(y[0])
            state = torch.zeros_like(final)
        finals.append(final[:, 0])
    expected = torch.cat(outputs).view(4, 13, 5), torch.stack(finals)
    y, final, _ = cell(x, memory, is_init)
    assert_close((y, final), expected, **EXACT)

    towards = [torch.randn_like(y), torch.randn_like(final)]
    actual = torch.autograd.grad([y, final], [x, memory, *cell.parameters()], towards)
    wanted = torch.autograd.grad(expected, [x, memory, *theirs.parameters()], towards)
    assert_close(actual, wanted, **EXACT)


def test_few_calls_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make()
    x, memory, is_init = make_inputs(cell)
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


def test_no_reset_is_no_flag() -> None:
    cell = make(num_layers=2)
    x, memory, is_init = make_inputs(cell)
    expected = cell(x, memory)[:2]
    assert_close(cell(x, memory, torch.zeros_like(is_init))[:2], expected, **EXACT)


def test_every_step_a_reset() -> None:
    cell = make()
    x, memory, is_init = make_inputs(cell)
    y, final, _ = cell(x, memory, torch.ones_like(is_init))
    expected, _, _ = cell.step(x)
    assert_close((y, final[:, 0]), (expected, expected[:, -1]), **EXACT)


def test_pieces() -> None:
    is_init = torch.tensor([[False, True, False, True], [True, False, False, False]])
    first, piece, step = cut_at_resets(is_init)
    assert first.tolist() == [0, 1, 3, 4]
    assert piece.tolist() == [0, 1, 1, 2, 3, 3, 3, 3]
    assert step.tolist() == [0, 0, 1, 0, 0, 1, 2, 3]
    assert not is_init[0, 0]


def test_an_untrained_mode_still_goes_backward() -> None:
    cell = make().eval()
    x, memory, is_init = make_inputs(cell)
    cell(x, memory, is_init)[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in cell.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"nonlinearity": "gelu"}, "nonlinearity='gelu' is unknown; choose one of ('tanh', 'relu"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


def test_a_linear_map_makes_any_output_of_the_hidden_state() -> None:
    plain, mapped = make(), Elman(3, 2, hidden_size=5, dtype=torch.float64)
    mapped.rnn.load_state_dict(plain.rnn.state_dict())
    assert mapped.out is not None
    assert mapped.memory_shape == plain.memory_shape == (1, 5)
    x, memory, is_init = make_inputs(plain)
    hidden, final, _ = plain(x, memory, is_init)
    assert_close(mapped(x, memory, is_init)[:2], (mapped.out(hidden), final), **EXACT)
    assert_close(mapped.step(x[:, 0], memory)[0], mapped.out(plain.step(x[:, 0], memory)[0]))
    with pytest.raises(ValueError, match="hidden_size=0 must be at least 1"):
        Elman(3, 5, hidden_size=0)
