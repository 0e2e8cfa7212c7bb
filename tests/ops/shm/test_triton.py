"""The CUDA kernels: on a GPU as they are, elsewhere in triton's interpreter, on small odd sizes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.benchmarks import gpu_memory
from tests.ops._helpers import NAMES, distance_to_clamp, double, error, make, run
from torchrl_shm.ops import shm_scan, shm_step
from torchrl_shm.ops.shm import tiles, triton_scan
from torchrl_shm.ops.shm.tiles import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(inputs: list[Tensor], is_init: Tensor) -> tuple[list[Tensor], Tensor]:
    moved = [x.detach().to(DEVICE).requires_grad_(x.requires_grad) for x in inputs]
    return moved, is_init.to(DEVICE)


def check(
    inputs: list[Tensor],
    is_init: Tensor | None = None,
    clamp: float | None = None,
    segments: int | None = None,
) -> None:
    """All outputs and gradients against the reference in float64."""
    if clamp is not None:
        # an element this close may be clamped in one precision and not in the other
        assert distance_to_clamp(inputs, is_init, clamp).abs().min() > 1e-6
    expected = run(double(inputs), is_init, clamp)
    actual = run(inputs, is_init, clamp, "triton", segments)
    for n, (name, a, e) in enumerate(zip(("y", "memory", *NAMES), actual, expected, strict=True)):
        assert a.dtype == torch.float32
        if e.any():
            assert error(a, e) <= (5e-6 if n < 2 else 5e-5), name
        else:
            assert not a.any(), name


@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("shape", [(3, 11, 5), (2, 17, 24), (1, 9, 33), (2, 1, 1)], ids=str)
def test_against_reference(shape: tuple[int, int, int], resets: bool, clamp: float | None) -> None:
    inputs, is_init = on_device(*make(*shape))
    check(inputs, is_init if resets else None, clamp)


@pytest.mark.parametrize("size", sorted({*tiles.FORWARD, *tiles.BACKWARD}))
def test_every_tile_of_the_table(size: int) -> None:
    inputs, is_init = on_device(*make(1, 5, size))
    check(inputs, is_init)
    inputs, is_init = on_device(*make(1, 3, size - 3))
    check(inputs, is_init)


@pytest.mark.parametrize("lines", [4, 8, 16])
@pytest.mark.parametrize("chunk", [2, 4, 8])
def test_any_tile(lines: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = Tile(lines, chunk=chunk)
    monkeypatch.setitem(tiles.FORWARD, 16, tile)
    monkeypatch.setitem(tiles.BACKWARD, 16, tile)
    inputs, is_init = on_device(*make(2, 13, 11))
    check(inputs, is_init)


@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize("resets", [False, True])
def test_several_spans(resets: bool, clamp: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward kernel is launched for steps 32 to 36, 16 to 31 and 0 to 15."""
    monkeypatch.setattr(tiles, "_PARTIAL_BYTES", 8 * 2 * 2 * 18 * 16)
    assert tiles.backward_span(2, 18) == 16
    inputs, is_init = on_device(*make(2, 37, 18))
    check(inputs, is_init if resets else None, clamp)


@pytest.mark.parametrize("resets", [False, True])
def test_several_spans_of_segments(resets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps 0 to 39 and 40 to 69; the second has no step in the span that comes first."""
    monkeypatch.setattr(tiles, "_PARTIAL_BYTES", 8 * 2 * 2 * 18 * 16)
    inputs, is_init = on_device(*make(1, 70, 18))
    assert triton_scan._Run(inputs[0], None, None, False, 2).length == 40
    check(inputs, is_init if resets else None, segments=2)


def test_a_span_has_a_stored_state_at_least() -> None:
    assert tiles.backward_span(4096, 256) == tiles.STORE


@pytest.mark.parametrize("shape", gpu_memory.SHAPES, ids=str)
def test_takes_a_thirtieth_of_the_memory_of_the_loop(shape: tuple[int, int, int]) -> None:
    """Counted from the sizes of tensors; nothing is computed."""
    theirs, ours = gpu_memory.compare(shape)
    assert 0 < 30 * ours <= theirs


@pytest.mark.parametrize("segments", [2, 3, 7])
@pytest.mark.parametrize("resets", [False, True])
def test_segments_of_time(segments: int, resets: bool) -> None:
    inputs, is_init = on_device(*make(2, 37, 5))
    check(inputs, is_init if resets else None, segments=segments)
    assert triton_scan._Run(inputs[0], None, None, False, segments).count > 1


@pytest.mark.parametrize("chunk", [4, 8])
@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_passes_a_reset(
    name: str, segments: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN before it reaches neither the values after it nor their gradients, nor other rows."""
    monkeypatch.setitem(tiles.BACKWARD, 16, Tile(16, chunk=chunk))
    # with chunks of 4, that of steps 8 to 11 holds it and that of 12 to 15 replays it
    reset = 10
    inputs, is_init = on_device(*make(2, 27, 3))
    is_init[:] = False
    is_init[0, reset] = True

    def after(inputs: list[Tensor]) -> list[Tensor]:
        y, memory = shm_scan(*inputs, is_init=is_init, backend="triton", segments=segments)
        loss = y[0, reset:].square().sum() + memory.sum() + y[1].square().sum()
        grads = torch.autograd.grad([loss], inputs)
        return [memory, *([x[0, reset:] for x in (y, *grads[:5])]), *(x[1] for x in (y, *grads))]

    expected = after(inputs)
    spoilt = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        row = spoilt[NAMES.index(name)][0]
        row[: len(row) if name == "memory" else reset] = float("nan")
    for a, e in zip(after(spoilt), expected, strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("name", NAMES[:5])
def test_no_gradient_passes_a_reset(name: str, segments: int) -> None:
    """A NaN in the step of the reset does not reach the gradients before it."""
    inputs, is_init = on_device(*make(1, 27, 3))
    is_init[:] = False
    is_init[0, 13] = True
    expected = run(inputs, is_init, None, "triton", segments)[2:]
    spoilt = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        spoilt[NAMES.index(name)][0, 13] = float("nan")
    actual = run(spoilt, is_init, None, "triton", segments)[2:]
    for a, e in zip(actual[:5], expected[:5], strict=True):
        assert_close(a[:, :13], e[:, :13])
    assert_close(actual[5], expected[5])


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 5, 3), (0, 0, 3)], ids=str)
def test_nothing_to_do(shape: tuple[int, int, int]) -> None:
    inputs, is_init = on_device(*make(*shape))
    actual = run(inputs, is_init, None, "triton")
    for a, e in zip(actual, run(double(inputs), is_init), strict=True):
        assert_close(a, e.float())


