"""Frames and CPU seconds until training earns a return, for each memory.

python -m tests.benchmarks.solve --env popgym_repeat_previous_easy --target 0.9 --memories lru,gru
python -m tests.benchmarks.solve --env t_maze_passive --target 0.9 --seeds 0 algo.gamma=0.98

Each run is `recipes/ppo_shm.py` in a process of its own, with one thread. It is ended by the first
update whose finished episodes return the target on average, or by the limit of frames. CPU seconds
are those of the whole process, with all imports.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.benchmarks._measure import number, table, wait_until_idle

ROOT = Path(__file__).parents[2]
# seconds between two looks at the metrics, hence what a run may go on after its last update
_LOOK = 0.02


class Outcome(NamedTuple):
    """Where a run was ended; `score` is the last return of an update."""

    frames: int
    cpu_seconds: float
    score: float


def solve(overrides: list[str], target: float, frames: float = math.inf) -> Outcome:
    """Train until an update returns the target, or for that many frames.

    Raises:
        SystemExit: the run failed; its last words are on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "stderr"
        command = [
            sys.executable, str(ROOT / "recipes" / "ppo_shm.py"), *overrides,
            f"hydra.run.dir={folder}/run", "experiment.threads=1",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with errors.open("w") as stderr:
            run = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
            )
        try:
            done, score = _follow(run, Path(folder) / "run" / "metrics.csv", target, frames)
        finally:
            # not run.kill and run.wait, which keep the times to themselves
            os.kill(run.pid, signal.SIGKILL)
            _, status, usage = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
        if run.returncode > 0:
            raise SystemExit(errors.read_text())
        return Outcome(done, usage.ru_utime + usage.ru_stime, score)


def _follow(
    run: subprocess.Popen[bytes], metrics: Path, target: float, limit: float
) -> tuple[int, float]:
    """Frames and return of the update that ends the run, or of its last one."""
    frames, score, size = 0, math.nan, 0
    ended = False
    while not ended:
        # the process is waited for later, and its last rows are read first
        ended = os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if metrics.exists() and metrics.stat().st_size > size:
            text = metrics.read_text()
            size = len(text)
            # a line may be half written
            for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
                frames = int(row["frames"])
                if math.isfinite(value := float(row["return"])):
                    score = value
                if score >= target or frames >= limit:
                    return frames, score
        time.sleep(_LOOK)
    return frames, score


def main() -> None:
    """Parse the arguments, train, print the table and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="popgym_repeat_previous_easy")
    parser.add_argument("--target", type=float, default=0.9, help="mean return of an update")
    parser.add_argument("--memories", default="lru,gru,shm")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--frames", type=float, default=math.inf, help="limit of a run")
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    parser.add_argument("overrides", nargs="*", help="options of the recipe")
    arguments = parser.parse_args()
    print(f"others used {wait_until_idle(arguments.wait):.0%} of the CPUs", flush=True)

    rows: list[list[str]] = []
    medians: list[list[str]] = []
    for memory in arguments.memories.split(","):
        outcomes: list[Outcome] = []
        for seed in arguments.seeds.split(","):
            chosen = [f"env={arguments.env}", f"memory={memory}", f"experiment.seed={seed}"]
            outcome = solve([*chosen, *arguments.overrides], arguments.target, arguments.frames)
            outcomes.append(outcome)
            reached = "yes" if outcome.score >= arguments.target else "no"
            frames, seconds = f"{outcome.frames:,}", number(outcome.cpu_seconds)
            rows.append([memory, seed, frames, seconds, f"{outcome.score:.2f}", reached])
            print(*rows[-1], file=sys.stderr, flush=True)
        reached = sum(outcome.score >= arguments.target for outcome in outcomes)
        frames = f"{median(outcome.frames for outcome in outcomes):,.0f}"
        seconds = number(median(outcome.cpu_seconds for outcome in outcomes))
        medians.append([memory, frames, seconds, f"{reached} of {len(outcomes)}"])
    print(table(["memory", "seed", "frames", "CPU seconds", "return", "reached"], rows))
    print()
    print(table(["memory", "median of frames", "of CPU seconds", "reached"], medians))


if __name__ == "__main__":
    main()
