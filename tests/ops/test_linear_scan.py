"""The linear scan against a loop over the steps, in both of its ways."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.ops._helpers import SINGLE, agree, error
from torchrl_shm.ops import linear_scan

NAMES = ("a", "b", "state")
REAL, COMPLEX = torch.float64, torch.complex128
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(params=["in order", "in chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sequence is scanned in the same way, however short or wide it is."""
    # the name in the package is that of the function, which hides the module
    module = sys.modules["torchrl_shm.ops.linear_scan"]
    monkeypatch.setattr(module, "_SHORT", 0)
    monkeypatch.setattr(module, "_WIDE", 0 if request.param == "in order" else 10**9)


slow = pytest.mark.slow
both = pytest.mark.usefixtures("way")
# dynamo instantiates every autograd function, of which torch warns
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def loop(
    a: Tensor, b: Tensor, state: Tensor, is_init: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    factors = a.expand(-1, b.shape[1], *a.shape[2:])
    states: list[Tensor] = []
    for t in range(b.shape[1]):
        if is_init is not None:
            state = torch.where(is_init[:, t].view(-1, *(1,) * (state.ndim - 1)), 0, state)
        state = factors[:, t] * state + b[:, t]
        states.append(state)
    return torch.stack(states, 1) if states else b.clone(), state


def make(
    shape: tuple[int, ...], factors: tuple[int, ...] | None = None, dtypes: Any = (REAL, REAL)
) -> tuple[list[Tensor], Tensor]:
    """Factors, inputs and initial state, and resets at about one step in ten."""
    a = torch.randn(factors or shape, dtype=dtypes[0])
    a = a / (1 + a.abs())
    b = torch.randn(shape, dtype=dtypes[1])
    state = torch.randn(shape[0], *shape[2:], dtype=dtypes[1])
    return [x.requires_grad_() for x in (a, b, state)], torch.rand(shape[:2]) < 0.1


def run(scan: Any, inputs: list[Tensor], is_init: Tensor | None = None) -> list[Tensor]:
    """States, last state and the gradients of the inputs, for the same loss at every call."""
    results = scan(*inputs, is_init)
    generator = torch.Generator().manual_seed(1)
    loss: Any = 0
    for x in results:
        weights = torch.randn(x.shape, generator=generator, dtype=COMPLEX)
        product = weights * x
        loss = loss + product.real.sum() + product.imag.sum()
    return [*results, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


@both
@pytest.mark.parametrize(
    ("shape", "resets"),
    [
        ((3, 0, 4), True), ((0, 9, 4), True), ((1, 1, 4), True), ((3, 7, 4), False),
        ((3, 9, 4), True), ((1, 32, 4), True), ((3, 33, 4), False), ((3, 100, 4), True),
        ((3, 20), True),
    ],
)  # fmt: skip
def test_against_loop(shape: tuple[int, ...], resets: bool) -> None:
    inputs, is_init = make(shape)
    is_init = is_init if resets else None
    agree(run(linear_scan, inputs, is_init), run(loop, inputs, is_init), 3)


@both
@pytest.mark.parametrize(
    ("factors", "dtypes", "resets"),
    [
        ((1, 1, 1, 1), (REAL, REAL), True),
        ((2, 1, 3, 1), (COMPLEX, COMPLEX), False),
        ((1, 11, 1, 5), (REAL, COMPLEX), True),
        ((2, 11, 1, 1), (COMPLEX, COMPLEX), True),
        ((1, 1, 3, 5), (REAL, COMPLEX), True),
        ((2, 11, 3, 5), (COMPLEX, COMPLEX), True),
    ],
)
def test_factors_broadcast(factors: tuple[int, ...], resets: bool, dtypes: Any) -> None:
    inputs, is_init = make((2, 11, 3, 5), factors, dtypes)
    is_init = is_init if resets else None
    agree(run(linear_scan, inputs, is_init), run(loop, inputs, is_init), 3)


@both
@pytest.mark.parametrize(
    ("shape", "dtype", "constant"),
    [
        ((3, 29, 11), torch.float32, False),
        ((2, 100, 24), torch.complex64, True),
        ((1, 1024, 8), torch.float32, True),
        ((1, 1024, 8), torch.complex64, False),
    ],
)
def test_single_precision(shape: tuple[int, ...], dtype: torch.dtype, constant: bool) -> None:
    factors = (1, 1, shape[2]) if constant else None
    inputs, is_init = make(shape, factors, (dtype, dtype))
    wide = [x.detach().to(REAL if dtype == torch.float32 else COMPLEX) for x in inputs]
    expected = run(loop, [x.requires_grad_() for x in wide], is_init)
    actual = run(linear_scan, inputs, is_init)
    assert {x.dtype for x in actual} == {dtype}
    agree(actual, expected, 3, *SINGLE)


@both
@pytest.mark.parametrize(
    ("factors", "dtype"),
    [
        ((2, 11, 3), COMPLEX),
        ((1, 1, 3), REAL),
        pytest.param((1, 1, 3), COMPLEX, marks=slow),
        pytest.param((2, 11, 1), REAL, marks=slow),
    ],
)
def test_gradcheck(dtype: torch.dtype, factors: tuple[int, ...]) -> None:
    inputs, is_init = make((2, 11, 3), factors, (dtype, dtype))
    is_init[0, 4] = is_init[1, 0] = True
    assert torch.autograd.gradcheck(
        lambda *x: linear_scan(*x, is_init), inputs, eps=1e-6, atol=1e-6, rtol=1e-4
    )


@both
@pytest.mark.parametrize(("factors", "dtype"), [((1, 5, 2), COMPLEX), ((1, 1, 2), REAL)])
def test_gradgradcheck(dtype: torch.dtype, factors: tuple[int, ...]) -> None:
    inputs, _ = make((1, 5, 2), factors, (dtype, dtype))
    is_init = torch.tensor([[False, False, True, False, False]])
    assert torch.autograd.gradgradcheck(lambda *x: linear_scan(*x, is_init), inputs)


@both
@pytest.mark.parametrize("needed", NAMES)
def test_gradient_of_one_input(needed: str) -> None:
    inputs, is_init = make((2, 11, 3))
    leaf = inputs[NAMES.index(needed)]
    others = [x if x is leaf else x.detach() for x in inputs]
    actual, expected = (
        torch.autograd.grad(f(*others, is_init)[0].square().sum(), leaf)[0]
        for f in (linear_scan, loop)
    )
    assert_close(actual, expected, **EXACT)


@both
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("factors", "value", "dtype", "reset"),
    [
        ((2, 20, 4), float("nan"), REAL, 0),
        ((2, 20, 4), float("inf"), COMPLEX, 5),
        ((1, 20, 1), float("nan"), COMPLEX, 6),
        ((1, 20, 1), float("inf"), REAL, 11),
    ],
)
def test_nothing_passes_a_reset(
    factors: tuple[int, ...], value: float, dtype: torch.dtype, name: str, reset: int
) -> None:
    """NaN and inf before it reach neither the values after it nor their gradients."""
    inputs, is_init = make((2, 20, 4), factors, (dtype, dtype))
    is_init[:] = False
    # in both sequences, because they may share the factors
    is_init[:, reset] = True

    def after(inputs: list[Tensor]) -> list[Tensor]:
        states, last = linear_scan(*inputs, is_init)
        loss = states[:, reset:].abs().square().sum() + last.abs().sum()
        grads = torch.autograd.grad(loss, inputs)
        kept = [x[:, reset:] for x in (states, *grads[:2])]
        return [last, *kept, grads[2]] if name != "a" and reset == 0 else [last, *kept]

    expected = after(inputs)
    spoiled = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        x = spoiled[NAMES.index(name)]
        x[:, : x.shape[1] if name == "state" else reset] = value
    if name == "state" or reset:
        states, _ = linear_scan(*spoiled, is_init)
        assert reset == 0 or not states[:, :reset].isfinite().all()
    for x, y in zip(after(spoiled), expected, strict=True):
        assert x.isfinite().all()
        assert_close(x, y, **EXACT)


@both
@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("reset", [5, 11])
def test_no_gradient_passes_a_reset(name: str, reset: int) -> None:
    """A NaN in the step of the reset does not reach the gradients before it."""
    inputs, is_init = make((1, 20, 4))
    is_init[:] = False
    is_init[0, reset] = True
    expected = run(linear_scan, inputs, is_init)
    spoiled = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        spoiled[NAMES.index(name)][0, reset] = float("nan")
    for x, y in zip(run(linear_scan, spoiled, is_init)[2:4], expected[2:4], strict=True):
        assert_close(x[:, :reset], y[:, :reset], **EXACT)


@both
def test_a_gradient_of_nan_stays_in_its_episode() -> None:
    inputs, is_init = make((1, 20, 4))
    is_init[:] = False
    is_init[0, 9] = True
    weights = torch.ones(1, 20, 4, dtype=REAL)
    weights[:, 12] = float("nan")
    states, _ = linear_scan(*inputs, is_init)
    da, db = torch.autograd.grad(states, inputs[:2], weights)
    assert db.isnan().all(-1)[0].nonzero().flatten().tolist() == [9, 10, 11, 12]
    # the factor of the reset met no state
    assert da.isnan().all(-1)[0].nonzero().flatten().tolist() == [10, 11, 12]


@both
@pytest.mark.parametrize("split", [1, 40])
def test_resumes(split: int) -> None:
    inputs, is_init = make((2, 100, 3))
    a, b, state = inputs
    whole, last = linear_scan(a, b, state, is_init)
    first, middle = linear_scan(a[:, :split], b[:, :split], state, is_init[:, :split])
    second, end = linear_scan(a[:, split:], b[:, split:], middle, is_init[:, split:])
    assert_close(torch.cat([first, second], 1), whole, **EXACT)
    assert_close(end, last, **EXACT)


def test_starts_from_zeros() -> None:
    (a, b, state), is_init = make((2, 33, 3))
    assert_close(linear_scan(a, b, None, is_init), linear_scan(a, b, 0 * state, is_init))


@both
def test_repeats_to_the_bit() -> None:
    inputs, is_init = make((2, 100, 5), dtypes=(torch.float32, torch.float32))
    for x, y in zip(*(run(linear_scan, inputs, is_init) for _ in range(2)), strict=True):
        assert torch.equal(x, y)


@both
def test_layout_does_not_matter() -> None:
    inputs, is_init = make((2, 20, 5))
    strided = [x.detach().mT.contiguous().mT.requires_grad_() for x in inputs]
    assert_close(run(linear_scan, strided, is_init), run(linear_scan, inputs, is_init), **EXACT)


def test_last_state_keeps_no_buffer_alive() -> None:
    (a, b, state), _ = make((2, 100, 5))
    with torch.no_grad():
        _, last = linear_scan(a, b, state)
    assert last.untyped_storage().nbytes() == last.nbytes


@both
@pytest.mark.parametrize("resets", [False, True])
def test_makes_nothing_on_another_device(resets: bool) -> None:
    inputs, is_init = make((2, 20, 5))
    leaves = [x.detach().to("meta").requires_grad_() for x in inputs]
    states, last = linear_scan(*leaves, is_init.to("meta") if resets else None)
    states.sum().backward()
    assert states.device.type == last.device.type == "meta"


@pytest.mark.parametrize("constant", [False, True])
def test_saves_arguments_and_states_alone(constant: bool) -> None:
    inputs, is_init = make((64, 40, 64), (1, 1, 64) if constant else None)
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        linear_scan(*inputs, is_init)
    a, b, state = inputs
    assert sum(saved.values()) <= a.numel() + b.numel() + state.numel() + is_init.numel()


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16, torch.bfloat16), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.complex64, torch.float32), torch.complex64),
        ((torch.complex64, torch.float64), torch.complex128),
    ],
    ids=str,
)
def test_widest_dtype_wins(dtypes: Any, expected: torch.dtype) -> None:
    inputs, is_init = make((2, 20, 3), dtypes=dtypes)
    states, last = linear_scan(*inputs, is_init)
    assert states.dtype == last.dtype == expected
    grads = torch.autograd.grad(states.abs().sum(), inputs)
    assert [x.dtype for x in grads] == [x.dtype for x in inputs]
    assert error(states.detach().abs(), loop(*inputs, is_init)[0].abs()) < 2e-2


