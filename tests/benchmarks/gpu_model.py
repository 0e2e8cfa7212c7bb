"""A model, not a measurement: how fast the kernels can be, from their instructions.

python -m tests.benchmarks.gpu_model

Compiles the kernels for sm_90 on any machine and counts what one pass through the main loop
issues. Per clock, a multiprocessor issues 4 warp instructions, but only half a special function and
one instruction that exchanges or moves data. The largest of the three bounds the time; latencies,
waits and memory traffic are left out, so a real GPU is slower. The shares are those of the limits
in `tests.benchmarks.scan`: one special function per element forward, 13 float instructions
backward.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.benchmarks._measure import table
from torchrl_shm.ops.shm.backend import STORE
from torchrl_shm.ops.shm.tiles import WARPS

# warp instructions per clock and multiprocessor
_ISSUE, _SPECIAL, _EXCHANGE = 4.0, 0.5, 1.0
# clocks per 32 elements and step at the limit
_LIMITS = {"scan_forward_kernel": 1 / _SPECIAL, "scan_backward_kernel": 13 / _ISSUE}


def main() -> None:
    """Compile, count, print."""
    kernels: list[str] = []
    for group in ("default", "fast"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.ops.shm._compile_kernels", "90", group],
            capture_output=True, text=True, check=True,
            env={**os.environ, "TRITON_INTERPRET": "0"},
        )  # fmt: skip
        kernels += done.stdout.splitlines()
    rows: list[list[str]] = []
    for kernel in map(json.loads, kernels):
        name = kernel["kernel"]
        if name not in _LIMITS:
            continue
        forward = "rows" in kernel
        lines = kernel["rows" if forward else "columns"]
        steps = 1 if forward else kernel["chunk"]
        elements = lines * kernel["width"] * steps / (32 * WARPS)
        # backward, on average half of the steps between stored states come before the chunk
        replayed = (STORE - steps) / 2
        clocks: dict[str, float] = {}
        for bound, key, rate in (
            ("issue", "instructions", _ISSUE),
            ("special", "special", _SPECIAL),
            ("exchange", "exchange", _EXCHANGE),
        ):
            count = kernel[f"loop_{key}"] + (replayed - 1) * kernel[f"inner_{key}"]
            clocks[bound] = count / rate / elements
        bound = max(clocks, key=lambda key: clocks[key])
        tile = f"{lines} rows" if forward else f"{lines} columns, {steps} steps"
        rows.append(
            [
                f"{name.split('_')[1]}, {kernel['gate']}", str(kernel["width"]),
                tile,
                f"{kernel['registers']}, {kernel['spill_bytes']} B",
                " / ".join(f"{value:.2f}" for value in clocks.values()),
                f"{_LIMITS[name] / clocks[bound]:.0%} ({bound})",
            ]
        )  # fmt: skip
    header = ["kernel, gate", "H", "tile", "registers, spills", "issue / special / exchange"]
    header += ["of the limit, at most"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
