"""The memories that the paper calls special cases of `M_t = M_{t-1} ⊙ C_t + U_t`, `y_t = M_t q_t`.

Le et al., Stable Hadamard Memory (ICLR 2025), section 3.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.modules._helpers import EXACT, assert_same
from torchrl_shm.modules.mlstm import MLSTM
from torchrl_shm.ops import Backend, delta_scan, gated_scan, linear_scan, shm_scan

B, T, V, K = 2, 41, 3, 4


def randn(*shape: int, **options: Any) -> Tensor:
    return torch.randn(shape, **({"dtype": torch.float64, "requires_grad": True} | options))


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
    cell: Any = MLSTM(5, 3, K, num_heads=1, dtype=torch.float64)
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


def test_diagonal_state_space_model_is_calibrated_by_its_decay() -> None:
    """The selective scan of Mamba: `Delta`, `B` and `C` depend on the input, `A` does not."""
    x, step, b, c = inputs = [randn(B, T, n) for n in (V, V, K, K)]
    log_a, memory, is_init = randn(V, K), randn(B, V, K), make_resets()
    delta = nn.functional.softplus(step)
    decay = torch.exp(torch.einsum("btv,vk->btvk", delta, -log_a.exp()))
    u = torch.einsum("btv,btk,btv->btvk", delta, b, x)
    states = hadamard(decay, u, memory, is_init)
    found, last = linear_scan(decay, u, memory, is_init)
    expected = read(states, c), states[:, -1]
    assert_same((read(found, c), last), expected, [*inputs, log_a, memory])


def test_fast_and_forgetful_memory_is_calibrated_by_a_complex_constant() -> None:
    """Traces decay at `a` and turn at `omega`; what is written is the same for each of the K."""
    a, omega, x = randn(V), randn(K), randn(B, T, V)
    real = randn(B, V, K, 2)
    memory, is_init = torch.view_as_complex(real), make_resets()
    decay = -0.1 * a.abs().unsqueeze(-1)
    c = torch.exp(torch.complex(decay.expand(V, K), -omega.expand(V, K)))
    u = x.unsqueeze(-1).expand(-1, -1, -1, K).to(c.dtype)
    expected = hadamard(c, u, memory, is_init)
    found, _ = linear_scan(c.expand(1, 1, V, K), u, memory, is_init)
    parts = [torch.view_as_real(states) for states in (found, expected)]
    assert_same(parts[:1], parts[1:], [a, omega, x, real])

    # a constant C has a closed form
    age = torch.arange(T).flip(0)
    powers = torch.exp(age.view(-1, 1, 1) * torch.complex(decay, -omega.unsqueeze(0)))
    last = linear_scan(c.expand(1, 1, V, K), u)[1]
    assert_close(last, (powers * u).sum(1), **EXACT)


def test_neural_turing_machine_is_calibrated_by_what_it_erases() -> None:
    """Graves et al., Neural Turing Machines (2014), equations 3 and 4, row by row of the memory."""
    logits, e, a = randn(B, T, V), randn(B, T, K), randn(B, T, K)
    memory, is_init = randn(B, V, K), make_resets()
    w, erase = torch.softmax(logits, -1), torch.sigmoid(e)
    states: list[Tensor] = []
    rows = memory.unbind(1)
    for t in range(T):
        rows = [torch.where(is_init[:, t, None], 0, row) for row in rows]
        rows = [row * (1 - w[:, t, i, None] * erase[:, t]) for i, row in enumerate(rows)]
        rows = [row + w[:, t, i, None] * a[:, t] for i, row in enumerate(rows)]
        states.append(torch.stack(rows, 1))
    c, u = 1 - outer(w, erase), outer(w, a)
    inputs = [logits, e, a, memory]
    expected = [torch.stack(states, 1)]
    assert_same([hadamard(c, u, memory, is_init)], expected, inputs)
    assert_same(linear_scan(c, u, memory, is_init)[:1], expected, inputs)


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
    assert_same(delta_scan(*inputs, is_init), expected, inputs)


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
