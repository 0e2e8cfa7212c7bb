"""The kernels compile for real GPUs, without one, and keep their state in registers.

The interpreter accepts code that the compiler refuses, so both are needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from torchrl_shm.ops.shm import tiles

MAX_SPILL_BYTES = 256


@pytest.mark.parametrize(
    ("capability", "group", "widths"),
    [
        (90, "default", {64}),
        pytest.param(90, "options", {64}, marks=pytest.mark.slow),
        pytest.param(90, "default", {*tiles.LINES} - {64}, marks=pytest.mark.slow),
        pytest.param(80, "default", {*tiles.LINES}, marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_without_large_spills(
    capability: int, group: str, widths: set[int]
) -> None:
    # in a process of its own, because here triton may be set to interpret
    command = [sys.executable, "-m", "tests.ops.shm._compile_kernels"]
    done = subprocess.run(
        [*command, str(capability), group, *map(str, widths)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["width"] for kernel in kernels} == widths
    assert {kernel["kernel"] for kernel in kernels} == {
        "scan_forward_kernel", "scan_backward_kernel", "segment_kernel", "combine_kernel",
        "step_kernel",
    }  # fmt: skip
    for kernel in kernels:
        assert kernel["spill_bytes"] <= MAX_SPILL_BYTES, kernel
        if kernel["kernel"] == "scan_forward_kernel":
            # it loads the vectors of the steps ahead
            assert kernel["async_loads"] >= 10, kernel
