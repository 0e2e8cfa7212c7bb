"""The scans of matrix memories against a loop over the steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.ops._helpers import SINGLE, Sizes, agree
from torchrl_shm.ops import delta_scan, gated_scan

Results = tuple[Tensor, ...]
Inputs = dict[str, Any]
EXACT = {"rtol": 1e-10, "atol": 1e-12}
STATE = ("memory", "stabilizer")


def gated_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    log_input: Tensor | None = None,
    memory: Any = None,
    stabilizer: Any = None,
    is_init: Tensor | None = None,
) -> Results:
    readings, stabilizers = [v[:, :0]], [q[:, :0, 0]]
    for t in range(q.shape[1]):
        if is_init is not None:
            memory = torch.where(is_init[:, t, None, None], 0, memory)
            stabilizer = torch.where(is_init[:, t], 0, stabilizer)
        written = v[:, t, :, None] * k[:, t, None, :]
        if log_decay is None or log_input is None:
            memory = memory + written
            stabilizer = stabilizer.detach()
        else:
            faded = log_decay[:, t] + stabilizer
            stabilizer = torch.maximum(faded, log_input[:, t]).detach()
            memory = (
                memory * (faded - stabilizer).exp()[:, None, None]
                + written * (log_input[:, t] - stabilizer).exp()[:, None, None]
            )
        readings.append((memory * q[:, t, None, :]).sum(-1).unsqueeze(1))
        stabilizers.append(stabilizer.unsqueeze(1))
    return torch.cat(readings, 1), torch.cat(stabilizers, 1), memory


def delta_loop(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, memory: Any, is_init: Tensor | None = None
) -> Results:
    readings = [v[:, :0]]
    for t in range(q.shape[1]):
        if is_init is not None:
            memory = torch.where(is_init[:, t, None, None], 0, memory)
        missing = beta[:, t, None] * (v[:, t] - (memory * k[:, t, None, :]).sum(-1))
        memory = memory + missing.unsqueeze(-1) * k[:, t, None, :]
        readings.append((memory * q[:, t, None, :]).sum(-1).unsqueeze(1))
    return torch.cat(readings, 1), memory


def make(
    scan: str, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64
) -> tuple[Inputs, Tensor]:
    """Inputs `[B, T, K, V]` of a scan, and resets at about one step in ten."""
    batch, steps, width, height = shape
    names = {"q": width, "k": width, "v": height}
    inputs = {name: torch.randn(batch, steps, n) for name, n in names.items()}
    inputs["memory"] = torch.randn(batch, height, width)
    if scan == "delta":
        inputs["k"] = F.normalize(inputs["k"], dim=-1)
        inputs["beta"] = torch.rand(batch, steps)
    else:
        inputs["stabilizer"] = torch.randn(batch)
    if scan == "gated":
        inputs["log_decay"] = F.logsigmoid(3 * torch.randn(batch, steps))
        inputs["log_input"] = 2 * torch.randn(batch, steps)
    leaves = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
    return leaves, torch.rand(batch, steps) < 0.1


SCANS: dict[str, tuple[Callable[..., Results], Callable[..., Results]]] = {
    "sum": (gated_scan, gated_loop),
    "gated": (gated_scan, gated_loop),
    "delta": (delta_scan, delta_loop),
}
every = pytest.mark.parametrize("scan", SCANS)
# dynamo instantiates every autograd function, of which torch warns
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def run(function: Callable[..., Results], inputs: Inputs, is_init: Tensor | None) -> list[Tensor]:
    """Results and the gradients of the inputs, for the same loss at every call."""
    results = function(**inputs, is_init=is_init)
    generator = torch.Generator().manual_seed(1)
    loss: Any = 0
    for x in (results[0], results[-1]):
        # drawn in float64, so that every dtype gets the same
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        loss = loss + (x * weights.to(x.dtype)).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    return [*results, *grads]


@every
@pytest.mark.parametrize(
    ("batch", "steps", "resets"),
    [
        (3, 0, True), (0, 9, True), (1, 1, True), (3, 7, False), (3, 9, True), (1, 32, True),
        (3, 33, False), (3, 100, True),
    ],
)  # fmt: skip
def test_against_loop(scan: str, steps: int, batch: int, resets: bool) -> None:
    inputs, is_init = make(scan, (batch, steps, 4, 5))
    is_init = is_init if resets else None
    actual, expected = (run(f, inputs, is_init) for f in SCANS[scan])
    agree(actual, expected, len(inputs))


@every
@pytest.mark.parametrize("first", [[0, 1, 2], [32], [31, 32, 33], range(100)], ids=str)
def test_resets_at_the_seams(scan: str, first: list[int]) -> None:
    inputs, is_init = make(scan, (1, 100, 3, 2))
    is_init[:] = False
    is_init[:, list(first)] = True
    actual, expected = (run(f, inputs, is_init) for f in SCANS[scan])
    agree(actual, expected, len(inputs))


@every
@pytest.mark.parametrize(
    ("shape", "resets"),
    [((3, 29, 11, 7), True), ((2, 100, 24, 24), False), ((1, 1024, 8, 8), True)],
)
def test_single_precision(scan: str, shape: tuple[int, int, int, int], resets: bool) -> None:
    inputs, is_init = make(scan, shape, torch.float32)
    is_init = is_init if resets else None
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    actual = run(SCANS[scan][0], inputs, is_init)
    assert {x.dtype for x in actual} == {torch.float32}
    agree(actual, run(SCANS[scan][1], wide, is_init), len(inputs), *SINGLE)


@every
def test_gradcheck(scan: str) -> None:
    inputs, is_init = make(scan, (2, 11, 3, 2))
    is_init[0, 4] = is_init[1, 0] = True
    # the choice of the stabilizer is no part of the gradient, so all are kept out of it
    function = SCANS[scan][0]

    def true_memory(*values: Tensor) -> Tensor:
        results = function(**dict(zip(inputs, values, strict=True)), is_init=is_init)
        if scan != "gated":
            return torch.cat([results[0].flatten(), results[-1].flatten()])
        y, m, memory = results
        scale = m.exp()
        return torch.cat(
            [(y * scale.unsqueeze(-1)).flatten(), (memory * scale[:, -1, None, None]).flatten()]
        )

    if scan == "sum":
        inputs["stabilizer"].requires_grad_(False)
    assert torch.autograd.gradcheck(
        true_memory, tuple(inputs.values()), eps=1e-6, atol=1e-6, rtol=1e-4
    )


@every
def test_gradgradcheck(scan: str) -> None:
    inputs, is_init = make(scan, (1, 4, 2, 2))
    is_init[0] = torch.tensor([False, False, True, False])
    names = [name for name in inputs if name not in ("log_decay", "log_input", "stabilizer")]
    others = {name: x.detach() for name, x in inputs.items() if name not in names}

    def function(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return SCANS[scan][0](**named, **others, is_init=is_init)[0]

    assert torch.autograd.gradgradcheck(function, [inputs[name] for name in names])


@pytest.mark.parametrize(("size", "dtype"), [(80.0, torch.float32), (20.0, torch.float64)])
def test_large_gates_stay_finite(size: float, dtype: torch.dtype) -> None:
    """`exp(80)` is near the end of float32, and a product of two is beyond."""
    inputs, is_init = make("gated", (2, 200, 6, 5), dtype)
    with torch.no_grad():
        inputs["log_input"].uniform_(-size, size)
        inputs["log_decay"].uniform_(-size, 0)
        inputs["log_decay"][torch.rand(2, 200) < 0.5] = 0
    actual = run(gated_scan, inputs, is_init)
    assert all(x.isfinite().all() for x in actual)
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    expected = run(gated_loop, wide, is_init)
    agree(actual, expected, len(inputs), *(SINGLE if dtype == torch.float32 else ()))


def test_a_closed_gate_takes_no_digits_from_what_follows() -> None:
    inputs, _ = make("gated", (1, 32, 4, 4), torch.float32)
    with torch.no_grad():
        inputs["log_decay"][:, 3] = -1e5
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    agree(run(gated_scan, inputs, None), run(gated_loop, wide, None), len(inputs), *SINGLE)


def test_stabilizer_does_not_change_the_memory() -> None:
    """The same true memory in another scale gives the same readings, once scaled back."""
    inputs, is_init = make("gated", (2, 50, 4, 3))
    y, m, memory = gated_scan(**inputs, is_init=is_init)
    inputs["memory"] = inputs["memory"] * 9
    inputs["stabilizer"] = inputs["stabilizer"] - torch.tensor(9.0).log()
    other_y, other_m, other = gated_scan(**inputs, is_init=is_init)
    scale, other_scale = m.exp(), other_m.exp()
    assert_close(other_y * other_scale.unsqueeze(-1), y * scale.unsqueeze(-1), rtol=1e-6, atol=1e-9)
    assert_close(
        other * other_scale[:, -1, None, None],
        memory * scale[:, -1, None, None],
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("gate", ["log_decay", "log_input"])
def test_gate_of_minus_infinity_is_shut(gate: str) -> None:
    inputs, is_init = make("gated", (2, 50, 4, 3))
    shut = torch.rand(2, 50) < 0.3
    results: list[list[Tensor]] = []
    for value in (-1e4, -float("inf")):
        values = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
        with torch.no_grad():
            values[gate][shut] = value
        results.append(run(gated_scan, values, is_init))
    assert_close(*results, **EXACT)


def test_a_step_with_both_gates_shut_empties_the_memory() -> None:
    inputs, _ = make("gated", (1, 40, 4, 3))
    with torch.no_grad():
        inputs["log_decay"][:, 9] = inputs["log_input"][:, 9] = -float("inf")
    y, _, _ = gated_scan(**inputs)
    assert not y[:, 9].isnan().any()
    later = {n: x if n in STATE else x[:, 10:] for n, x in inputs.items()}
    later["memory"] = torch.zeros_like(inputs["memory"])
    later["stabilizer"] = torch.full((1,), -float("inf"), dtype=torch.float64)
    assert_close(y[:, 10:], gated_scan(**later)[0], **EXACT)


@pytest.mark.parametrize(
    ("scan", "name"), [(s, n) for s in SCANS for n in make(s, (1, 1, 1, 1))[0]]
)
@pytest.mark.parametrize(
    ("value", "reset"),
    [(float("nan"), 0), (float("inf"), 5), (float("inf"), 32), (float("nan"), 40)],
)
def test_nothing_passes_a_reset(scan: str, value: float, name: str, reset: int) -> None:
    """NaN and inf before it reach neither the values after it nor their gradients."""
    inputs, is_init = make(scan, (2, 70, 4, 3))
    is_init[:] = False
    is_init[0, reset] = True

    def after(inputs: Inputs) -> list[Tensor]:
        y, *_, memory = results = SCANS[scan][0](**inputs, is_init=is_init)
        loss = y[0, reset:].square().sum() + memory.square().sum() + y[1].square().sum()
        steps = [x for n, x in inputs.items() if n not in STATE]
        states = [x for n, x in inputs.items() if n in STATE]
        grads = torch.autograd.grad(loss, [*steps, *states], materialize_grads=True)
        rows = [x[0, reset:] for x in (*results[:-1], *grads[: len(steps)])]
        # what entered in row 0 has no gradient if it was dropped at once
        kept = grads[len(steps) :] if reset == 0 else [x[1] for x in grads[len(steps) :]]
        return [memory, *rows, *(x[1] for x in (y, *grads)), *kept]

    expected = after(inputs)
    spoiled = {n: x.detach().clone().requires_grad_() for n, x in inputs.items()}
    with torch.no_grad():
        if name in STATE:
            spoiled[name][0] = value
        else:
            spoiled[name][0, :reset] = value
    y = SCANS[scan][0](**spoiled, is_init=is_init)[0]
    assert y[0, :reset].isnan().all()
    for x, e in zip(after(spoiled), expected, strict=True):
        assert x.isfinite().all()
        assert_close(x, e, **EXACT)


@pytest.mark.parametrize(
    ("scan", "name"),
    [(s, n) for s in SCANS for n in make(s, (1, 1, 1, 1))[0] if n not in STATE],
)
@pytest.mark.parametrize(("step", "resets"), [(6, True), (32, False), (40, True)])
def test_nothing_looks_ahead(scan: str, name: str, step: int, resets: bool) -> None:
    """A NaN reaches neither the values before it nor, over a reset, their gradients."""
    inputs, is_init = make(scan, (1, 70, 4, 3))
    is_init[:] = False
    is_init[:, step] = resets
    spoiled = {n: x.detach().clone().requires_grad_() for n, x in inputs.items()}
    with torch.no_grad():
        spoiled[name][:, step] = float("nan")
    actual, expected = (run(SCANS[scan][0], x, is_init) for x in (spoiled, inputs))
    assert actual[0][:, step].isnan().all()
    assert_close(actual[0][:, :step], expected[0][:, :step], **EXACT)
    if resets:
        for n, x, e in zip(inputs, actual[-len(inputs) :], expected[-len(inputs) :], strict=True):
            earlier = slice(None) if n in STATE else (slice(None), slice(step))
            assert_close(x[earlier], e[earlier], **EXACT)


@every
def test_a_spoiled_query_is_not_written(scan: str) -> None:
    inputs, is_init = make(scan, (1, 50, 4, 3))
    expected = SCANS[scan][0](**inputs, is_init=is_init)
    inputs["q"] = inputs["q"].detach().clone()
    inputs["q"][:, 11] = float("nan")
    y, *_, memory = SCANS[scan][0](**inputs, is_init=is_init)
    assert y.isnan().all(-1).nonzero().tolist() == [[0, 11]]
    assert_close(memory, expected[-1], **EXACT)


@every
def test_a_spoiled_write_lasts_to_the_end(scan: str) -> None:
    inputs, is_init = make(scan, (1, 100, 4, 3))
    is_init[:] = False
    is_init[:, 80] = True
    inputs["v"] = inputs["v"].detach().clone()
    inputs["v"][:, 11] = float("nan")
    y, *_, memory = SCANS[scan][0](**inputs, is_init=is_init)
    assert y.isnan().any(-1)[0].nonzero().flatten().tolist() == list(range(11, 80))
    assert memory.isfinite().all()
    *_, memory = SCANS[scan][0](**inputs)
    assert memory.isnan().any()


def test_an_overflow_in_a_chunk_before_stays_there() -> None:
    """A memory that has grown to infinity by itself is dropped, too."""
    inputs, is_init = make("delta", (1, 96, 4, 3), torch.float32)
    is_init[:] = False
    is_init[:, 70] = True
    with torch.no_grad():
        inputs["k"][:, :32] *= 30
    y, memory = delta_scan(**inputs, is_init=is_init)
    assert not y[:, 64:70].isfinite().any()
    assert memory.isfinite().all()
    grads = torch.autograd.grad(y[:, 70:].sum() + memory.sum(), [inputs[n] for n in "qkv"])
    for x in (y, *grads):
        assert x[:, 70:].isfinite().all()


@every
@pytest.mark.parametrize("split", [1, 32, 40])
def test_resumes(scan: str, split: int) -> None:
    inputs, is_init = make(scan, (2, 100, 4, 3))
    function = SCANS[scan][0]
    whole = function(**inputs, is_init=is_init)
    first = {n: x if n in STATE else x[:, :split] for n, x in inputs.items()}
    head = function(**first, is_init=is_init[:, :split])
    second = {n: x[:, split:] for n, x in inputs.items() if n not in STATE}
    second["memory"] = head[-1]
    if len(head) == 3:
        second["stabilizer"] = head[1][:, -1]
    tail = function(**second, is_init=is_init[:, split:])
    for x, a, b in zip(whole[:-1], head[:-1], tail[:-1], strict=True):
        assert_close(torch.cat([a, b], 1), x, **EXACT)
    assert_close(tail[-1], whole[-1], **EXACT)


@every
def test_starts_from_zeros(scan: str) -> None:
    inputs, is_init = make(scan, (2, 40, 4, 3))
    function = SCANS[scan][0]
    empty = {n: torch.zeros_like(x) if n in STATE else x for n, x in inputs.items()}
    none = {n: x for n, x in inputs.items() if n not in STATE}
    assert_close(function(**none, is_init=is_init), function(**empty, is_init=is_init))


@every
def test_repeats_to_the_bit(scan: str) -> None:
    inputs, is_init = make(scan, (2, 100, 4, 3), torch.float32)
    for x, y in zip(*(run(SCANS[scan][0], inputs, is_init) for _ in range(2)), strict=True):
        assert torch.equal(x, y)


@every
def test_autocast_does_not_round(scan: str) -> None:
    inputs, is_init = make(scan, (2, 40, 4, 3), torch.float32)
    expected = SCANS[scan][0](**inputs, is_init=is_init)
    with torch.autocast("cpu", torch.bfloat16):
        actual = SCANS[scan][0](**inputs, is_init=is_init)
    for x, y in zip(actual, expected, strict=True):
        assert torch.equal(x, y)


@every
def test_widest_dtype_wins(scan: str) -> None:
    inputs, _ = make(scan, (2, 10, 4, 3), torch.bfloat16)
    assert {x.dtype for x in SCANS[scan][0](**inputs)} == {torch.float32}
    inputs["memory"] = inputs["memory"].double()
    assert {x.dtype for x in SCANS[scan][0](**inputs)} == {torch.float64}


@every
@pytest.mark.parametrize("resets", [False, True])
def test_makes_nothing_on_another_device(scan: str, resets: bool) -> None:
    inputs, is_init = make(scan, (2, 70, 4, 3))
    leaves = {n: x.detach().to("meta").requires_grad_() for n, x in inputs.items()}
    results = SCANS[scan][0](**leaves, is_init=is_init.to("meta") if resets else None)
    (results[0].sum() + results[-1].sum()).backward()
    assert {x.device.type for x in results} == {"meta"}


@every
def test_no_memory_per_step_is_made(scan: str) -> None:
    batch, steps, size = 2, 320, 24
    inputs, is_init = make(scan, (batch, steps, size, size))
    with Sizes() as sizes:
        run(SCANS[scan][0], inputs, is_init)
    # a matrix per chunk, vectors of key and value per step, a chunk times a chunk
    assert sizes.largest <= batch * steps * max(size * size // 32, 2 * size, 32)


@every
def test_final_memory_keeps_no_buffer_alive(scan: str) -> None:
    inputs, is_init = make(scan, (2, 100, 4, 3))
    with torch.no_grad():
        memory = SCANS[scan][0](**inputs, is_init=is_init)[-1]
    assert memory.untyped_storage().nbytes() == memory.nbytes


@every
def test_grad_and_vmap_of_torch_func(scan: str) -> None:
    inputs, is_init = make(scan, (3, 40, 4, 3))
    plain = {n: x.detach() for n, x in inputs.items()}

    def loss(inputs: Inputs, is_init: Tensor) -> Tensor:
        y, *_, memory = SCANS[scan][0](**inputs, is_init=is_init)
        return y.square().sum() + memory.sum()

    leaves = [x for n, x in inputs.items() if scan != "sum" or n != "stabilizer"]
    expected = torch.autograd.grad(loss(inputs, is_init), leaves)
    actual = torch.func.grad(loss)(plain, is_init)
    rows = torch.vmap(torch.func.grad(loss))(
        {n: x.unsqueeze(1) for n, x in plain.items()}, is_init.unsqueeze(1)
    )
    names = [n for n in inputs if scan != "sum" or n != "stabilizer"]
    for name, e in zip(names, expected, strict=True):
        assert_close(actual[name], e, **EXACT)
        assert_close(rows[name].squeeze(1), e, **EXACT)


@compiles
@pytest.mark.parametrize(
    ("scan", "steps", "resets"),
    [
        pytest.param(
            scan, steps, resets, marks=() if scan == "sum" and resets else pytest.mark.slow
        )
        for scan in SCANS
        for steps, resets in ((5, False), (40, True))
    ],
)
def test_compiles(scan: str, steps: int, resets: bool) -> None:
    torch.compiler.reset()
    inputs, is_init = make(scan, (2, steps, 4, 3))
    is_init = is_init if resets else None
    compiled = torch.compile(SCANS[scan][0], backend="aot_eager", fullgraph=True)
    actual, expected = (run(f, inputs, is_init) for f in (compiled, SCANS[scan][0]))
    assert_close(actual, expected, **EXACT)


def refuse(
    function: Callable[..., Results], error: type[Exception], message: str, good: Inputs, **bad: Any
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        function(**good | bad)


@every
def test_errors(scan: str) -> None:
    good, is_init = make(scan, (2, 5, 4, 3))
    function, x, flags = SCANS[scan][0], torch.zeros, {"is_init": is_init}
    function(**good | flags)
    text = "q [2, 5, 4], k [2, 5, 3] and v [2, 5, 3] must be [B, T, K], [B, T, K] and [B, T, V]"
    refuse(function, ValueError, text, good, k=x(2, 5, 3))
    refuse(function, ValueError, "v [2, 4, 3] must be", good, v=x(2, 4, 3))
    refuse(function, ValueError, "q [5, 4], k", good, q=x(5, 4))
    refuse(function, ValueError, "memory is [2, 4, 3], expected [2, 3, 4]", good, memory=x(2, 4, 3))
    text = "is_init is torch.float32, expected torch.bool"
    refuse(function, TypeError, text, good, is_init=x(2, 5))
    text = "is_init has shape [2, 4], expected [B, T] = [2, 5]"
    refuse(function, ValueError, text, good, is_init=is_init[:, :4])
    refuse(function, RuntimeError, "is_init is on meta", good, is_init=is_init.to("meta"))
    for name in {"log_decay", "log_input", "beta"} & set(good):
        text = f"{name} is [2, 5, 1], expected [2, 5]"
        refuse(function, ValueError, text, good, **{name: x(2, 5, 1)})
    if "stabilizer" in good:
        text = "stabilizer is [2, 1], expected [2]"
        refuse(function, ValueError, text, good, stabilizer=x(2, 1))


@pytest.mark.parametrize("gate", ["log_decay", "log_input"])
def test_one_gate_alone_is_refused(gate: str) -> None:
    good, _ = make("sum", (2, 5, 4, 3))
    text = "pass log_decay and log_input together, or neither"
    refuse(gated_scan, ValueError, text, good, **{gate: torch.zeros(2, 5)})
