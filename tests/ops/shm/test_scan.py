"""Every backend of `shm_scan` against the reference in float64, and the promises they share.

Those of the CUDA kernels run on a GPU, or without one in triton's interpreter.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.ops._helpers import (
    NAMES,
    Sizes,
    agree,
    check_float32,
    check_reset,
    distance_to_clamp,
    double,
    error,
    make,
    run,
)
from torchrl_shm.ops import Backend, shm_scan, shm_step
from torchrl_shm.ops.shm import dispatch, numba_scan
from torchrl_shm.ops.shm.backend import STORE, Options, Vectors, load

ON_CPU: tuple[Backend, ...] = ("chunked", "numba")
# those that compute in the precision of their inputs
DOUBLE: tuple[Backend, ...] = ("reference", "chunked")
fast = pytest.mark.parametrize("backend", [*ON_CPU, "triton"])
every = pytest.mark.parametrize("backend", ["reference", *ON_CPU, "triton"])
slow = pytest.mark.slow


def all_but_few(values: Sequence[Any], *, of_triton: Sequence[Any]) -> Any:
    """Every backend with all values; with the others of them, the interpreter of triton is slow."""
    return [
        pytest.param(x, backend, marks=slow if backend == "triton" and x not in of_triton else ())
        for x in values
        for backend in ("reference", *ON_CPU, "triton")
    ]


def precise(backend: Backend) -> tuple[torch.dtype, dict[str, float]]:
    """The highest precision of a backend, and the tolerance that goes with it."""
    if backend in DOUBLE:
        return torch.float64, {"rtol": 1e-10, "atol": 1e-12}
    return torch.float32, {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("backend", DOUBLE)
@pytest.mark.parametrize(
    ("resets", "clamp"),
    [
        pytest.param(False, None, marks=slow),
        pytest.param(True, None, marks=slow),
        (True, 0.8),
    ],
    ids=["plain", "reset", "clamp"],
)
def test_gradcheck(backend: Backend, resets: bool, clamp: float | None) -> None:
    # longer than a chunk and no multiple of it
    inputs, is_init = make(2, STORE + 3, 3, torch.float64)
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


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize(
    ("shape", "resets", "clamp"),
    [
        ((3, 29, 11), True, 1.5),
        ((2, 100, 24), False, 1.5),
        ((1, 63, 32), False, None),
        ((2, 1024, 8), True, None),
        ((2, STORE, 1), True, 1.5),
    ],
)
def test_float32_against_reference(
    backend: Backend, shape: tuple[int, int, int], resets: bool, clamp: float | None
) -> None:
    inputs, is_init = make(*shape)
    check_float32(inputs, is_init if resets else None, clamp, backend)


def test_float64_against_reference() -> None:
    inputs, is_init = make(3, 29, 11, torch.float64)
    expected, actual = (run(inputs, is_init, 1.5, backend) for backend in DOUBLE)
    assert {x.dtype for x in actual} == {torch.float64}
    agree(actual, expected, 6)


@every
def test_bfloat16_inputs_float32_state(backend: Backend) -> None:
    inputs, is_init = make(1, 20, 12, backend=backend)
    rounded = [x.detach().bfloat16().requires_grad_() for x in inputs[:5]] + inputs[5:]
    expected = run(double(rounded), is_init)
    actual = run(rounded, is_init, backend=backend)
    assert (actual[0].dtype, actual[1].dtype) == (torch.bfloat16, torch.float32)
    assert error(actual[1], expected[1]) <= 5e-6
    agree(actual, expected, 6, 1e-2, 1e-2)


@every
def test_two_calls_are_bit_equal_under_autocast_too(backend: Backend) -> None:
    inputs, is_init = make(1, 13, 11, backend=backend)
    expected, again = (run(inputs, is_init, backend=backend) for _ in range(2))
    with torch.autocast(inputs[0].device.type, torch.bfloat16):
        rounded = run(inputs, is_init, backend=backend)
    for a, b, e in zip(again, rounded, expected, strict=True):
        assert torch.equal(a, e)
        assert torch.equal(b, e)


# of numpy, on which the interpreter of triton computes
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("case", "backend"),
    all_but_few(RESETS := [(math.nan, STORE, 1.5), (math.inf, 5, None)], of_triton=RESETS[:1]),
)
def test_nothing_passes_a_reset(backend: Backend, case: tuple[float, int, float | None]) -> None:
    value, reset, clamp = case
    dtype, tolerance = precise(backend)
    check_reset(backend, dtype, value, reset, clamp, tolerance=tolerance)


@every
def test_reset_at_the_first_step_drops_a_given_memory(backend: Backend) -> None:
    inputs, is_init = make(3, 10, 4, backend=backend)
    is_init[:] = False
    is_init[::2, 0] = True
    with torch.no_grad():
        inputs[5][0] = float("nan")
    y, memory = shm_scan(*inputs, is_init=is_init, backend=backend)
    kept = torch.where(is_init[:, 0, None, None], 0.0, inputs[5])
    expected = shm_scan(*inputs[:5], memory=kept, backend=backend)
    assert_close((y, memory), expected, rtol=0, atol=0)
    (grad,) = torch.autograd.grad([y.sum()], inputs[5:])
    assert not grad[[0, 2]].any()
    assert grad[1].any()


@every
def test_the_boundary_of_the_clamp_passes_gradients(backend: Backend) -> None:
    inputs, _ = make(1, 1, 5, backend=backend)
    one = torch.ones_like(inputs[0])
    v = one.new_tensor([[[1.0, -1.0, 2.0, -2.0, 0.5]]]).requires_grad_()
    y, memory = shm_scan(one, one, v, one, one, clamp=1.0, backend=backend)
    (grad,) = torch.autograd.grad([y.sum()], v)
    assert memory.abs().max() == 1
    assert y.flatten().tolist() == [5, -5, 5, -5, 2.5]
    assert grad.flatten().tolist() == [5, 5, 0, 0, 5]


@every
@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 5, 3), (0, 0, 3), (1, 1, 1)], ids=str)
def test_degenerate_shapes(backend: Backend, shape: tuple[int, int, int]) -> None:
    inputs, is_init = make(*shape, backend=backend)
    actual = run(inputs, is_init, 1.5, backend)
    for a, e in zip(actual, run(double(inputs), is_init, 1.5), strict=True):
        assert_close(a, e.float())
    if shape[1] == 0:
        assert torch.equal(actual[1], inputs[5])


@every
def test_inputs_need_not_be_contiguous(backend: Backend) -> None:
    inputs, is_init = make(4, 4, 4, backend=backend)
    views = [
        inputs[0].detach()[:1, :1].expand(4, 4, 4),
        *(x.detach().transpose(0, 1) for x in inputs[1:3]),
        inputs[3].detach().movedim(-1, 0),
        torch.stack([inputs[4].detach()] * 2, -1)[..., 0],
        inputs[5].detach().mT,
    ]
    views = [x.as_strided(x.shape, x.stride()).requires_grad_() for x in views]
    assert not any(x.is_contiguous() for x in views)
    copies = [x.detach().contiguous().requires_grad_() for x in views]
    actual, expected = (run(x, is_init.T, 1.5, backend) for x in (views, copies))
    assert_close(actual, expected)


@every
def test_step_by_step(backend: Backend) -> None:
    inputs, is_init = make(3, 20, 6, backend=backend)
    y, final = shm_scan(*inputs, is_init=is_init, clamp=1.5, backend=backend)
    memory = inputs[5]
    for t in range(20):
        memory = torch.where(is_init[:, t, None, None], 0.0, memory)
        step, memory = shm_step(*(x[:, t] for x in inputs[:5]), memory=memory, clamp=1.5)
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


@pytest.mark.parametrize(("at", "backend"), all_but_few([STORE, 13], of_triton=[13]))
def test_two_calls_with_carried_memory_are_one(backend: Backend, at: int) -> None:
    dtype, tolerance = precise(backend)
    inputs, is_init = make(2, 21, 5, dtype, backend)

    def scan(part: slice, memory: Tensor) -> tuple[Tensor, Tensor]:
        vectors = (x[:, part] for x in inputs[:5])
        return shm_scan(*vectors, memory, is_init[:, part], clamp=1.5, backend=backend)

    first, memory = scan(slice(at), inputs[5])
    second, memory = scan(slice(at, None), memory)
    results: list[Any] = []
    for y, final in ((torch.cat([first, second], 1), memory), scan(slice(None), inputs[5])):
        loss = y.square().sum() + final.square().sum()
        results.append((y, final, *torch.autograd.grad([loss], inputs)))
    assert_close(*results, **tolerance)


@pytest.mark.parametrize(("wanted", "backend"), all_but_few(["vc", "memory"], of_triton=["memory"]))
def test_gradient_of_one_input_alone(backend: Backend, wanted: str) -> None:
    inputs, is_init = make(2, 11, 4, backend=backend)
    n = NAMES.index(wanted)
    expected = run(inputs, is_init, backend=backend)
    alone = [x.detach().requires_grad_(i == n) for i, x in enumerate(inputs)]
    y, memory, grad = run(alone, is_init, backend=backend)
    assert_close((y, memory, grad), (*expected[:2], expected[2 + n]))


@every
@pytest.mark.parametrize("output", [0, 1], ids=["y", "memory"])
def test_loss_of_one_output_alone(backend: Backend, output: int) -> None:
    inputs, is_init = make(2, 11, 4, backend=backend)

    def gradients(inputs: list[Tensor], backend: Backend) -> tuple[Tensor, ...]:
        loss = shm_scan(*inputs, is_init=is_init, backend=backend)[output].square().sum()
        # the final memory does not depend on q
        return torch.autograd.grad([loss], inputs, materialize_grads=True)

    actual, expected = gradients(inputs, backend), gradients(double(inputs), "reference")
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e.float())


@fast
def test_second_derivative_is_refused(backend: Backend) -> None:
    inputs, _ = make(1, 3, 2, backend=backend)
    y, _ = shm_scan(*inputs, backend=backend)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad([y.sum()], inputs, create_graph=True)


@every
@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 1, 3)], ids=str)
def test_output_may_be_changed_in_place(backend: Backend, shape: tuple[int, int, int]) -> None:
    inputs, _ = make(*shape, backend=backend)
    y, _ = shm_scan(*inputs, backend=backend)
    (expected,) = torch.autograd.grad([2 * y.sum()], inputs[:1], retain_graph=True)
    y.mul_(2)
    (actual,) = torch.autograd.grad([y.sum()], inputs[:1])
    assert y.is_contiguous()
    assert_close(actual, expected)


@slow
# torch.compile does that itself to an autograd function it traces
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["reference", *ON_CPU])
@pytest.mark.parametrize("clamp", [None, 1.5])
def test_compiles_without_graph_breaks(
    backend: Backend, clamp: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.compile cannot trace the poisoned torch.empty_like
    monkeypatch.undo()
    inputs, is_init = make(2, STORE + 3, 4)

    def scan(*args: Tensor) -> tuple[Tensor, Tensor]:
        return shm_scan(*args, is_init=is_init, clamp=clamp, backend=backend)

    results: list[Any] = []
    for function in (torch.compile(scan, backend="aot_eager", fullgraph=True), scan):
        y, memory = function(*inputs)
        grads = torch.autograd.grad([y.square().sum() + memory.sum()], inputs)
        results.append((y, memory, *grads))
    assert_close(*results, rtol=1e-4, atol=1e-5)


def test_auto_is_the_fastest_that_runs_here() -> None:
    inputs, is_init = make(2, 11, 4)
    auto, numba = (shm_scan(*inputs, is_init=is_init, backend=b) for b in ("auto", "numba"))
    assert torch.equal(auto[0], numba[0])
    auto, chunked = (shm_scan(*double(inputs), backend=b) for b in ("auto", "chunked"))
    assert torch.equal(auto[0], chunked[0])


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("clamp", [None, 1.5])
def test_memory_does_not_grow_with_steps_times_matrix(
    backend: Backend, clamp: float | None
) -> None:
    batch, steps, size = 2, 40 * STORE, 12
    inputs, is_init = make(batch, steps, size)
    vectors, matrix = batch * steps * size, batch * size * size
    largest = max(steps // STORE * matrix, vectors)
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        _, memory = shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend)
    # the final memory keeps no buffer alive
    assert memory.untyped_storage().nbytes() == memory.nbytes
    assert sum(saved.values()) <= 6 * vectors + steps // STORE * matrix

    # a mode sees an operator as a whole, so the backend is called outside of it
    *plain, start = (x.detach() for x in inputs)
    arguments = is_init, Options(clamp)
    checkpoints = torch.empty(steps // STORE, *start.shape)
    with Sizes() as forward:
        y, memory = load(backend).forward(Vectors(*plain), start, *arguments, checkpoints)
    assert forward.largest <= largest
    with Sizes() as backward:
        load(backend).backward(y, memory, Vectors(*plain), *arguments, checkpoints)
    assert backward.largest <= largest

    # checkpoints are for gradients alone
    with torch.no_grad(), Sizes() as inference:
        shm_scan(*inputs, is_init=is_init, clamp=clamp, backend=backend)
        load(backend).forward(Vectors(*plain), start, *arguments, start.new_empty(0, *start.shape))
    assert inference.largest <= max((STORE + 1) * matrix, vectors)


@pytest.mark.parametrize("backend", [pytest.param("chunked", marks=slow), "numba", "triton"])
def test_is_an_operator_of_torch(backend: Backend) -> None:
    inputs, is_init = make(2, 5, 4, backend=backend)
    operators, options = torch.ops.torchrl_shm, (1.5, False, None, backend)
    torch.library.opcheck(operators.scan.default, (*inputs, None, *options, True))
    *vectors, memory = (x.detach() for x in inputs)
    y, final, checkpoints = operators.scan(*vectors, memory, is_init, *options, True)
    torch.library.opcheck(
        operators.scan_backward.default, (y, final, *vectors, is_init, *options, checkpoints)
    )


@pytest.mark.parametrize(
    ("batched", "backend"), all_but_few([NAMES[:5], ("memory",)], of_triton=[NAMES[:5]])
)
def test_vmap(backend: Backend, batched: tuple[str, ...]) -> None:
    dtype, tolerance = precise(backend)
    inputs, is_init = make(2 * 2, 9, 3, dtype, backend)
    stacks: list[Tensor] = []
    for name, x in zip(NAMES, inputs, strict=True):
        parts = x.detach().unflatten(0, (2, 2))
        stacks.append((parts if name in batched else parts[0]).clone().requires_grad_())
    dims = tuple(0 if name in batched else None for name in NAMES)

    def scan(*args: Tensor) -> tuple[Tensor, Tensor]:
        return shm_scan(*args, is_init=is_init[:2], backend=backend)

    actual = torch.vmap(scan, in_dims=dims)(*stacks)
    singles = [
        scan(*(x if dim is None else x[n] for x, dim in zip(stacks, dims, strict=True)))
        for n in range(2)
    ]
    expected = tuple(torch.stack(x) for x in zip(*singles, strict=True))
    assert_close(actual, expected, **tolerance)
    gradients = [
        torch.autograd.grad(y.square().sum() + memory.square().sum(), stacks)
        for y, memory in (actual, expected)
    ]
    assert_close(*gradients, **tolerance)


@fast
def test_grad_of_torch_func_is_refused_by_name(backend: Backend) -> None:
    inputs, _ = make(1, 3, 2, backend=backend)
    vectors = torch.stack([x.detach() for x in inputs[:5]])
    with pytest.raises(RuntimeError, match=f"backend='{backend}' has no rule for torch.func.grad"):
        torch.func.grad(lambda x: shm_scan(*x, backend=backend)[0].sum())(vectors)


def test_auto_runs_under_torch_func() -> None:
    vectors = torch.randn(5, 2, 9, 4, dtype=torch.float64)
    gradient = torch.func.grad(lambda x: shm_scan(*x)[0].sum())(vectors)
    leaf = vectors.clone().requires_grad_()
    shm_scan(*leaf)[0].sum().backward()
    assert_close(gradient, leaf.grad)
    y, memory = torch.vmap(lambda x: shm_scan(*x.unsqueeze(1)), in_dims=1)(vectors)
    assert_close((y.squeeze(1), memory.squeeze(1)), shm_scan(*vectors, backend="reference"))


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


def _broken(error: Exception) -> ModuleType:
    """A numba whose decorators fail, as they do where there is no folder for compiled code."""

    def njit(**options: Any) -> Any:
        raise error

    module = ModuleType("numba")
    vars(module)["njit"] = njit
    return module


@pytest.mark.parametrize(
    ("numba", "reason"),
    [
        # what stands for a package that is not there
        (None, "ModuleNotFoundError: import of numba halted"),
        (_broken(RuntimeError("no locator available")), "RuntimeError: no locator available"),
        (_broken(OSError("undefined symbol")), "OSError: undefined symbol"),
    ],
    ids=["missing", "nowhere to write", "broken"],
)
def test_chunked_where_numba_cannot_be_loaded(
    numba: ModuleType | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "numba", numba)
    monkeypatch.delitem(sys.modules, "torchrl_shm.ops.shm.numba_kernels", raising=False)
    monkeypatch.delattr("torchrl_shm.ops.shm.numba_kernels", raising=False)
    # as in a new process
    monkeypatch.setattr(numba_scan, "_import", cache(numba_scan._import.__wrapped__))
    dispatch._tell.cache_clear()
    inputs, is_init = make(2, 11, 4)
    actual = run(inputs, is_init, backend="auto")
    for a, e in zip(actual, run(inputs, is_init, backend="chunked"), strict=True):
        assert torch.equal(a, e)
    # once for all scans
    (record,) = caplog.records
    assert f"slower: backend='numba' cannot load numba ({reason}" in record.getMessage()
    with pytest.raises(RuntimeError, match="install numba again, or set NUMBA_CACHE_DIR"):
        shm_scan(*inputs, backend="numba")


def test_gate_of_numba_is_tanh() -> None:
    # not above: a GPU machine may have only torch, triton and pytest
    from torchrl_shm.ops.shm import numba_kernels

    z = torch.linspace(-12, 12, 2001)
    values = [numba_kernels._gate.py_func(x) for x in z.numpy()]
    assert float((torch.tensor(values) - 1 - torch.tanh(z.double())).abs().max()) < 4e-7
    (nan,) = torch.tensor([float("nan")]).numpy()
    assert math.isnan(numba_kernels._gate.py_func(nan))