@both
@pytest.mark.parametrize(
    ("batched", "factors", "flags"),
    [
        (NAMES, None, "batched"),
        (("a",), (1, 1, 4), "shared"),
        (("b",), (1, 1, 4), "batched"),
        (("state",), None, "none"),
    ],
)
def test_vmap(batched: tuple[str, ...], factors: tuple[int, ...] | None, flags: str) -> None:
    stacks: list[Tensor] = []
    for name, shape in zip(NAMES, (factors or (2, 11, 4), (2, 11, 4), (2, 4)), strict=True):
        size = (3, *shape) if name in batched else shape
        stacks.append((0.5 * torch.randn(size, dtype=REAL)).requires_grad_())
    dims = [0 if name in batched else None for name in NAMES]
    is_init = torch.rand(3, 2, 11) < 0.2
    more: tuple[Tensor, ...] = ()
    if flags != "none":
        more = (is_init if flags == "batched" else is_init[0],)
        dims.append(0 if flags == "batched" else None)
    actual = torch.vmap(linear_scan, in_dims=tuple(dims))(*stacks, *more)
    rows = [
        linear_scan(
            *(x if d is None else x[n] for x, d in zip((*stacks, *more), dims, strict=True))
        )
        for n in range(3)
    ]
    expected = tuple(torch.stack(x) for x in zip(*rows, strict=True))
    assert_close(actual, expected, **EXACT)
    grads = [
        torch.autograd.grad(states.square().sum() + last.sum(), stacks)
        for states, last in (actual, expected)
    ]
    assert_close(*grads, **EXACT)


