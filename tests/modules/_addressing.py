"""The equations of the NTM and of the DNC in numpy, one sequence and one step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_shm.modules import DNC, NTM


def make_cell(kind: Any, controller: Any = "lstm", *, scale: float = 1.0, **options: Any) -> Any:
    """A small cell with two read heads; the larger the scale, the more its gates do."""
    options = {"num_reads": 2, "hidden_size": 7, "dtype": torch.float64} | options
    sizes = {"num_cells": 5, "cell_size": 3}
    cell = kind(3, 4, controller=controller, **sizes, **options)
    with torch.no_grad():
        cell.interface.weight.mul_(scale)
    return cell


def make_state(cell: Any, batch: int = 2) -> Tensor:
    """Random states as they may occur: weights of an NTM sum to one, of a DNC to less."""
    state = torch.randn(batch, *cell.memory_shape, dtype=torch.float64)
    parts = cell.unpack(state)
    if isinstance(cell, NTM):
        parts["weights"].copy_(parts["weights"].softmax(-1))
        return state
    for name in ("precedence", "link", "write_weights", "read_weights"):
        parts[name].copy_(0.9 * parts[name].softmax(-1))
    parts["usage"].copy_(torch.rand(batch, 5))
    parts["link"].copy_(parts["link"] * (1 - torch.eye(5)))
    return state


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


def content(memory: Any, key: Any, strength: Any) -> Any:
    def length(x: Any) -> Any:
        return np.sqrt(np.dot(x, x) + 1e-6)

    cosines = [np.dot(row, key) / (length(row) * length(key)) for row in memory]
    return softmax(strength * np.array(cosines))


def address(memory: Any, last: Any, key: Any, strength: Any, gate: Any, moves: Any, power: Any):
    gated = gate * content(memory, key, strength) + (1 - gate) * last
    cells = len(memory)
    moved = np.zeros(cells)
    for i in range(cells):
        for j, by in enumerate((-1, 0, 1)):
            moved[(i + by) % cells] += moves[j] * gated[i]
    powers = (moved + 1e-8) ** power
    return powers / powers.sum()


def ntm_step(p: Any, x: Any, s: Any, size: int = 3, reads: int = 2) -> Any:
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


def allocate(usage: Any) -> Any:
    order = np.argsort(usage, kind="stable")
    usage = 1e-6 + (1 - 1e-6) * usage
    weights = np.zeros_like(usage)
    for place, cell in enumerate(order):
        weights[cell] = (1 - usage[cell]) * usage[order[:place]].prod()
    return weights


def dnc_step(p: Any, x: Any, s: Any, cells: int = 5, size: int = 3, reads: int = 2) -> Any:
    h = control(p, np.concatenate([x, s["reads"].ravel()]), s)
    asked = p["interface.weight"] @ h + p["interface.bias"]
    ends = np.cumsum([size, reads * size, 1 + reads, size, size, reads, 1, 1])
    parts = np.split(asked, ends)
    write_key, read_keys, strengths, value, erase, free, g_a, g_w, modes = parts
    strengths = 1 + softplus(strengths)
    erase, free, g_a, g_w = (sigmoid(part) for part in (erase, free, g_a, g_w))

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


# how to take a step of each
STEPS = {NTM: ntm_step, DNC: dnc_step}
