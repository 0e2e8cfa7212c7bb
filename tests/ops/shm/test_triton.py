"""What only the CUDA kernels have: tiles, spans, segments of time, and one fused step.

They run on a GPU, or without one in triton's interpreter, on small odd sizes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.benchmarks import gpu_memory
from tests.ops import _helpers
from tests.ops._helpers import check_float32, check_reset, double, error, run
from torchrl_shm.ops import shm_scan, shm_step
from torchrl_shm.ops.shm import tiles, triton_scan
from torchrl_shm.ops.shm.backend import STORE, Options

slow = pytest.mark.slow


def make(batch: int, steps: int, size: int) -> tuple[list[Tensor], Tensor]:
    return _helpers.make(batch, steps, size, backend="triton")


def one_step(*batch: int, size: int) -> tuple[list[Tensor], Tensor]:
    """The vectors of a step and the memory, without gradients."""
    inputs, _ = make(torch.Size(batch).numel(), 1, size)
    *vectors, memory = (x.detach() for x in inputs)
    return [x.view(*batch, size) for x in vectors], memory.view(*batch, size, size)


@pytest.mark.parametrize(
    ("shape", "resets", "clamp"),
    [
        pytest.param((2, 9, 24), True, None, marks=slow),
        ((3, 11, 5), True, 1.5),
        # every width of the table, full or not
        ((1, 5, 16), False, None),
        ((1, 5, 64), True, None),
        ((1, 2, 65), True, None),
        pytest.param((2, 17, 24), True, None, marks=slow),
        pytest.param((1, 9, 33), False, 1.5, marks=slow),
        pytest.param((1, 5, 125), True, None, marks=slow),
        pytest.param((1, 2, 253), True, None, marks=slow),
    ],
)
def test_against_reference(shape: tuple[int, int, int], resets: bool, clamp: float | None) -> None:
    inputs, is_init = make(*shape)
    check_float32(inputs, is_init if resets else None, clamp, "triton")


@pytest.mark.parametrize(
    ("lines", "chunk"), [(4, 8), pytest.param(8, 4, marks=slow), pytest.param(16, 2, marks=slow)]
)
def test_any_tile(lines: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.LINES, 16, lines)
    monkeypatch.setitem(tiles.CHUNK, 16, chunk)
    inputs, is_init = make(2, 13, 11)
    check_float32(inputs, is_init, None, "triton")


@pytest.mark.parametrize(
    ("shape", "clamp", "segments"),
    [
        # the backward kernel is launched for steps 32 to 36, 16 to 31 and 0 to 15
        ((1, 37, 18), 1.5, 1),
        # segments of steps 0 to 39 and 40 to 69; the second has no step in the last span
        pytest.param((1, 70, 5), None, 2, marks=slow),
    ],
)
def test_several_spans(
    shape: tuple[int, int, int], clamp: float | None, segments: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    size = shape[2]
    partial_sums = 2 * tiles.num_tiles(size, 16) * segments * size
    monkeypatch.setattr(tiles, "_PARTIAL_BYTES", 4 * partial_sums * 16)
    assert tiles.backward_span(segments, size) == 16
    inputs, is_init = make(*shape)
    check_float32(inputs, is_init, clamp, "triton", segments)


def test_a_span_has_a_stored_state_at_least() -> None:
    assert tiles.backward_span(4096, 256) == STORE


@slow
def test_takes_a_thirtieth_of_the_memory_of_the_loop() -> None:
    """Counted from the sizes of tensors; nothing is computed."""
    theirs, ours = gpu_memory.compare((512, 1024, 64))
    assert 0 < 30 * ours <= theirs


@pytest.mark.parametrize(("segments", "resets"), [pytest.param(2, False, marks=slow), (5, True)])
def test_segments_of_time(segments: int, resets: bool) -> None:
    inputs, is_init = make(1, 37, 5)
    check_float32(inputs, is_init if resets else None, None, "triton", segments)


@slow
def test_two_calls_with_segments_are_bit_equal() -> None:
    inputs, is_init = make(1, 9, 18)
    first, second = (run(inputs, is_init, None, "triton", 2) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@slow
@pytest.mark.parametrize(("segments", "chunk"), [(4, 8), (1, 4)])
def test_nothing_passes_a_reset(segments: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # with chunks of 4, that of steps 8 to 11 holds the reset and that of 12 to 15 replays it
    monkeypatch.setitem(tiles.CHUNK, 16, chunk)
    check_reset("triton", torch.float32, float("nan"), 10, segments=segments)


@slow
def test_gradients_of_outputs_need_not_be_contiguous() -> None:
    inputs, is_init = make(2, 9, 5)
    y, memory = shm_scan(*inputs, is_init=is_init, backend="triton", segments=2)
    weights = torch.randn_like(y), torch.randn_like(memory)
    strided = [x.mT.contiguous().mT for x in weights]
    grads = (
        torch.autograd.grad((y, memory), inputs, w, retain_graph=True) for w in (weights, strided)
    )
    for a, e in zip(*grads, strict=True):
        assert torch.equal(a, e)


def test_step_is_an_operator_of_torch() -> None:
    vectors, memory = one_step(2, size=4)
    torch.library.opcheck(torch.ops.torchrl_shm.step.default, (*vectors, memory, 1.5, False))
    torch.library.opcheck(torch.ops.torchrl_shm.step_.default, (*vectors, memory, None, False))


@pytest.mark.parametrize(
    ("size", "clamp", "inplace"), [(5, None, False), (24, 1.0, True), (24, None, True)]
)
def test_step(size: int, clamp: float | None, inplace: bool) -> None:
    vectors, memory = one_step(2, 3, size=size)
    expected = shm_step(*vectors, memory=memory, clamp=clamp, backend="reference")
    given = memory.clone()
    y, new = shm_step(*vectors, memory=given, clamp=clamp, backend="triton", inplace=inplace)
    assert_close((y, new), expected)
    assert (new is given) == inplace
    assert torch.equal(given, memory) != inplace


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_step_in_place_of_a_view(backend: Any) -> None:
    vectors, memory = one_step(3, size=4)
    memory = memory.mT
    expected = shm_step(*vectors, memory=memory, backend="reference")
    y, new = shm_step(*vectors, memory=memory, backend=backend, inplace=True)
    assert new is memory
    assert_close((y, new), expected)


def test_step_without_gradients_only() -> None:
    vectors, memory = one_step(3, size=4)
    vectors[1].requires_grad_()
    with pytest.raises(RuntimeError, match=r"has no gradients for one step; use 'auto'"):
        shm_step(*vectors, memory=memory, backend="triton")
    with pytest.raises(RuntimeError, match=r"inplace=True while gradients are recorded"):
        shm_step(*vectors, memory=memory, inplace=True)
    with pytest.raises(ValueError, match=r"inplace=True needs a memory"):
        shm_step(*vectors, inplace=True)
    # automatic: plain operations, which can be differentiated
    assert shm_step(*vectors, memory=memory)[0].requires_grad


class TestSegmentRule:
    @pytest.mark.parametrize(
        ("batch", "steps", "size", "length"),
        [
            # batches that fill the device, and a short sequence, are not divided
            (64, 1024, 128, 1024), (512, 1024, 64, 1024), (132, 1024, 64, 1024), (1, 127, 16, 127),
            # small batches are, into no segments shorter than 64 steps
            (1, 4096, 64, 64), (8, 8192, 64, 512),
        ],
    )  # fmt: skip
    def test_rule(self, batch: int, steps: int, size: int, length: int) -> None:
        assert tiles.segment_length(batch, steps, size, None) == length

    @pytest.mark.parametrize("steps", [1, 7, 100, 1024])
    @pytest.mark.parametrize("segments", [None, 1, 2, 5, 2000])
    def test_segments_begin_at_a_stored_state_and_none_is_empty(
        self, steps: int, segments: int | None
    ) -> None:
        length = tiles.segment_length(3, steps, 64, segments)
        count = -(-steps // length)
        assert count == 1 or length % STORE == 0
        assert (count - 1) * length < steps
        assert segments is None or count <= segments

    def test_no_more_segments_than_a_grid_holds(self) -> None:
        assert 2**20 / tiles.segment_length(1, 2**20, 16, 2**17) <= 65_535

    def test_clamp_excludes_it(self) -> None:
        theta = torch.zeros(1, 4096, 64)
        assert triton_scan._Run(theta, None, Options()).count == 64
        assert triton_scan._Run(theta, None, Options(clamp=1.0)).count == 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 75, 24), (4, 1024, 64), (2, 1024, 128)], ids=str)
@pytest.mark.parametrize("segments", [1, 8, None])
def test_real_sizes(shape: tuple[int, int, int], segments: int | None) -> None:
    inputs, is_init = make(*shape)
    check_float32(inputs, is_init, None, "triton", segments)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 75, 24), (4, 1024, 64)], ids=str)
def test_fast_gate(shape: tuple[int, int, int]) -> None:
    inputs, is_init = make(*shape)
    expected = run(double(inputs), is_init)
    y, memory = shm_scan(*inputs, is_init=is_init, backend="triton", fast_gate=True)
    assert 1e-7 < error(y, expected[0]) <= 1e-2
    assert error(memory, expected[1]) <= 1e-2


@pytest.mark.gpu
def test_step_in_a_cuda_graph() -> None:
    vectors, memory = one_step(8, size=64)
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
