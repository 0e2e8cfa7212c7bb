"""Train for a long time in one process and watch that nothing piles up.

python -m tests.benchmarks.soak --minutes 30
python -m tests.benchmarks.soak --minutes 30 env=visual_match_100 memory=gru

Runs `recipes/ppo_shm.py` again and again, with resets, an evaluation at the end of each run, and
a checkpoint every five updates. Every second the resident memory and the open files are counted.
After a warm-up of a fifth of the time a line is fitted: the memory must grow by less than
1 MB per minute, and the number of open files must not grow. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from hydra import compose, initialize
from hydra_zen import zen
from hydra_zen.third_party.pydantic import pydantic_parser

from recipes import ppo_shm
from torchrl_shm.configs import register

SMALL = (
    "experiment.num_envs=32", "algo.rollout_length=50", "algo.sequences_per_minibatch=8",
    "experiment.total_frames=96000", "experiment.checkpoint_interval=5",
    "experiment.num_test_episodes=32",
)  # fmt: skip
PAGE = os.sysconf("SC_PAGE_SIZE")


def sample() -> tuple[float, int]:
    """Resident memory in MB, and the number of open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGE / 1e6, len(os.listdir("/proc/self/fd"))


def main() -> int:
    """Soak, print the figures, and return 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--csv", type=Path, help="write the samples: seconds, MB, files")
    arguments, overrides = parser.parse_known_args()

    register("soak", algo="ppo")
    samples: list[tuple[float, float, int]] = []
    stop = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while not stop.wait(1.0):
            samples.append((time.monotonic() - start, *sample()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    runs = 0
    run = zen(ppo_shm.main, instantiation_wrapper=pydantic_parser)
    while time.monotonic() - start < 60 * arguments.minutes:
        with (
            tempfile.TemporaryDirectory() as folder,
            initialize(version_base="1.3", config_path=None),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            place = [f"experiment.run_dir={folder}", f"experiment.seed={runs}"]
            run(compose("soak", [*place, *SMALL, *overrides]))
        runs += 1
    stop.set()
    watcher.join()

    if arguments.csv:
        lines = [f"{seconds:.0f},{size:.1f},{files}\n" for seconds, size, files in samples]
        arguments.csv.write_text("".join(["seconds,megabytes,files\n", *lines]))
    warm = [row for row in samples if row[0] > 12 * arguments.minutes]
    times = [seconds / 60 for seconds, _, _ in warm]
    growth = statistics.linear_regression(times, [size for _, size, _ in warm]).slope
    # between two runs fewer files are open than within one, so halves are compared
    half = len(warm) // 2
    files = [max(count for *_, count in part) for part in (warm[:half], warm[half:])]
    print(
        json.dumps(
            {
                "minutes": arguments.minutes,
                "runs": runs,
                "megabytes": [round(warm[0][1]), round(warm[-1][1])],
                "megabytes_per_minute": round(growth, 3),
                "open_files": files,
                "torch": torch.__version__,
            }
        )
    )
    return int(growth >= 1 or files[1] > files[0])


if __name__ == "__main__":
    sys.exit(main())