def test_inputs_need_not_be_contiguous() -> None:
    inputs, is_init = on_device(*make(4, 4, 4))
    views = [
        inputs[0][:1, :1].detach().expand(4, 4, 4),
        *(x.detach().transpose(0, 1) for x in inputs[1:5]),
        inputs[5].detach().mT,
    ]
    views = [x.as_strided(x.shape, x.stride()).requires_grad_() for x in views]
    copies = [x.detach().contiguous().requires_grad_() for x in views]
    assert not any(x.is_contiguous() for x in views)
    actual, expected = (run(x, is_init.T, 1.5, "triton") for x in (views, copies))
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_gradients_of_outputs_need_not_be_contiguous() -> None:
    inputs, is_init = on_device(*make(2, 9, 5))
    weights = torch.randn(2, 9, 5, device=DEVICE), torch.randn(2, 5, 5, device=DEVICE)

    def gradients(transposed: bool) -> tuple[Tensor, ...]:
        y, memory = shm_scan(*inputs, is_init=is_init, backend="triton")
        if transposed:
            loss = (y.mT * weights[0].mT).sum() + (memory.mT * weights[1].mT).sum()
        else:
            loss = (y * weights[0]).sum() + (memory * weights[1]).sum()
        return torch.autograd.grad([loss], inputs)

    for a, e in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(a, e)


def test_bfloat16_inputs_float32_state() -> None:
    inputs, is_init = on_device(*make(2, 20, 12))
    rounded = [x.detach().bfloat16().requires_grad_() for x in inputs[:5]] + inputs[5:]
    expected = run(double(rounded), is_init)
    actual = run(rounded, is_init, None, "triton")
    assert (actual[0].dtype, actual[1].dtype) == (torch.bfloat16, torch.float32)
    assert error(actual[1], expected[1]) <= 5e-6
    for name, a, e in zip(("y", "memory", *NAMES), actual, expected, strict=True):
        assert error(a, e) <= 1e-2, name


