"""GRU, LSTM and Elman's network: how they run torch's kernels, against TorchRL's modules."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.testing import assert_close
from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode

from tests.modules._helpers import EXACT, assert_same, make_inputs
from torchrl_shm.modules import GRU, LSTM, Elman, _recurrent
from torchrl_shm.modules._resets import pack_parts

# class, name of torch's function, and TorchRL's module with the name of its network
GATED = [(GRU, GRUModule, "gru"), (LSTM, LSTMModule, "lstm")]
every_cell = pytest.mark.parametrize("kind", [Elman, GRU, LSTM])
every_depth = pytest.mark.parametrize("num_layers", [1, 2])


def make(kind: Any, **options: Any) -> Any:
    options.setdefault("dtype", torch.float64)
    return kind(3, 5, **options)


@every_depth
@pytest.mark.parametrize(("kind", "theirs", "name"), GATED)
def test_equals_the_module_of_torchrl(kind: Any, theirs: Any, name: str, num_layers: int) -> None:
    cell = make(kind, num_layers=num_layers, dtype=torch.float32)
    module = theirs(3, 5, num_layers, in_key="x", out_key="y")
    network = getattr(module, name)
    network.load_state_dict(cell.rnn.state_dict())
    x, memory, is_init = (
        z.detach().float() if z.is_floating_point() else z
        for z in make_inputs(make(kind, num_layers=num_layers), 4, 13)
    )
    x.requires_grad_()
    memory.requires_grad_()

    # theirs take the state with which a part starts from the data
    stored = torch.zeros(4, 13, *memory.shape[1:])
    stored[:, 0] = 1
    stored = (
        stored * torch.where(is_init[:, :1].view(4, *(1,) * (memory.ndim - 1)), 0, memory)[:, None]
    )
    keys = [key for key in module.in_keys if "recurrent_state" in key]
    data = TensorDict({"x": x, "is_init": is_init.unsqueeze(-1)}, [4, 13])
    states = [stored] if len(keys) == 1 else stored.unbind(2)
    for key, state in zip(keys, states, strict=True):
        data[key] = state
    with set_recurrent_mode(True):
        data = module(data)
    last = torch.stack([data["next", key][:, -1] for key in keys], 1).view(memory.shape)
    inputs = [x, memory]
    assert_same(
        cell(x, memory, is_init)[:2],
        (data["y"], last),
        [*inputs, *cell.parameters()],
        [*inputs, *network.parameters()],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(("kind", "network"), [(Elman, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM)])
def test_parameters_are_those_of_torchs_network(kind: Any, network: Any) -> None:
    torch.manual_seed(0)
    cell = make(kind, num_layers=3)
    torch.manual_seed(0)
    theirs = network(3, 5, 3, batch_first=True, dtype=torch.float64)
    for name, value in cell.rnn.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    x, _, _ = make_inputs(cell, 4, 13)
    assert_close(cell(x)[0], theirs(x)[0], **EXACT)


@pytest.mark.parametrize(("kind", "function"), [(Elman, "rnn_tanh"), (GRU, "gru"), (LSTM, "lstm")])
def test_few_calls_of_the_kernel(kind: Any, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make(kind)
    x, memory, is_init = make_inputs(cell, 64, 40)
    calls: list[torch.Size] = []
    kernel = getattr(torch, function)

    def count(data: Tensor, *args: Any) -> Any:
        calls.append(data.shape[:-1])
        return kernel(data, *args)

    monkeypatch.setattr(torch, function, count)
    cell(x, memory)
    assert calls == [(40, 64)]
    calls.clear()
    cell(x, memory, is_init)
    parts = 64 + int(is_init[:, 1:].sum())
    assert calls[0][1] == parts
    # each has less than three quarters of the parts of the one before
    assert all(4 * b < 3 * a for (_, a), (_, b) in pairwise(calls))
    assert 64 * 40 < sum(shape.numel() for shape in calls) < 64 * 40 * 4 / 3


@every_cell
@every_depth
def test_packed_as_on_cuda(kind: Any, num_layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make(kind, num_layers=num_layers)
    x, memory, is_init = make_inputs(cell, 6, 17)
    expected = cell(x, memory, is_init)[:2]
    monkeypatch.setattr(_recurrent, "_runs_packed", lambda _: True)
    assert_same(cell(x, memory, is_init)[:2], expected, [x, memory, *cell.parameters()])


@every_cell
def test_gradients_in_evaluation_mode(kind: Any) -> None:
    cell = make(kind).eval()
    x, memory, is_init = make_inputs(cell, 4, 13)
    cell(x, memory, is_init)[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in cell.parameters())


@every_cell
def test_a_linear_map_makes_any_output_of_the_hidden_state(kind: Any) -> None:
    plain, mapped = make(kind), kind(3, 2, hidden_size=5, dtype=torch.float64)
    mapped.rnn.load_state_dict(plain.rnn.state_dict())
    assert mapped.out is not None
    assert mapped.memory_shape == plain.memory_shape == ((2, 1, 5) if kind is LSTM else (1, 5))
    x, memory, is_init = make_inputs(plain)
    hidden, final, _ = plain(x, memory, is_init)
    assert_close(mapped(x, memory, is_init)[:2], (mapped.out(hidden), final), **EXACT)
    assert_close(mapped.step(x[:, 0], memory)[0], mapped.out(plain.step(x[:, 0], memory)[0]))


@every_cell
@every_depth
def test_vmap_over_parameters(kind: Any, num_layers: int) -> None:
    """As losses run an ensemble of critics; torch's kernels have no rule for it."""
    cells = [make(kind, num_layers=num_layers) for _ in range(3)]
    parameters, _ = stack_module_state(cells)
    x, memory, is_init = make_inputs(cells[0], 4, 9)

    def run(parameters: Any) -> Any:
        return functional_call(cells[0], parameters, (x, memory, is_init))[:2]

    def loss(parameters: Any) -> Tensor:
        y, last = run(parameters)
        return y.square().sum() + last.square().sum()

    found = torch.vmap(run)(parameters)
    gradients = torch.vmap(torch.func.grad(loss))(parameters)
    for number, cell in enumerate(cells):
        expected = cell(x, memory, is_init)[:2]
        assert_close(tuple(z[number] for z in found), expected, **EXACT)
        total = expected[0].square().sum() + expected[1].square().sum()
        wanted = torch.autograd.grad(total, list(cell.parameters()))
        actual = tuple(gradients[name][number] for name, _ in cell.named_parameters())
        assert_close(actual, wanted, **EXACT)


