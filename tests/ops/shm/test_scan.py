"""Every backend of `shm_scan` against the reference in float64, and the promises they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops._helpers import NAMES, distance_to_clamp, double, error, make, run
from torchrl_shm.ops import (
    Backend,
    _dispatch,
    numba_scan,
    shm_scan,
    shm_step,
)
from torchrl_shm.ops.shm import operator as scan_operator

RUNS_HERE: tuple[Backend, ...] = ("reference", "chunked", "numba")
FAST: tuple[Backend, ...] = ("chunked", "numba")
# those that compute in the precision of their inputs
DOUBLE: tuple[Backend, ...] = ("reference", "chunked")
CHUNK = 8


def precise(backend: Backend) -> tuple[torch.dtype, dict[str, float]]:
    """The highest precision of a backend, and the tolerance that goes with it."""
    if backend in DOUBLE:
        return torch.float64, {"rtol": 1e-10, "atol": 1e-12}
    return torch.float32, {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("backend", DOUBLE)
@pytest.mark.parametrize(
    ("resets", "clamp"), [(False, None), (True, None), (True, 0.8)], ids=["plain", "reset", "clamp"]
)
def test_gradcheck(backend: Backend, resets: bool, clamp: float | None) -> None:
    # longer than a chunk and no multiple of it
    inputs, is_init = make(2, CHUNK + 3, 3, torch.float64)
    if clamp is not None:
        distance = distance_to_clamp(inputs, is_init, clamp)
        assert (distance > 0).any()
        assert distance.abs().min() > 1e-4

    def function(*args: Tensor) -> tuple[Tensor, Tensor]:
        return shm_scan(*args, is_init=is_init if resets else None, clamp=clamp, backend=backend)

    assert is_init.any()
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_reference_gradgradcheck() -> None:
    inputs, _ = make(1, 3, 2, torch.float64)
    is_init = torch.tensor([[False, False, True]])
    assert torch.autograd.gradgradcheck(
        lambda *args: shm_scan(*args, is_init=is_init, backend="reference"), inputs
    )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(3, 29, 11), (2, 100, 24), (1, 63, 32), (2, 1024, 8), (3, 1, 5), (2, CHUNK, 1)],
    ids=str,
)
def test_float32_against_reference(
    backend: Backend, shape: tuple[int, int, int], resets: bool, clamp: float | None
) -> None:
    inputs, is_init = make(*shape)
    is_init = is_init if resets else None
    if clamp is not None:
        # an element this close may be clamped in one precision and not in the other
        assert distance_to_clamp(inputs, is_init, clamp).abs().min() > 1e-6
    expected = run(double(inputs), is_init, clamp)
    actual = run(inputs, is_init, clamp, backend)
    for name, a, e in zip(("y", "memory"), actual[:2], expected[:2], strict=True):
        assert a.dtype == torch.float32
        assert error(a, e) <= 5e-6, name
    for name, a, e in zip(NAMES, actual[2:], expected[2:], strict=True):
        if e.any():
            assert error(a, e) <= 5e-5, name
        else:
            assert not a.any(), name


@pytest.mark.parametrize("backend", DOUBLE[1:])
@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize("shape", [(3, 29, 11), (2, 100, 24)], ids=str)
def test_float64_against_reference(
    backend: Backend, shape: tuple[int, int, int], clamp: float | None
) -> None:
    inputs, is_init = make(*shape, torch.float64)
    expected, actual = (run(inputs, is_init, clamp, b) for b in ("reference", backend))
    for name, a, e in zip(("y", "memory", *NAMES), actual, expected, strict=True):
        assert a.dtype == torch.float64
        assert error(a, e) <= 1e-10, name


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_bfloat16_inputs_float32_state(backend: Backend) -> None:
    inputs, is_init = make(2, 100, 24)
    rounded = [x.detach().bfloat16().requires_grad_() for x in inputs[:5]] + inputs[5:]
    expected = run(double(rounded), is_init)
    actual = run(rounded, is_init, backend=backend)
    assert actual[0].dtype == torch.bfloat16
    assert actual[1].dtype == torch.float32
    assert error(actual[1], expected[1]) <= 5e-6
    for name, a, e in zip(("y", "memory", *NAMES), actual, expected, strict=True):
        assert error(a, e) <= 1e-2, name


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_autocast_does_not_round(backend: Backend) -> None:
    inputs, is_init = make(2, 20, 6)
    expected = run(inputs, is_init, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(inputs, is_init, backend=backend)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize("reset", [5, CHUNK, 11])
def test_nothing_passes_a_reset(
    backend: Backend, value: float, name: str, clamp: float | None, reset: int
) -> None:
    """NaN and inf before it reach neither the values after it nor their gradients."""
    dtype, tolerance = precise(backend)
    inputs, is_init = make(2, 20, 4, dtype)
    is_init[:] = False
    is_init[0, reset] = True

    def after(inputs: list[Tensor]) -> list[Tensor]:
        y, memory = shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend)
        loss = y[0, reset:].square().sum() + memory.sum() + y[1].square().sum()
        grads = torch.autograd.grad([loss], inputs)
        rows = [x[0, reset:] for x in (y, *grads[:5])] + [x[1] for x in (y, *grads)]
        return [memory, *rows]

    expected = after(inputs)
    spoilt = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        row = spoilt[NAMES.index(name)][0]
        row[: len(row) if name == "memory" else reset] = value
    y, _ = shm_scan(*spoilt, is_init=is_init, clamp=clamp, backend=backend)
    clean, _ = shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend)
    assert not y[0, :reset].allclose(clean[0, :reset])
    for a, e in zip(after(spoilt), expected, strict=True):
        assert a.isfinite().all()
        assert_close(a, e, **tolerance)


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("name", NAMES[:5])
@pytest.mark.parametrize("reset", [5, CHUNK])
def test_no_gradient_passes_a_reset(backend: Backend, name: str, reset: int) -> None:
    """A NaN in the step of the reset does not reach the gradients before it."""
    inputs, is_init = make(1, 20, 4, precise(backend)[0])
    is_init[:] = False
    is_init[0, reset] = True
    expected = run(inputs, is_init, backend=backend)[2:]
    spoilt = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        spoilt[NAMES.index(name)][0, reset] = float("nan")
    actual = run(spoilt, is_init, backend=backend)[2:]
    for a, e in zip(actual[:5], expected[:5], strict=True):
        assert_close(a[:, :reset], e[:, :reset])
    assert_close(actual[5], expected[5])


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_reset_at_the_first_step_drops_a_given_memory(backend: Backend) -> None:
    inputs, is_init = make(3, 10, 4)
    is_init[:] = False
    is_init[:, 0] = torch.tensor([True, False, True])
    with torch.no_grad():
        inputs[5][0] = float("nan")
    y, memory = shm_scan(*inputs, is_init=is_init, backend=backend)
    kept = torch.where(is_init[:, 0, None, None], 0.0, inputs[5])
    expected = shm_scan(*inputs[:5], memory=kept, backend=backend)
    assert_close((y, memory), expected, rtol=0, atol=0)
    (grad,) = torch.autograd.grad([y.sum()], inputs[5:])
    assert not grad[[0, 2]].any()
    assert grad[1].any()


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_the_boundary_of_the_clamp_passes_gradients(backend: Backend) -> None:
    v = torch.tensor([[[1.0, -1.0, 2.0, -2.0, 0.5]]], requires_grad=True)
    one = torch.ones_like(v)
    y, _ = shm_scan(one, one, v, one, one, clamp=1.0, backend=backend)
    (grad,) = torch.autograd.grad([y.sum()], v)
    assert y.flatten().tolist() == [5, -5, 5, -5, 2.5]
    assert grad.flatten().tolist() == [5, 5, 0, 0, 5]


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_clamp_bounds_every_state_that_is_read(backend: Backend) -> None:
    inputs, is_init = make(2, 30, 5)
    inputs[4] = torch.zeros_like(inputs[4])
    inputs[4][..., 2] = 1
    y, memory = shm_scan(*inputs, is_init=is_init, clamp=0.5, backend=backend)
    assert y.abs().max() == 0.5
    assert memory.abs().max() <= 0.5


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_two_calls_are_bit_equal(backend: Backend) -> None:
    inputs, is_init = make(3, 29, 11)
    first, second = (run(inputs, is_init, 1.5, backend) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 5, 3), (0, 0, 3), (2, 11, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("clamp", [None, 1.5])
def test_degenerate_shapes(
    backend: Backend, shape: tuple[int, int, int], clamp: float | None
) -> None:
    inputs, is_init = make(*shape)
    actual = run(inputs, is_init, clamp, backend)
    for a, e in zip(actual, run(double(inputs), is_init, clamp), strict=True):
        assert_close(a, e.float())
    if shape[1] == 0:
        assert torch.equal(actual[1], inputs[5])


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_inputs_need_not_be_contiguous(backend: Backend) -> None:
    inputs, is_init = make(4, 4, 4)
    inputs[0] = inputs[0][:1, :1].expand(4, 4, 4)
    views = [
        inputs[0],
        *(x.detach().transpose(0, 1) for x in inputs[1:3]),
        inputs[3].detach().movedim(-1, 0),
        torch.stack([inputs[4].detach()] * 2, -1)[..., 0],
        inputs[5].detach().mT,
    ]
    views = [x.detach().as_strided(x.shape, x.stride()).requires_grad_() for x in views]
    assert not any(x.is_contiguous() for x in views)
    copies = [x.detach().contiguous().requires_grad_() for x in views]
    actual, expected = (run(x, is_init.T, 1.5, backend) for x in (views, copies))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("clamp", [None, 1.5])
def test_step_by_step(backend: Backend, clamp: float | None) -> None:
    inputs, is_init = make(3, 20, 6)
    y, final = shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend)
    memory = inputs[5]
    for t in range(20):
        memory = torch.where(is_init[:, t, None, None], 0.0, memory)
        step, memory = shm_step(*(x[:, t] for x in inputs[:5]), memory=memory, clamp=clamp)
        assert_close(y[:, t], step, rtol=1e-5, atol=1e-6)
    assert_close(final, memory, rtol=1e-5, atol=1e-6)


def test_step_takes_any_batch_and_starts_from_zeros() -> None:
    inputs, _ = make(6, 1, 4)
    vectors = [x[:, 0] for x in inputs[:5]]
    y, memory = shm_step(*(x.view(2, 3, 4) for x in vectors))
    expected = shm_step(*vectors, memory=torch.zeros(6, 4, 4))
    assert_close((y.flatten(0, 1), memory.flatten(0, 1)), expected)
    single = shm_step(*(x[0] for x in vectors), memory=inputs[5][0])
    assert_close(single[0], shm_step(*vectors, memory=inputs[5])[0][0])


def test_step_keeps_its_state_in_float32() -> None:
    inputs, _ = make(2, 1, 4)
    before = inputs[5].detach().clone()
    y, memory = shm_step(*(x[:, 0].bfloat16() for x in inputs[:5]), memory=inputs[5])
    assert (y.dtype, memory.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(inputs[5], before)


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("at", [1, CHUNK, 13])
def test_two_calls_with_carried_memory_are_one(backend: Backend, at: int) -> None:
    dtype, tolerance = precise(backend)
    inputs, is_init = make(3, 21, 5, dtype)

    def split(*args: Tensor) -> tuple[Tensor, Tensor]:
        *vectors, memory = args
        outputs: list[Tensor] = []
        for part in (slice(None, at), slice(at, None)):
            parts = (x[:, part] for x in vectors)
            y, memory = shm_scan(
                *parts, memory=memory, is_init=is_init[:, part], clamp=1.5, backend=backend
            )
            outputs.append(y)
        return torch.cat(outputs, 1), memory

    y, memory = split(*inputs)
    grads = torch.autograd.grad([y.square().sum() + memory.square().sum()], inputs)
    y_once, memory_once = shm_scan(*inputs, is_init=is_init, clamp=1.5, backend=backend)
    once = torch.autograd.grad([y_once.square().sum() + memory_once.square().sum()], inputs)
    assert_close((y, memory, *grads), (y_once, memory_once, *once), **tolerance)


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("wanted", NAMES)
def test_gradient_of_one_input_alone(backend: Backend, wanted: str) -> None:
    inputs, is_init = make(2, 11, 4)
    n = NAMES.index(wanted)
    expected = run(inputs, is_init, backend=backend)
    alone = [x.detach().requires_grad_(i == n) for i, x in enumerate(inputs)]
    y, memory, grad = run(alone, is_init, backend=backend)
    assert_close((y, memory, grad), (*expected[:2], expected[2 + n]))


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("output", [0, 1], ids=["y", "memory"])
def test_loss_of_one_output_alone(backend: Backend, output: int) -> None:
    inputs, is_init = make(2, 11, 4)

    def gradients(inputs: list[Tensor], backend: Backend) -> tuple[Tensor, ...]:
        loss = shm_scan(*inputs, is_init=is_init, backend=backend)[output].square().sum()
        # the final memory does not depend on q
        return torch.autograd.grad([loss], inputs, materialize_grads=True)

    actual, expected = gradients(inputs, backend), gradients(double(inputs), "reference")
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e.float())


@pytest.mark.parametrize("backend", FAST)
def test_second_derivative_is_refused(backend: Backend) -> None:
    inputs, _ = make(1, 3, 2)
    y, _ = shm_scan(*inputs, backend=backend)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad([y.sum()], inputs, create_graph=True)


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 1, 3), (3, 9, 3)], ids=str)
def test_output_may_be_changed_in_place(backend: Backend, shape: tuple[int, int, int]) -> None:
    inputs, _ = make(*shape)
    y, _ = shm_scan(*inputs, backend=backend)
    (expected,) = torch.autograd.grad([2 * y.sum()], inputs[:1], retain_graph=True)
    y.mul_(2)
    (actual,) = torch.autograd.grad([y.sum()], inputs[:1])
    assert y.is_contiguous()
    assert_close(actual, expected)


@pytest.mark.slow
# torch.compile does that itself to an autograd function it traces
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("clamp", [None, 1.5])
def test_compiles_without_graph_breaks(
    backend: Backend, clamp: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.compile cannot trace the poisoned torch.empty_like
    monkeypatch.undo()
    inputs, is_init = make(2, CHUNK + 3, 4)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(*args: Tensor) -> tuple[Tensor, Tensor]:
        return shm_scan(*args, is_init=is_init, clamp=clamp, backend=backend)

    y, memory = compiled(*inputs)
    grads = torch.autograd.grad([y.square().sum() + memory.sum()], inputs)
    y_eager, memory_eager = shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend)
    eager = torch.autograd.grad([y_eager.square().sum() + memory_eager.sum()], inputs)
    assert_close((y, memory, *grads), (y_eager, memory_eager, *eager), rtol=1e-4, atol=1e-5)


def test_auto_is_the_fastest_that_runs_here() -> None:
    inputs, is_init = make(2, 11, 4)
    auto, numba = (shm_scan(*inputs, is_init=is_init, backend=b) for b in ("auto", "numba"))
    assert torch.equal(auto[0], numba[0])
    auto, chunked = (shm_scan(*double(inputs), backend=b) for b in ("auto", "chunked"))
    assert torch.equal(auto[0], chunked[0])


class _Sizes(TorchDispatchMode):
    """Notes the number of elements of every tensor that any operation puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("clamp", [None, 1.5])
