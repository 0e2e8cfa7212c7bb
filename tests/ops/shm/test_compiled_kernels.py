"""Every kernel of the table compiles for real GPUs, without one, and keeps its state in registers.

The interpreter accepts code that the compiler refuses, so both are needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_shm.ops.shm import tiles

MAX_SPILL_BYTES = 256


def report(capability: int, *names: str) -> list[dict[str, object]]:
    """Compile in a process of its own: here triton may be set to interpret."""
    code = Path(__file__).with_name("_compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(code), str(capability), *names],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_large_spills(capability: int) -> None:
    kernels = report(capability, "default")
    widths = {kernel["width"] for kernel in kernels}
    assert widths == {*tiles.FORWARD, *tiles.BACKWARD}
    assert {kernel["kernel"] for kernel in kernels} == {
        "scan_forward_kernel", "scan_backward_kernel", "segment_kernel", "combine_kernel",
        "step_kernel",
    }  # fmt: skip
    for kernel in kernels:
        assert kernel["spill_bytes"] <= MAX_SPILL_BYTES, kernel


def test_options_compile() -> None:
    """Clamp, the hardware's tanh, and the adjoint of a segment."""
    for kernel in report(90, "options"):
        assert kernel["spill_bytes"] <= MAX_SPILL_BYTES, kernel


def test_the_forward_kernel_loads_ahead() -> None:
    kernels = [k for k in report(90, "scan_forward_kernel") if k["kernel"] == "scan_forward_kernel"]
    assert kernels
    for kernel in kernels:
        assert kernel["async_loads"] >= 10, kernel