@both
def test_grad_and_jacobian_of_torch_func() -> None:
    inputs, is_init = make((2, 11, 3))

    def loss(*inputs: Tensor) -> Tensor:
        states, last = linear_scan(*inputs, is_init)
        return states.square().sum() + last.sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    plain = [x.detach() for x in inputs]
    assert_close(torch.func.grad(loss, (0, 1, 2))(*plain), expected, **EXACT)
    jacobian = torch.func.jacrev(lambda b: linear_scan(plain[0], b, plain[2], is_init)[0])
    expected = torch.func.jacrev(lambda b: loop(plain[0], b, plain[2], is_init)[0])(plain[1])
    assert_close(jacobian(plain[1]), expected, **EXACT)


@compiles
@pytest.mark.parametrize(
    ("shape", "resets", "dtype"),
    [
        ((2, 5, 3), True, REAL),
        pytest.param((2, 33, 3), False, COMPLEX, marks=slow),
        pytest.param((64, 20, 64), True, REAL, marks=slow),
    ],
)
def test_compiles(shape: tuple[int, ...], resets: bool, dtype: torch.dtype) -> None:
    torch.compiler.reset()
    inputs, is_init = make(shape, dtypes=(dtype, dtype))
    is_init = is_init if resets else None
    compiled = torch.compile(linear_scan, backend="aot_eager", fullgraph=True)
    assert_close(run(compiled, inputs, is_init), run(linear_scan, inputs, is_init), **EXACT)


def refuse(error: type[Exception], message: str, *arguments: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        linear_scan(*arguments)


def test_errors() -> None:
    a, b, state = torch.zeros(1, 1, 3), torch.zeros(2, 5, 3), torch.zeros(2, 3)
    resets = torch.zeros(2, 5, dtype=torch.bool)
    linear_scan(a, b, state, resets)
    refuse(ValueError, "a [3] and b [2, 5, 3] must have the same number", a[0, 0], b)
    refuse(ValueError, "a [1] and b [2] must have the same number", a[0, 0, :1], b[:, 0, 0])
    refuse(ValueError, "a [2, 4, 3] does not broadcast to b [2, 5, 3]", b[:, :4], b)
    refuse(ValueError, "state is [3], expected [2, 3]", a, b, state[0])
    refuse(TypeError, "is_init is torch.float32, expected torch.bool", a, b, state, resets.float())
    refuse(
        ValueError, "is_init has shape [2, 4], expected [B, T] = [2, 5]", a, b, state, resets[:, :4]
    )
    refuse(RuntimeError, "is_init is on meta but the inputs on cpu", a, b, state, resets.to("meta"))