def test_memory_does_not_grow_with_steps_times_matrix(
    backend: Backend, clamp: float | None
) -> None:
    batch, steps, size = 2, 40 * CHUNK, 12
    inputs, is_init = make(batch, steps, size)
    vectors, matrix = batch * steps * size, batch * size * size
    largest = max(steps // CHUNK * matrix, vectors)
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        _, memory = shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend)
    # what is carried on keeps no buffer alive
    assert memory.untyped_storage().nbytes() == memory.nbytes
    assert sum(saved.values()) <= 6 * vectors + steps // CHUNK * matrix

    # a mode sees an operator as a whole, so what the backend does is run outside of it
    module = scan_operator.load(backend)
    arguments = (*(x.detach() for x in inputs), is_init, clamp, False, None)
    checkpoints = torch.empty(module.num_checkpoints(steps), batch, size, size)
    with _Sizes() as forward:
        y, memory = module.forward(*arguments, checkpoints)
    assert forward.largest <= largest
    with _Sizes() as backward:
        module.backward(y, memory, *arguments[:5], *arguments[6:], checkpoints)
    assert backward.largest <= largest

    # checkpoints are for gradients alone
    with torch.no_grad(), _Sizes() as inference:
        shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend)
        module.forward(*arguments, checkpoints[:0])
    assert inference.largest <= max((CHUNK + 1) * matrix, vectors)


