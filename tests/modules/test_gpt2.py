"""GPT-2: against its equations, episode by episode and without a cache; what it sees."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.modules._helpers import EXACT, assert_same
from torchrl_shm.modules.gpt2 import GPT2, Positions

WIDTH, HEADS = 8, 2


def make(window: int = 4, num_layers: int = 2, **options: Any) -> Any:
    options = {"num_heads": HEADS, "dtype": torch.float64} | options
    cell = GPT2(3, 5, width=WIDTH, window=window, num_layers=num_layers, **options)
    # the first weights are so small that attention hardly looks at anything
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return cell


def make_inputs(batch: int = 3, steps: int = 14) -> tuple[Tensor, Tensor]:
    """Inputs and resets, each sequence starting with one."""
    x = torch.randn(batch, steps, 3, dtype=torch.float64, requires_grad=True)
    is_init = torch.rand(batch, steps) < 0.15
    is_init[:, 0] = is_init[0, 6] = True
    is_init[1, 1:] = False
    return x, is_init


def per_episode(run: Any, x: Tensor, is_init: Tensor) -> Tensor:
    """Outputs of a function of single episodes `[T, D]`."""
    sequences = []
    for sequence, flags in zip(x, is_init, strict=True):
        lengths = np.diff([*flags.nonzero().flatten().tolist(), len(sequence)]).tolist()
        sequences.append(torch.cat([run(episode) for episode in sequence.split(lengths)]))
    return torch.stack(sequences)


def sine(steps: int) -> Tensor:
    """Vaswani et al. (2017), section 3.5; first all cosines, then all sines."""
    table = np.zeros((steps, WIDTH))
    for position in range(steps):
        for i in range(WIDTH // 2):
            angle = position / 10000 ** (2 * i / WIDTH)
            table[position, [i, WIDTH // 2 + i]] = math.cos(angle), math.sin(angle)
    return torch.from_numpy(table)


@pytest.mark.parametrize(
    ("window", "num_layers", "positions"),
    [(2, 3, "sine"), (5, 1, "sine"), (20, 3, "sine"), (3, 2, "relative"), (20, 2, "relative")],
)
def test_equals_the_equations(window: int, num_layers: int, positions: Positions) -> None:
    """With RoFormer in complex numbers: the product of `q_m` and `k_n` turns by `m - n`."""
    cell = make(window, num_layers, positions=positions)
    x, is_init = make_inputs()
    size = WIDTH // HEADS
    frequency = 10000 ** (-2 * torch.arange(size // 2, dtype=torch.float64) / size)

    def as_complex(z: Tensor) -> Tensor:
        return torch.complex(*z.chunk(2, -1))

    def run(episode: Tensor) -> Tensor:
        h = cell.embed(episode)
        if positions == "sine":
            h = h + sine(len(episode))
        for layer in cell.layers:
            q, k, v = layer.attention_in(layer.attention_norm(h)).chunk(3, -1)
            heads = []
            for n in range(HEADS):
                part = slice(n * size, (n + 1) * size)
                read = []
                for t in range(len(h)):
                    past = torch.arange(max(0, t - window + 1), t + 1)
                    distance = (t - past) * (positions == "relative")
                    turn = torch.polar(torch.ones(()).double(), distance[:, None] * frequency)
                    products = as_complex(q[t, part]) * as_complex(k[past, part]).conj() * turn
                    weight = (products.real.sum(-1) / math.sqrt(size)).softmax(0)
                    read.append(weight @ v[past, part])
                heads.append(torch.stack(read))
            h = h + layer.attention_out(torch.cat(heads, -1))
            h = h + layer.mlp_out(nn.functional.gelu(layer.mlp_in(layer.mlp_norm(h))))
        return cell.out(cell.norm(h))

    expected = per_episode(run, x, is_init)
    assert_same(cell(x, None, is_init)[:1], [expected], [x, *cell.parameters()])


def test_memory_holds_the_count_and_the_steps_of_the_episode() -> None:
    cell = make(6)
    x, is_init = make_inputs()
    is_init[:, -3] = True
    is_init[:, -2:] = False
    _, memory, _ = cell(x, None, is_init)
    assert memory[:, 0].tolist() == [3.0] * 3
    cache = memory[:, 1:].view(3, 2, 5, 2 * WIDTH)
    assert (cache[:, :, :2] == 0).all()
    assert (cache[:, :, 2:] != 0).all()
    assert_close(memory, cell(x[:, -3:])[1], **EXACT)


def test_a_count_that_no_longer_grows_loses_nothing() -> None:
    cell = make(positions="relative", dtype=torch.float32)
    x = torch.randn(2, 9, 3)
    _, memory, _ = cell(x)
    expected = cell(x, memory)[0]
    memory[:, 0] = 2.0**24
    y, final, _ = cell(x, memory)
    assert_close(y, expected)
    assert (final[:, 0] >= 2**24).all()


@pytest.mark.parametrize("positions", ["sine", "relative"])
@pytest.mark.parametrize("where", ["input", "memory"])
def test_values_that_are_not_finite_show_until_the_reset(where: str, positions: Positions) -> None:
    cell = make(window=8, positions=positions)
    x, is_init = make_inputs()
    x = x.detach()
    is_init[:] = False
    is_init[:, 9] = True
    memory = x.new_zeros(3, *cell.memory_shape)
    start = 2 if where == "input" else 0
    if where == "input":
        x[:, 2, 0] = math.inf
    else:
        memory[:, -1] = math.nan
    y, final, _ = cell(x, memory, is_init)
    assert y[:, start:9].isnan().all()
    assert all(z.isfinite().all() for z in (y[:, :start], y[:, 9:], final))
    _, broken, _ = cell(x[:, :9], memory)
    assert broken.isnan().all()
    assert cell.step(x[:, 12], broken)[0].isnan().all()


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


def test_long_sequences_need_no_square() -> None:
    cell = make(window=4)
    sizes = []
    for steps in (256, 1024):
        with Largest() as largest:
            cell(torch.randn(1, steps, 3, dtype=torch.float64))[0].sum().backward()
        sizes.append(largest.numel)
    assert sizes[1] == 4 * sizes[0] < 1024**2


def test_initialization() -> None:
    cell = GPT2(5, 3, num_layers=3)
    for name, parameter in cell.layers.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            adds = "attention_out" in name or "mlp_out" in name
            std = 0.02 / math.sqrt(6) if adds else 0.02
            # of at least 4096 samples
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window=1 must be at least 2, or nothing is remembered"),
        ({"width": 12}, "width=12 must be a multiple of 2 * num_heads=8"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        GPT2(5, 3, **options)
