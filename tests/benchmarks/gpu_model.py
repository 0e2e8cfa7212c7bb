"""A model, not a measurement: how fast the kernels can be, from their instructions.

python -m tests.benchmarks.gpu_model

Compiles the kernels for sm_90 on any machine and counts what one pass through the main loop
issues. Per clock, a multiprocessor issues 4 warp instructions, of which half a special function and
one that exchanges or moves data. The largest of the three bounds the time; latencies, waits and
memory traffic are left out, so a real GPU is slower. The limits that shares refer to are those of
`tests.benchmarks.scan`: one special function per element forward, 13 float instructions backward.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.benchmarks._measure import table
from torchrl_shm.ops._tiles import STORE

# warp instructions per clock and multiprocessor
_ISSUE, _SPECIAL, _EXCHANGE = 4.0, 0.5, 1.0
# clocks per 32 elements and step at the limit
_LIMITS = {"scan_forward_kernel": 1 / _SPECIAL, "scan_backward_kernel": 13 / _ISSUE}


def main() -> None:
    """Compile, count, print."""
    kernels: list[str] = []
    for group in ("default", "fast"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.ops._compile_kernels", "90", group],
            capture_output=True, text=True, check=True,
            env={**os.environ, "TRITON_INTERPRET": "0"},
        )  # fmt: skip
        kernels += done.stdout.splitlines()
    rows: list[list[str]] = []
    for kernel in map(json.loads, kernels):
        name = kernel["kernel"]
        if name not in _LIMITS:
            continue
        steps = kernel.get("chunk", 1)
        lines = kernel.get("rows") or kernel["columns"]
        elements = lines * kernel["width"] * steps / (32 * kernel["warps"])
        # the first chunk after a stored state replays no step, the next one the first's, and so on
        replayed = (STORE - steps) / 2 if "chunk" in kernel else 1
        bounds = {
            key: (kernel[f"loop_{counted}"] + (replayed - 1) * kernel[f"inner_{counted}"])
            / rate
            / elements
            for key, counted, rate in (
                ("issue", "instructions", _ISSUE),
                ("special", "special", _SPECIAL),
                ("exchange", "exchange", _EXCHANGE),
            )
        }
        bound = max(bounds, key=lambda key: bounds[key])
        share = _LIMITS[name] / bounds[bound]
        rows.append(
            [
                name.split("_")[1], kernel["gate"], str(kernel["width"]), str(lines),
                str(kernel["warps"]), str(steps), str(kernel["registers"]),
                str(kernel["spill_bytes"]), *(f"{value:.2f}" for value in bounds.values()),
                f"{share:.0%} ({bound})",
            ]
        )  # fmt: skip
    header = ["kernel", "gate", "H", "lines", "warps", "steps per pass", "registers", "spills (B)"]
    header += ["issue", "special", "exchange", "share of the limit at most"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