@pytest.mark.parametrize("backend", FAST)
def test_is_an_operator_of_torch(backend: Backend) -> None:
    inputs, is_init = make(2, 11, 4)
    for flags in (is_init, None):
        torch.library.opcheck(
            torch.ops.torchrl_shm.scan.default,
            (*inputs, flags, 1.5, False, None, backend, True),
        )
    detached = [x.detach() for x in inputs]
    y, memory, checkpoints = torch.ops.torchrl_shm.scan(
        *detached, is_init, 1.5, False, None, backend, True
    )
    torch.library.opcheck(
        torch.ops.torchrl_shm.scan_backward.default,
        (y, memory, *detached[:5], is_init, 1.5, False, None, backend, checkpoints),
    )


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("batched", [NAMES, NAMES[:2], ("memory",)], ids=str)
def test_vmap(backend: Backend, batched: tuple[str, ...]) -> None:
    dtype, tolerance = precise(backend)
    inputs, is_init = make(3 * 2, 11, 4, dtype)
    inputs = [x.detach().unflatten(0, (3, 2)) for x in inputs]
    stacks = [
        (x if name in batched else x[0]).clone().requires_grad_()
        for name, x in zip(NAMES, inputs, strict=True)
    ]
    dims = tuple(0 if name in batched else None for name in NAMES)
    flags = is_init[:2]

    def scan(*args: Tensor) -> tuple[Tensor, Tensor]:
        return shm_scan(*args, is_init=flags, backend=backend)

    actual = torch.vmap(scan, in_dims=dims)(*stacks)
    rows = [
        scan(*(x if dim is None else x[n] for x, dim in zip(stacks, dims, strict=True)))
        for n in range(3)
    ]
    expected = [torch.stack(x) for x in zip(*rows, strict=True)]
    assert_close(actual, tuple(expected), **tolerance)
    gradients = [
        torch.autograd.grad(y.square().sum() + memory.square().sum(), stacks)
        for y, memory in (actual, expected)
    ]
    assert_close(*gradients, **tolerance)


