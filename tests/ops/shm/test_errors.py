"""What is refused, and that the message names the value that was wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.ops._helpers import device_of
from torchrl_shm.ops import shm_scan, shm_step

VECTORS = ("theta", "vc", "v", "k", "q")
both = pytest.mark.parametrize("operation", [shm_scan, shm_step])


def good(operation: Any) -> dict[str, Any]:
    batch = (2, 5) if operation is shm_scan else (2,)
    vectors = {name: torch.randn(*batch, 3) for name in VECTORS}
    return vectors | {"memory": torch.zeros(2, 3, 3)}


def refuse(operation: Any, error: type[Exception], message: str, **bad: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        operation(**good(operation) | bad)


@both
def test_right_arguments_pass(operation: Any) -> None:
    operation(**good(operation))


@pytest.mark.parametrize(
    ("operation", "shape", "expected"),
    [
        (shm_scan, (5, 3), "[B, T, H]"),
        (shm_scan, (1, 2, 5, 3), "[B, T, H]"),
        (shm_step, (), "[..., H]"),
    ],
)
def test_number_of_dimensions(operation: Any, shape: tuple[int, ...], expected: str) -> None:
    message = f"theta has shape {list(shape)}, expected {expected}"
    refuse(operation, ValueError, message, **dict.fromkeys(VECTORS, torch.zeros(shape)))


@both
@pytest.mark.parametrize("name", VECTORS[1:])
def test_vectors_that_differ_from_theta(operation: Any, name: str) -> None:
    x = good(operation)[name]
    message = f"{name} has shape {[*x.shape[:-1], 1]}, expected that of theta, {list(x.shape)}"
    refuse(operation, ValueError, message, **{name: x[..., :1]})
    message = f"{name} is torch.float64 but theta is torch.float32"
    refuse(operation, TypeError, message, **{name: x.double()})
    message = f"{name} is on meta but theta is on cpu"
    refuse(operation, RuntimeError, message, **{name: x.to("meta")})


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.complex64], ids=str)
def test_dtype_of_all_vectors(operation: Any, dtype: torch.dtype) -> None:
    vectors = {name: good(operation)[name].to(dtype) for name in VECTORS}
    refuse(operation, TypeError, f"inputs are {dtype}, expected one of (torch.float32", **vectors)


@both
@pytest.mark.parametrize("clamp", [0.0, -1.0, float("nan")])
def test_clamp_is_positive(operation: Any, clamp: float) -> None:
    refuse(operation, ValueError, f"clamp={clamp} must be positive", clamp=clamp)


@both
def test_shape_and_device_of_the_memory(operation: Any) -> None:
    for shape in ((3, 3), (2, 3, 4), (1, 3, 3), (2, 1, 3, 3)):
        message = f"memory has shape {list(shape)}, expected [2, 3, 3] to fit theta"
        refuse(operation, ValueError, message, memory=torch.zeros(shape))
    message = "memory is on meta but theta is on cpu"
    refuse(operation, RuntimeError, message, memory=torch.zeros(2, 3, 3, device="meta"))


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
    operation: Any, inputs: torch.dtype, memory: torch.dtype, expected: torch.dtype
) -> None:
    bad = {name: good(operation)[name].to(inputs) for name in VECTORS}
    bad["memory"] = torch.zeros(2, 3, 3, dtype=memory)
    message = f"memory is {memory}, expected {expected} for {inputs} inputs"
    refuse(operation, TypeError, message, **bad)


def test_is_init() -> None:
    flags = torch.zeros(2, 5, dtype=torch.bool)
    shm_scan(**good(shm_scan), is_init=flags)
    message = "is_init is torch.int64, expected torch.bool"
    refuse(shm_scan, TypeError, message, is_init=flags.long())
    message = "is_init is on meta but the inputs on cpu"
    refuse(shm_scan, RuntimeError, message, is_init=flags.to("meta"))
    for bad in (flags[:, 0], flags.T, flags.unsqueeze(-1)):
        message = f"is_init has shape {list(bad.shape)}, expected [B, T] = [2, 5]"
        refuse(shm_scan, ValueError, message, is_init=bad)


@both
def test_unknown_backend(operation: Any) -> None:
    message = "backend='fastest' is unknown; choose one of ('auto', 'reference', "
    refuse(operation, ValueError, message, backend="fastest")


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_backend_that_cannot_run(backend: Any) -> None:
    options: Any = {"dtype": torch.float64, "device": device_of(backend)}
    doubles = {name: torch.randn(2, 5, 3, **options) for name in VECTORS}
    message = f"backend='{backend}' computes in float32, the inputs are float64; use 'chunked'"
    with pytest.raises(RuntimeError, match=message):
        shm_scan(**doubles, backend=backend)
    assert shm_scan(**doubles)[0].dtype == torch.float64
    meta = {name: torch.randn(2, 5, 3, device="meta") for name in VECTORS}
    message = f"backend='{backend}' runs on .* but the tensors are on meta; use 'auto'"
    with pytest.raises(RuntimeError, match=message):
        shm_scan(**meta, backend=backend)


def test_memory_too_large_for_the_kernels() -> None:
    with pytest.raises(RuntimeError, match=r"up to 256 x 256, H is 257; use 'chunked'"):
        shm_scan(*5 * [torch.zeros(1, 1, 257, device=device_of("triton"))], backend="triton")


def test_segments() -> None:
    refuse(shm_scan, ValueError, "segments=0 must be at least 1", segments=0)
    message = "segments=2 with clamp=1.0: a clamped memory cannot be computed in parallel over time"
    refuse(shm_scan, ValueError, f"{message}; leave one of them out", segments=2, clamp=1.0)