def test_two_calls_are_bit_equal() -> None:
    inputs, is_init = on_device(*make(2, 13, 20))
    first, second = (run(inputs, is_init, None, "triton", 2) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_is_an_operator_of_torch() -> None:
    inputs, is_init = on_device(*make(2, 5, 4))
    torch.library.opcheck(
        torch.ops.torchrl_shm.scan.default,
        (*inputs, is_init, None, False, None, "triton", True),
    )
    detached = [x.detach() for x in inputs]
    step = [*(x[:, 0].contiguous() for x in detached[:5]), detached[5]]
    torch.library.opcheck(torch.ops.torchrl_shm.step.default, (*step, 1.5, False))
    torch.library.opcheck(torch.ops.torchrl_shm.step_.default, (*step, None, False))


@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize("size", [5, 24])
@pytest.mark.parametrize("inplace", [False, True])
def test_step(size: int, clamp: float | None, inplace: bool) -> None:
    inputs, _ = on_device(*make(6, 1, size))
    vectors = [x.detach()[:, 0].unflatten(0, (2, 3)) for x in inputs[:5]]
    memory = inputs[5].detach().unflatten(0, (2, 3))
    expected = shm_step(*vectors, memory=memory, clamp=clamp, backend="reference")
    given = memory.clone()
    y, new = shm_step(*vectors, memory=given, clamp=clamp, backend="triton", inplace=inplace)
    assert_close((y, new), expected)
    assert (new is given) == inplace
    assert torch.equal(given, memory) != inplace


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_step_in_place_of_a_view(backend: Any) -> None:
    inputs, _ = on_device(*make(3, 1, 4))
    vectors = [x.detach()[:, 0] for x in inputs[:5]]
    memory = inputs[5].detach().mT
    expected = shm_step(*vectors, memory=memory, backend="reference")
    y, new = shm_step(*vectors, memory=memory, backend=backend, inplace=True)
    assert new is memory
    assert_close((y, new), expected)


def test_step_without_gradients_only() -> None:
    inputs, _ = on_device(*make(3, 1, 4))
    vectors = [x[:, 0] for x in inputs[:5]]
    with pytest.raises(RuntimeError, match=r"has no gradients for one step; use 'auto'"):
        shm_step(*vectors, memory=inputs[5], backend="triton")
    with pytest.raises(RuntimeError, match=r"inplace=True while gradients are recorded"):
        shm_step(*vectors, memory=inputs[5], inplace=True)
    with pytest.raises(ValueError, match=r"inplace=True needs a memory"):
        shm_step(*vectors, inplace=True)
    # automatic: plain operations, which can be differentiated
    assert shm_step(*vectors, memory=inputs[5])[0].requires_grad


class TestSegmentRule:
    def test_a_batch_that_fills_the_device_is_not_cut(self) -> None:
        for batch, size in ((64, 128), (512, 64), (132, 64)):
            assert tiles.segment_length(batch, 1024, size, None) >= 1024

    def test_a_short_sequence_is_not_cut(self) -> None:
        assert tiles.segment_length(1, 127, 16, None) >= 127

    def test_a_small_batch_is_cut_until_it_fills_the_device(self) -> None:
        # 4 row tiles each; no segment is shorter than 64 steps
        assert tiles.segment_length(1, 4096, 64, None) == 64
        programs = 4 * 8 * (8192 // tiles.segment_length(8, 8192, 64, None))
        assert 264 <= programs <= 528

    @pytest.mark.parametrize(
        ("steps", "size", "segments"),
        list(itertools.product((1, 7, 100, 1024), (16, 64), (None, 1, 2, 5, 2000))),
    )
    def test_segments_begin_at_a_stored_state_and_none_is_empty(
        self, steps: int, size: int, segments: int | None
    ) -> None:
        length = tiles.segment_length(3, steps, size, segments)
        count = -(-steps // length)
        assert count == 1 or length % tiles.STORE == 0
        assert (count - 1) * length < steps
        assert segments is None or count <= segments

    def test_no_more_segments_than_a_grid_holds(self) -> None:
        assert 2**20 / tiles.segment_length(1, 2**20, 16, 2**17) <= 65_535

    def test_clamp_excludes_it(self) -> None:
        theta = torch.zeros(1, 4096, 64)
        assert triton_scan._Run(theta, None, None, False, None).count == 64
        assert triton_scan._Run(theta, None, 1.0, False, None).count == 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 75, 24), (4, 1024, 64), (2, 1024, 128)], ids=str)
@pytest.mark.parametrize("segments", [1, 8, None])
def test_real_sizes(shape: tuple[int, int, int], segments: int | None) -> None:
    inputs, is_init = on_device(*make(*shape))
    check(inputs, is_init, segments=segments)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 75, 24), (4, 1024, 64)], ids=str)
def test_fast_gate(shape: tuple[int, int, int]) -> None:
    inputs, is_init = on_device(*make(*shape))
    expected = run(double(inputs), is_init)
    y, memory = shm_scan(*inputs, is_init=is_init, backend="triton", fast_gate=True)
    assert 1e-7 < error(y, expected[0]) <= 1e-2
    assert error(memory, expected[1]) <= 1e-2


@pytest.mark.gpu
def test_step_in_a_cuda_graph() -> None:
    inputs, _ = on_device(*make(8, 1, 64))
    vectors = [x.detach()[:, 0].contiguous() for x in inputs[:5]]
    memory = inputs[5].detach().clone()
    shm_step(*vectors, memory=memory.clone(), inplace=True)  # compiles
    expected = memory.clone()
    for _ in range(3):
        _, expected = shm_step(*vectors, memory=expected, backend="reference")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        shm_step(*vectors, memory=memory, inplace=True)
    for _ in range(3):
        graph.replay()
    assert_close(memory, expected)


@pytest.mark.gpu
def test_theta_table_gets_the_same_gradient_twice() -> None:
    table = torch.randn(128, 24, device="cuda", requires_grad=True)
    index = torch.randint(128, (64, 1024), device="cuda")
    weights = torch.randn(64, 1024, 24, device="cuda")
    loss = (torch.nn.functional.embedding(index, table) * weights).sum()
    first, second = (torch.autograd.grad([loss], table, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
