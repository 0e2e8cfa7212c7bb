"""What keeping a run safe costs: time spent on saving, of all time in training.

python -m tests.benchmarks.saving
python -m tests.benchmarks.saving env=popgym_repeat_previous_easy memory=gru

Runs `recipes/ppo_shm.py` for 60 updates with its default interval between checkpoints, on Wind if
nothing else is said. The newest checkpoint is read again first.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize
from hydra_zen import zen
from hydra_zen.third_party.pydantic import pydantic_parser

from recipes import ppo_shm
from tests.benchmarks._measure import wait_until_idle
from torchrl_shm.configs import register
from torchrl_shm.training import RunFolder, TrainingRun

UPDATES = 60


def timed(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Count the seconds that a method takes."""

    def call(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args)
        finally:
            spent.append(time.perf_counter() - start)

    return call


def main(*overrides: str) -> int:
    """Run, read the checkpoint, print the share; 1 if it is above 2 %."""
    register("saving", algo="ppo")
    save: list[float] = []
    TrainingRun.save = timed(TrainingRun.save, save)
    load = wait_until_idle(60)
    with tempfile.TemporaryDirectory() as folder, initialize(version_base="1.3", config_path=None):
        config = compose("saving", [f"experiment.run_dir={folder}", *overrides])
        frames = UPDATES * config.experiment.num_envs * config.algo.rollout_length
        config.experiment.total_frames = frames
        with contextlib.redirect_stdout(io.StringIO()):
            zen(ppo_shm.main, instantiation_wrapper=pydantic_parser)(config)
        run = RunFolder(folder)
        assert run.checkpoints.load()["frames"] == frames
        last = (Path(folder) / "metrics.csv").read_text().splitlines()[-1].split(",")
        seconds = float(last[-2])
        size = max(path.stat().st_size for path in (run.path / "checkpoints").glob("*.pt"))
    share = sum(save) / seconds
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "updates": UPDATES,
                "saves": len(save),
                "save_ms": round(1e3 * sum(save) / len(save), 1),
                "checkpoint_kB": size // 1000,
                "percent": round(100 * share, 2),
                "others_used_cpu": round(load, 2),
            }
        )
    )
    return int(share > 0.02)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