@every_cell
def test_vmap_over_sequences(kind: Any) -> None:
    cell = make(kind)
    x, memory, is_init = make_inputs(cell, 6, 9)
    expected = cell(x, memory, is_init)[0]
    halves = (z.unflatten(0, (2, 3)) for z in (x, memory, is_init))
    assert_close(torch.vmap(lambda *z: cell(*z)[0])(*halves).flatten(0, 1), expected, **EXACT)


@pytest.mark.parametrize("share", [1, 0.75, 0.1])
def test_packing(share: float) -> None:
    is_init = torch.rand(7, 12) < 0.2
    packing = pack_parts(is_init, share)
    sizes, flat = packing.sizes.tolist(), torch.arange(84)
    # every step once, and the rest is padding
    assert torch.equal(packing.order[packing.place], flat)
    assert (packing.order == 84).sum() == len(packing.order) - 84
    assert sum(sizes) == len(packing.order)
    assert (share == 1) == (sum(sizes) == 84)
    # the steps of a part have the same rank one block after the other, from a reset on
    offset = packing.sizes.cumsum(0) - packing.sizes
    step = torch.bucketize(packing.place, offset, right=True) - 1
    rank = packing.place - offset[step]
    starts = is_init.clone()
    starts[:, 0] = True
    assert torch.equal(step == 0, starts.flatten())
    goes_on = step[1:] > 0
    assert torch.equal(step[1:][goes_on], step[:-1][goes_on] + 1)
    assert torch.equal(rank[1:][goes_on], rank[:-1][goes_on])
    assert torch.equal(packing.sequence[rank], flat // 12)
    assert torch.equal(packing.last, rank[11::12])
    assert torch.equal(packing.fresh[rank[step == 0], 0], is_init.flatten()[step == 0])
