"""A fast scan in plain torch, on any device, with its own backward.

The state is stored once per chunk of C = `STORE` steps and the backward replays each chunk from
there. Buffers of matrices are time-major, `[C, B, H, H]`, and are reused by every chunk, so only
the checkpoints grow with T. The gate `1 + tanh(z)` is computed as `2 * sigmoid(2 * z)`: on CPU
several times faster, and more accurate near 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.ops.shm.backend import STORE, Options, Vectors

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def refuse(device: torch.device, dtype: torch.dtype, size: int) -> str | None:
    """Return None: it can scan any tensors."""
    del device, dtype, size
    return None


def forward(
    vectors: Vectors,
    memory: Tensor,
    is_init: Tensor | None,
    options: Options,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence, see `FastBackend`."""
    y = torch.empty_like(vectors.v, memory_format=torch.contiguous_format)
    steps = y.shape[1]
    vectors = vectors.map(_time_major)
    chunk = _Chunk(vectors, is_init, options.clamp, mark_unclamped=False)
    for n, t in enumerate(range(0, steps, STORE)):
        if len(checkpoints):
            checkpoints[n] = memory
        states, gates = chunk.replay(t, memory)
        products = torch.mul(states[1:], _columns(vectors.q, t), out=gates)
        y[:, t : t + STORE] = products.sum(-1).transpose(0, 1)
        memory = states[-1]
    return y, memory.clone(memory_format=torch.contiguous_format)


def backward(
    dy: Tensor,
    dmemory: Tensor,
    vectors: Vectors,
    is_init: Tensor | None,
    options: Options,
    checkpoints: Tensor,
) -> tuple[Vectors, Tensor]:
    """Run the adjoint of the recurrence, see `FastBackend`."""
    dy, vectors = _time_major(dy), vectors.map(_time_major)
    theta, vc, v, k, q = vectors
    grads = dtheta, dvc, dv, dk, dq = Vectors(*(torch.empty_like(dy) for _ in range(5)))
    chunk = _Chunk(vectors, is_init, options.clamp, mark_unclamped=options.clamp is not None)
    # adjoint[s + 1] belongs to the state that step s writes, adjoint[0] to the entering one
    buffer = torch.empty_like(chunk.states)
    buffer[0] = dmemory
    for n, t in reversed(list(enumerate(range(0, len(theta), STORE)))):
        states, gates = chunk.replay(t, checkpoints[n])
        adjoint = buffer[: len(states)]
        torch.mul(_rows(dy, t), _columns(q, t), out=adjoint[1:])
        adjoint[-1].add_(adjoint[0])
        adjoint[0].zero_()
        for s in reversed(range(len(gates))):
            if chunk.unclamped is not None:
                _select(adjoint[s + 1], chunk.unclamped[s], out=adjoint[s + 1])
            carried = torch.mul(adjoint[s + 1], gates[s], out=chunk.spare)
            if chunk.keep is not None:
                _select(carried, chunk.keep[t + s], out=carried)
            adjoint[s].add_(carried, alpha=2)
        # on CPU vector @ matrix is the fast sum over rows, matrix @ vector a slow one over
        # columns; `out=` also keeps autocast from rounding the operands
        torch.matmul(_columns(dy, t), states[1:], out=_columns(dq, t))
        torch.matmul(_columns(v, t), adjoint[1:], out=_columns(dk, t))
        dz = torch.mul(adjoint[1:], states[:-1], out=states[:-1])
        torch.ops.aten.sigmoid_backward.grad_input(dz, gates, grad_input=dz)
        torch.matmul(_columns(theta, t), dz, out=_columns(dvc, t))
        torch.sum(dz.mul_(_columns(vc, t)), -1, keepdim=True, out=_rows(dtheta, t))
        products = torch.mul(adjoint[1:], _columns(k, t), out=gates)
        torch.sum(products, -1, keepdim=True, out=_rows(dv, t))
    for x in (dtheta, dvc):
        x.mul_(4)  # 2 * sigmoid(2 * z) has the derivative 4 * sigmoid'(2 * z)
        if is_init is not None:
            x.masked_fill_(is_init.T.unsqueeze(-1), 0)  # these gates met no memory
    return grads.map(_time_major), buffer[0].clone()


class _Chunk:
    """The recurrence over one chunk of steps, in buffers that every chunk reuses.

    Attributes:
        states: `[C + 1, B, H, H]`, the entering state, then what each step wrote.
        gates: `[C, B, H, H]`, halved: the factor 2 is applied where they are.
        keep: `[T, B, 1, 1]`, selects the memories that no reset clears.
        unclamped: `[C, B, H, H]`, selects the elements that the clamp let through.
    """

    def __init__(
        self,
        vectors: Vectors,
        is_init: Tensor | None,
        clamp: float | None,
        mark_unclamped: bool,
    ) -> None:
        (steps, batch, size), bits = vectors.theta.shape, _BITS[vectors.theta.dtype]
        self.vectors, self.clamp = vectors, clamp
        self.states = vectors.theta.new_empty(min(steps, STORE) + 1, batch, size, size)
        self.gates = torch.empty_like(self.states[1:])
        self.spare = torch.empty_like(self.states[0])
        self.keep = None if is_init is None else is_init.T[..., None, None].to(bits) - 1
        self.unclamped = torch.empty_like(self.gates, dtype=bits) if mark_unclamped else None

    def replay(self, start: int, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Run the chunk that begins at step `start` with `memory`; return its states and gates."""
        theta, vc, v, k, _ = self.vectors
        gates = self.gates[: len(theta) - start]
        states = self.states[: len(gates) + 1]
        states[0] = memory
        torch.mul(2 * _rows(theta, start), _columns(vc, start), out=gates).sigmoid_()
        torch.mul(_rows(v, start), _columns(k, start), out=states[1:])
        for s in range(len(gates)):
            entering, state = states[s], states[s + 1]
            if self.keep is not None:
                entering = _select(entering, self.keep[start + s], out=self.spare)
            state.addcmul_(entering, gates[s], value=2)
            if self.clamp is not None:
                if self.unclamped is not None:
                    torch.le(torch.abs(state, out=self.spare), self.clamp, out=self.unclamped[s])
                    self.unclamped[s].neg_()
                state.clamp_(-self.clamp, self.clamp)
        return states, gates


def _select(x: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Take `x` where `mask` is -1, with all bits set, and 0 where it is 0, even of NaN and inf.

    It works on bits because that vectorizes: `torch.where` costs five times as much on CPU.
    """
    torch.bitwise_and(x.view(mask.dtype), mask, out=out.view(mask.dtype))
    return out


def _time_major(x: Tensor) -> Tensor:
    """`[B, T, H]` to `[T, B, H]` and back; contiguous, because matmul is slow on expanded views."""
    return x.transpose(0, 1).contiguous()


def _rows(x: Tensor, start: int) -> Tensor:
    return x[start : start + STORE].unsqueeze(-1)


def _columns(x: Tensor, start: int) -> Tensor:
    return x[start : start + STORE].unsqueeze(-2)
