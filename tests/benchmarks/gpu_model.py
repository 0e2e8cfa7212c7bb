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

# warp instructions per clock and multiprocessor
_ISSUE, _SPECIAL, _EXCHANGE = 4.0, 0.5, 1.0
# clocks per 32 elements and step at the limit
_LIMITS = {"scan_forward_kernel": 1 / _SPECIAL, "scan_backward_kernel": 13 / _ISSUE}


def main() -> None:
    """Compile, count, print."""
    lines: list[str] = []
    for group in ("default", "fast"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.ops._compile_kernels", "90", group],
            capture_output=True, text=True, check=True,
            env={**os.environ, "TRITON_INTERPRET": "0"},
        )  # fmt: skip
        lines += done.stdout.splitlines()
    rows: list[list[str]] = []
    for kernel in map(json.loads, lines):
        name = kernel["kernel"]
        if name not in _LIMITS:
            continue
        steps = kernel["chunk"] if name == "scan_backward_kernel" else 1
        elements = kernel["rows"] * kernel["width"] * steps / (32 * kernel["warps"])
        bounds = {
            "issue": kernel["loop_instructions"] / _ISSUE / elements,
            "special": kernel["loop_special"] / _SPECIAL / elements,
            "exchange": kernel["loop_exchange"] / _EXCHANGE / elements,
        }
        bound = max(bounds, key=lambda key: bounds[key])
        share = _LIMITS[name] / bounds[bound]
        rows.append(
            [
                name.split("_")[1], kernel["gate"], str(kernel["width"]), str(kernel["rows"]),
                str(kernel["warps"]), str(kernel["chunk"]), str(kernel["registers"]),
                str(kernel["spill_bytes"]), *(f"{value:.2f}" for value in bounds.values()),
                f"{share:.0%} ({bound})",
            ]
        )  # fmt: skip
    header = ["kernel", "gate", "H", "rows", "warps", "chunk", "registers", "spills (B)"]
    header += ["issue", "special", "exchange", "share of the limit at most"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
