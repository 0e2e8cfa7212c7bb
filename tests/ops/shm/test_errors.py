"""What is refused, and that the message names the value that was wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchrl_shm.ops import shm_scan, shm_step

VECTORS = ("theta", "vc", "v", "k", "q")


def scan_arguments() -> dict[str, Any]:
    return {name: torch.randn(2, 5, 3) for name in VECTORS} | {
        "memory": torch.zeros(2, 3, 3),
        "is_init": torch.zeros(2, 5, dtype=torch.bool),
    }


def step_arguments() -> dict[str, Any]:
    return {name: torch.randn(2, 3) for name in VECTORS} | {"memory": torch.zeros(2, 3, 3)}


both = pytest.mark.parametrize(
    ("operation", "arguments"),
    [(shm_scan, scan_arguments), (shm_step, step_arguments)],
    ids=["scan", "step"],
)
Operation = Callable[..., tuple[Tensor, Tensor]]
Arguments = Callable[[], dict[str, Any]]


@both
def test_right_arguments_pass(operation: Operation, arguments: Arguments) -> None:
    operation(**arguments())


@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (1, 2, 5, 3)], ids=str)
def test_scan_needs_batch_time_and_size(shape: tuple[int, ...]) -> None:
    vectors = dict.fromkeys(VECTORS, torch.zeros(shape))
    message = f"theta has shape {list(shape)}, expected [B, T, H]"
    with pytest.raises(ValueError, match=re.escape(message)):
        shm_scan(**vectors)


def test_step_needs_a_size() -> None:
    with pytest.raises(ValueError, match=re.escape("theta has shape [], expected [..., H]")):
        shm_step(**dict.fromkeys(VECTORS, torch.tensor(1.0)))


@both
@pytest.mark.parametrize("name", VECTORS[1:])
def test_shape_of_a_vector(operation: Operation, arguments: Arguments, name: str) -> None:
    good = arguments()
    bad = good | {name: good[name][..., :1]}
    message = (
        f"{name} has shape {list(bad[name].shape)}, "
        f"expected that of theta, {list(good['theta'].shape)}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        operation(**bad)


@both
@pytest.mark.parametrize("name", VECTORS[1:])
def test_dtype_of_a_vector(operation: Operation, arguments: Arguments, name: str) -> None:
    bad = arguments()
    bad[name] = bad[name].double()
    message = f"{name} is torch.float64 but theta is torch.float32"
    with pytest.raises(TypeError, match=re.escape(message)):
        operation(**bad)


@both
@pytest.mark.parametrize("name", VECTORS[1:])
def test_device_of_a_vector(operation: Operation, arguments: Arguments, name: str) -> None:
    bad = arguments()
    bad[name] = bad[name].to("meta")
    with pytest.raises(RuntimeError, match=f"{name} is on meta but theta is on cpu"):
        operation(**bad)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.complex64], ids=str)
def test_dtype_of_all_vectors(
    operation: Operation, arguments: Arguments, dtype: torch.dtype
) -> None:
    bad = arguments()
    bad |= {name: bad[name].to(dtype) for name in VECTORS}
    with pytest.raises(TypeError, match=f"inputs are {dtype}, expected one of .*float32"):
        operation(**bad)


@both
@pytest.mark.parametrize("clamp", [0.0, -1.0, float("nan")])
def test_clamp_is_positive(operation: Operation, arguments: Arguments, clamp: float) -> None:
    with pytest.raises(ValueError, match=f"clamp={clamp} must be positive"):
        operation(**arguments(), clamp=clamp)


@both
@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (2, 3, 4), (1, 3, 3), (2, 1, 3, 3)], ids=str)
def test_shape_of_the_memory(
    operation: Operation, arguments: Arguments, shape: tuple[int, ...]
) -> None:
    bad = arguments()
    bad["memory"] = torch.zeros(shape)
    message = f"memory has shape {list(shape)}, expected [2, 3, 3] to fit theta"
    with pytest.raises(ValueError, match=re.escape(message)):
        operation(**bad)


@both
@pytest.mark.parametrize(
    ("inputs", "memory", "expected"),
    [
        (torch.float32, torch.float64, torch.float32),
        (torch.float64, torch.float32, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.float32),
    ],
    ids=str,
)
def test_dtype_of_the_memory(
    operation: Operation,
    arguments: Arguments,
    inputs: torch.dtype,
    memory: torch.dtype,
    expected: torch.dtype,
) -> None:
    bad = arguments()
    bad |= {name: bad[name].to(inputs) for name in VECTORS} | {"memory": bad["memory"].to(memory)}
    message = f"memory is {memory}, expected {expected} for {inputs} inputs"
    with pytest.raises(TypeError, match=re.escape(message)):
        operation(**bad)


@both
def test_device_of_the_memory(operation: Operation, arguments: Arguments) -> None:
    bad = arguments()
    bad["memory"] = bad["memory"].to("meta")
    with pytest.raises(RuntimeError, match="memory is on meta but theta is on cpu"):
        operation(**bad)


def test_dtype_of_is_init() -> None:
    bad = scan_arguments()
    bad["is_init"] = bad["is_init"].long()
    with pytest.raises(TypeError, match=r"is_init is torch\.int64, expected torch\.bool"):
        shm_scan(**bad)


@pytest.mark.parametrize("shape", [(2,), (5, 2), (2, 5, 1)], ids=str)
def test_shape_of_is_init(shape: tuple[int, ...]) -> None:
    bad = scan_arguments()
    bad["is_init"] = torch.zeros(shape, dtype=torch.bool)
    message = f"is_init has shape {list(shape)}, expected [B, T] = [2, 5]"
    with pytest.raises(ValueError, match=re.escape(message)):
        shm_scan(**bad)


def test_device_of_is_init() -> None:
    bad = scan_arguments()
    bad["is_init"] = bad["is_init"].to("meta")
    with pytest.raises(RuntimeError, match="is_init is on meta but the inputs on cpu"):
        shm_scan(**bad)


def test_unknown_backend() -> None:
    bad: Any = "fastest"
    with pytest.raises(ValueError, match=r"backend='fastest' is unknown; choose one of .*chunked"):
        shm_scan(**scan_arguments(), backend=bad)


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_backend_that_cannot_keep_float64(backend: Any) -> None:
    doubles = {name: torch.randn(2, 5, 3).double() for name in VECTORS}
    message = f"backend='{backend}' computes in float32, the inputs are float64; use 'chunked'"
    with pytest.raises(RuntimeError, match=message):
        shm_scan(**doubles, backend=backend)
    assert shm_scan(**doubles)[0].dtype == torch.float64


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_backend_of_another_device(backend: Any) -> None:
    meta = {name: torch.randn(2, 5, 3, device="meta") for name in VECTORS}
    message = f"backend='{backend}' runs on .* but the tensors are on meta; use 'auto'"
    with pytest.raises(RuntimeError, match=message):
        shm_scan(**meta, backend=backend)


def test_memory_too_large_for_the_kernels() -> None:
    with pytest.raises(RuntimeError, match=r"up to 256 x 256, H is 257; use 'chunked'"):
        shm_scan(**{name: torch.zeros(1, 1, 257) for name in VECTORS}, backend="triton")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segments": 0}, "segments=0 must be at least 1"),
        ({"segments": 2, "clamp": 1.0}, "segments=2 with clamp=1.0: .*leave one of them out"),
    ],
)
def test_segments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shm_scan(**scan_arguments(), **arguments)
