"""The compiled loops of the scan on CPU, which `numba_scan` calls."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_f32 = np.float32
# NaN and inf keep their meaning; sums may be reordered, or they would not be vectorized
_compile: Any = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"}
)
# columns per vector register (AVX-512), to which a row of the memory is padded
_LANES = 16


@_compile
def _gate(z: Any) -> Any:
    """`1 + tanh(z)` by a rational minimax fit of tanh on [-9, 9], to 3e-7."""
    z = _f32(9.0) if z > _f32(9.0) else z
    z = _f32(-9.0) if z < _f32(-9.0) else z
    u = z * z
    p = _f32(1.3353393e-08)
    p = p * u + _f32(2.060817e-05)
    p = p * u + _f32(0.0034955337)
    p = p * u + _f32(0.1338098)
    p = p * u + _f32(1.0)
    r = _f32(7.776038e-07)
    r = r * u + _f32(0.00032855448)
    r = r * u + _f32(0.025876777)
    r = r * u + _f32(0.46714297)
    r = r * u + _f32(1.0)
    return _f32(1.0) + z * p / r


# loops, for numba takes three times as long to compile what is written with slices
@_compile
def _load(matrix: Any, source: Any) -> None:
    """Copy what is stored, `[H, H]`, into a matrix with padded rows, and 0 into the padding."""
    size, width = matrix.shape
    for i in range(size):
        for j in range(width):
            # a NaN may be left in the padding
            matrix[i, j] = source[i, j] if j < size else _f32(0.0)


@_compile
def _store(target: Any, matrix: Any) -> None:
    """Copy a matrix without the padding of its rows."""
    size = len(matrix)
    for i in range(size):
        for j in range(size):
            target[i, j] = matrix[i, j]


@_compile
def _clear(matrix: Any) -> None:
    size, width = matrix.shape
    for i in range(size):
        for j in range(width):
            matrix[i, j] = _f32(0.0)


@_compile
def forward(
    start: int, stop: int, chunk: int, clamp: float,
    theta: Any, vc: Any, v: Any, k: Any, q: Any, is_init: Any,
    y: Any, final: Any, checkpoints: Any,
) -> None:  # fmt: skip
    """Scan sequences `start` to `stop`; on entry `final` holds the initial memory.

    `clamp` is negative where there is no bound, and `checkpoints` is empty if none are wanted.
    """
    _, steps, size = theta.shape
    width = (size + _LANES - 1) // _LANES * _LANES
    bounded, bound = clamp > 0, _f32(clamp)
    memory = np.zeros((size, width), np.float32)
    rows = np.zeros((3, width), np.float32)
    c, key, query = rows[0], rows[1], rows[2]
    for b in range(start, stop):
        _load(memory, final[b])
        for t in range(steps):
            if len(checkpoints) > 0 and t % chunk == 0:
                _store(checkpoints[t // chunk, b], memory)
            if is_init[b, t]:
                _clear(memory)
            for j in range(size):
                c[j], key[j], query[j] = vc[b, t, j], k[b, t, j], q[b, t, j]
            for i in range(size):
                row, write = theta[b, t, i], v[b, t, i]
                total = _f32(0.0)
                for j in range(width):
                    m = memory[i, j] * _gate(row * c[j]) + write * key[j]
                    if bounded:
                        m = bound if m > bound else m
                        m = -bound if m < -bound else m
                    memory[i, j] = m
                    total += m * query[j]
                y[b, t, i] = total
        _store(final[b], memory)


@_compile
def backward(
    start: int, stop: int, chunk: int, clamp: float,
    theta: Any, vc: Any, v: Any, k: Any, q: Any, dy: Any, is_init: Any, checkpoints: Any,
    dtheta: Any, dvc: Any, dv: Any, dk: Any, dq: Any, dmemory: Any,
) -> None:  # fmt: skip
    """Replay each chunk from its checkpoint, last chunk first, and run the adjoint through it.

    On entry `dmemory` holds the gradient of the final memory, at the end that of the initial one.
    """
    _, steps, size = theta.shape
    width = (size + _LANES - 1) // _LANES * _LANES
    bounded, bound = clamp > 0, _f32(clamp)
    memory = np.zeros((size, width), np.float32)
    adjoint = np.zeros((size, width), np.float32)
    gates = np.zeros((chunk, size, width), np.float32)
    products = np.zeros((chunk, size, width), np.float32)
    rows = np.zeros((3, width), np.float32)
    c, key, query = rows[0], rows[1], rows[2]
    drows = np.zeros((3, width), np.float32)
    dc, dkey, dquery = drows[0], drows[1], drows[2]
    for b in range(start, stop):
        _load(adjoint, dmemory[b])
        for n in range(len(checkpoints) - 1, -1, -1):
            first = n * chunk
            last = min(first + chunk, steps)
            _load(memory, checkpoints[n, b])
            for t in range(first, last):
                s = t - first
                if is_init[b, t]:
                    _clear(memory)
                for j in range(size):
                    c[j], key[j] = vc[b, t, j], k[b, t, j]
                for i in range(size):
                    row, write = theta[b, t, i], v[b, t, i]
                    for j in range(width):
                        gate = _gate(row * c[j])
                        product = memory[i, j] * gate
                        gates[s, i, j] = gate
                        products[s, i, j] = product
                        m = product + write * key[j]
                        if bounded:
                            m = bound if m > bound else m
                            m = -bound if m < -bound else m
                        memory[i, j] = m
            for t in range(last - 1, first - 1, -1):
                s = t - first
                for j in range(size):
                    c[j], key[j], query[j] = vc[b, t, j], k[b, t, j], q[b, t, j]
                    dc[j], dkey[j], dquery[j] = _f32(0.0), _f32(0.0), _f32(0.0)
                for i in range(size):
                    row, write, out = theta[b, t, i], v[b, t, i], dy[b, t, i]
                    drow, dwrite = _f32(0.0), _f32(0.0)
                    for j in range(width):
                        product, gate = products[s, i, j], gates[s, i, j]
                        m = product + write * key[j]
                        d = adjoint[i, j] + out * query[j]
                        if bounded:
                            # the bound itself passes gradients, as in torch.clamp
                            d = d if abs(m) <= bound else _f32(0.0)
                            m = bound if m > bound else m
                            m = -bound if m < -bound else m
                        dquery[j] += out * m
                        dkey[j] += write * d
                        dwrite += d * key[j]
                        # zero at a reset, where the product is
                        dz = d * product * (_f32(2.0) - gate)
                        drow += dz * c[j]
                        dc[j] += dz * row
                        adjoint[i, j] = d * gate
                    dtheta[b, t, i], dv[b, t, i] = drow, dwrite
                for j in range(size):
                    dvc[b, t, j], dk[b, t, j], dq[b, t, j] = dc[j], dkey[j], dquery[j]
                if is_init[b, t]:
                    _clear(adjoint)
        _store(dmemory[b], adjoint)
