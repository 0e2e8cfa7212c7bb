"""Memories of equal size are of equal size, and their sizes are counted right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra_zen import instantiate
from torch import nn
from torchrl.modules import GRUModule, LSTMModule

from torchrl_shm.configs import MEMORIES, SIZES
from torchrl_shm.configs.sizes import GOALS
from torchrl_shm.modules import MemorySize, measure_memory

# of a fixed size: that of the authors' code
RELEASED = {"shm_popgym", "shm_pomdp"}
FIELDS = {"params": "parameters", "state": "state"}


def measure(name: str, size: str = "own") -> MemorySize:
    make = instantiate(MEMORIES[name], **SIZES.get(size, {}).get(name, {}))
    module = make(input_size=64, output_size=64, in_key="x", out_key="y")
    return measure_memory(module, input_size=64, in_key="x")


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_equal(size: str) -> None:
    for name in MEMORIES.keys() - RELEASED:
        found = getattr(measure(name, size), FIELDS[size])
        # the network without memory has none at any size
        goal = 0 if (name, size) == ("mlp", "state") else GOALS[size]
        assert abs(found - goal) <= goal / 10, name


def test_operations_are_counted() -> None:
    class Cell(nn.Module):
        """Two products and three element-wise operations on four of five features."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, 4))

        def forward(self, data: Any) -> Any:
            z = data["x"] @ self.weight
            return data.set("y", (torch.tanh(z) * z).sum(-1) + torch.ones(1) @ torch.ones(1))

    # 2 * 5 * 4, then 4 + 4 + 4 for tanh, product and sum, 2 for the dot product, 1 for the addition
    assert measure_memory(Cell(), input_size=5, in_key="x") == MemorySize(20, 0, 40 + 12 + 1 + 2)


def test_products_of_a_gru_and_an_lstm() -> None:
    theirs: Any = {"in_key": "x", "out_key": "y"}
    # on CPUs, the sequence kernel of an LSTM, which TorchRL's takes for a step, is one operation
    modules = (GRUModule(64, 64, **theirs), LSTMModule(64, 64, **theirs))
    for name, gates, module in zip(("gru", "lstm"), (3, 4), modules, strict=True):
        flops = measure(name).flops
        other = measure_memory(module, input_size=64, in_key="x").flops
        assert other == pytest.approx(flops, rel=0.05)
        products = 2 * gates * 64 * (64 + 64)
        assert products <= flops <= 1.05 * products