@pytest.mark.parametrize("backend", FAST)
def test_grad_of_torch_func_is_refused_by_name(backend: Backend) -> None:
    inputs, _ = make(1, 3, 2)
    vectors = torch.stack([x.detach() for x in inputs[:5]])
    with pytest.raises(RuntimeError, match=f"backend='{backend}' has no rule for torch.func.grad"):
        torch.func.grad(lambda x: shm_scan(*x, backend=backend)[0].sum())(vectors)


def test_threads_share_the_work() -> None:
    """More than one thread, and sequences that do not divide evenly among them."""
    inputs, is_init = make(5, 300, 48)
    expected = run(inputs, is_init, backend="numba")
    torch.set_num_threads(3)
    try:
        actual = run(inputs, is_init, backend="numba")
    finally:
        torch.set_num_threads(1)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_hint_once_where_numba_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numba_scan, "_import", lambda: "is not there")
    _dispatch._hint.cache_clear()
    inputs, _ = make(1, 3, 2)
    for _ in range(2):
        shm_scan(*inputs)
    assert [record.getMessage().split("`")[1] for record in caplog.records] == [
        "pip install 'torchrl_shm[cpu]'"
    ]
    with pytest.raises(RuntimeError, match="backend='numba' is not there"):
        shm_scan(*inputs, backend="numba")


def test_gate_of_numba_is_tanh() -> None:
    # not above: the tests of the GPU, which collect this file, run without numba
    from torchrl_shm.ops.shm import numba_kernels

    z = torch.linspace(-12, 12, 100_001)
    values = [numba_kernels._gate.py_func(x) for x in z.numpy()[::50]]
    expected = 1 + torch.tanh(z[::50].double())
    assert float((torch.tensor(values) - expected).abs().max()) < 4e-7
    assert np.isnan(numba_kernels._gate.py_func(np.float32("nan")))


def test_auto_runs_under_torch_func() -> None:
    vectors = torch.randn(5, 3, 2, 9, 4, dtype=torch.float64)
    y, memory = torch.vmap(lambda x: shm_scan(*x), in_dims=1)(vectors)
    for i in range(3):
        expected = shm_scan(*vectors[:, i], backend="reference")
        torch.testing.assert_close((y[i], memory[i]), expected)
    gradient = torch.func.grad(lambda x: shm_scan(*x)[0].sum())(vectors[:, 0])
    leaf = vectors[:, 0].clone().requires_grad_()
    shm_scan(*leaf)[0].sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)
