"""The memories that the paper calls special cases of `M_t = M_{t-1} ⊙ C_t + U_t`, `y_t = M_t q_t`.

Le et al., Stable Hadamard Memory (ICLR 2025), section 3. S6, LRU, FFM and the writing of NTM and
DNC are compared with equations of this form in the files of their cells.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.modules._helpers import EXACT, assert_same
from torchrl_shm.modules.mlstm import MLSTM
from torchrl_shm.ops import Backend, delta_scan, gated_scan, shm_scan

B, T, V, K = 2, 41, 3, 4


def randn(*shape: int, requires_grad: bool = True) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)


def make_resets() -> Tensor:
    return torch.rand(B, T) < 0.1


def hadamard(c: Tensor, u: Tensor, memory: Tensor, is_init: Tensor) -> Tensor:
    """The memories `[B, T, V, K]` after each step."""
    c = c.expand_as(u)
    states: list[Tensor] = []
    for t in range(u.shape[1]):
        memory = torch.where(is_init[:, t, None, None], 0, memory)
        memory = memory * c[:, t] + u[:, t]
        states.append(memory)
    return torch.stack(states, 1)


def outer(v: Tensor, k: Tensor) -> Tensor:
    return v.unsqueeze(-1) * k.unsqueeze(-2)


def read(states: Tensor, q: Tensor) -> Tensor:
    return (states * q.unsqueeze(-2)).sum(-1)


# special cases


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_stable_hadamard_memory(backend: Backend) -> None:
    theta, vc, v, k, q = inputs = [randn(B, T, K) for _ in range(5)]
    memory, is_init = randn(B, K, K), make_resets()
    found = shm_scan(theta, vc, v, k, q, memory, is_init, backend=backend)
    states = hadamard(1 + torch.tanh(outer(theta, vc)), outer(v, k), memory, is_init)
    assert_same(found, (read(states, q), states[:, -1]), [*inputs, memory])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_linear_attention_is_calibrated_by_one(backend: Backend) -> None:
    v, k, q = inputs = [randn(B, T, K) for _ in range(3)]
    memory, is_init = randn(B, K, K), make_resets()
    inputs.append(memory)
    states = hadamard(torch.ones(()), outer(v, k), memory, is_init)
    expected = read(states, q), states[:, -1]
    y, _, final = gated_scan(q, k, v, memory=memory, is_init=is_init)
    assert_same((y, final), expected, inputs)
    zero, vc = torch.zeros_like(v), randn(B, T, K)
    assert_same(shm_scan(zero, vc, v, k, q, memory, is_init, backend=backend), expected, inputs)


def test_mlstm_is_calibrated_by_its_forget_gate() -> None:
    cell: Any = MLSTM(5, 3, memory_size=K, num_heads=1, dtype=torch.float64)
    x, is_init = randn(B, T, 5), make_resets()
    normed = cell.norm(x)
    q, v, k = cell.query(normed), cell.value(normed), cell.key(normed) / K**0.5
    f, i = torch.sigmoid(cell.forget(normed)), torch.exp(cell.input(normed))
    c = f.unsqueeze(-1)
    empty = x.new_zeros(B, K, K), x.new_zeros(B, 1, K)
    states = hadamard(c, outer(i * v, k), empty[0], is_init)
    # n is a memory of its own: a vector, with the same C
    n = hadamard(c, (i * k).unsqueeze(-2), empty[1], is_init)
    h = torch.sigmoid(cell.output(normed)) * read(states, q) / read(n, q).abs().clamp(min=1)
    expected = cell.out(h + cell.shortcut(normed))
    assert_same(cell(x, None, is_init)[:1], (expected,), [x, *cell.parameters()])


# what does not fit


def make_delta() -> tuple[list[Tensor], Tensor]:
    k = torch.nn.functional.normalize(randn(B, T, K), dim=-1)
    inputs = [randn(B, T, K), k, randn(B, T, V), torch.sigmoid(randn(B, T)), randn(B, V, K)]
    return [z.detach().requires_grad_() for z in inputs], make_resets()


def test_delta_rule_multiplies_from_the_right() -> None:
    inputs, is_init = make_delta()
    q, k, v, beta, memory = inputs
    states: list[Tensor] = []
    state = memory
    for t in range(T):
        state = torch.where(is_init[:, t, None, None], 0, state)
        strength = beta[:, t, None, None]
        kept = torch.eye(K) - strength * outer(k[:, t], k[:, t])
        state = state @ kept + strength * outer(v[:, t], k[:, t])
        states.append(state)
    expected = read(torch.stack(states, 1), q), state
    assert_same(delta_scan(q, k, v, beta, memory, is_init), expected, inputs)


def test_delta_rule_has_no_calibration() -> None:
    """Whatever C is, it leaves a zero of the memory at zero; the delta rule does not."""
    q, k, v, beta = (z[:, :1] for z in make_delta()[0][:4])
    memory = randn(B, V, K, requires_grad=False)
    memory[:, :, 0] = 0
    u = beta[..., None, None] * outer(v, k)
    after = delta_scan(q, k, v, beta, memory)[1]
    calibrated = hadamard(randn(B, 1, V, K), u, memory, torch.zeros(B, 1, dtype=torch.bool))
    assert_close(calibrated[:, -1, :, 0], u[:, -1, :, 0], **EXACT)
    assert (after - u[:, -1])[:, :, 0].abs().min() > 1e-3


def test_delta_rule_of_one_hot_keys_erases_columns() -> None:
    """Then, and only then, `I - beta k ⊗ k` is diagonal, and it is a Hadamard memory."""
    (q, _, v, beta, memory), is_init = make_delta()
    k = torch.nn.functional.one_hot(torch.randint(K, (B, T)), K).double()
    c = 1 - beta[..., None, None] * k.unsqueeze(-2)
    states = hadamard(c, beta[..., None, None] * outer(v, k), memory, is_init)
    expected = read(states, q), states[:, -1]
    assert_same(delta_scan(q, k, v, beta, memory, is_init), expected, [q, v, beta, memory])
