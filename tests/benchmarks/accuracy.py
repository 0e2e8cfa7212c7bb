"""Errors of the scan's backends against the float64 reference, by length of the sequence.

python -m tests.benchmarks.accuracy
python -m tests.benchmarks.accuracy --device cuda
"""

from __future__ import annotations

import argparse

import torch

from tests.benchmarks._measure import table
from tests.benchmarks.scan import columns, make, train

_NAMES = ("y", "memory", "dtheta", "dvc", "dv", "dk", "dq", "dmemory")


def main() -> None:
    """Parse the arguments, compare, print relative root-mean-square errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, nargs="*", default=[128, 1024, 4096])
    parser.add_argument("--size", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scans = columns(arguments.device)
    rows: list[list[str]] = []
    for steps in arguments.steps:
        inputs = make(2, steps, arguments.size, arguments.device)
        exact = train(scans["reference"], [x.detach().double().requires_grad_() for x in inputs])
        for name in [x for x in scans if x not in ("loop", "unbind", "associative")]:
            errors = [
                float((actual - expected).detach().norm() / expected.detach().norm())
                for actual, expected in zip(train(scans[name], inputs), exact, strict=True)
            ]
            rows.append([str(steps), name, *(f"{error:.1e}" for error in errors)])
    print(table(["T", "backend", *_NAMES], rows))


if __name__ == "__main__":
    main()
