"""Running recipes: as a command of this process, as a process of its own, or with built parts."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import OmegaConf

from recipes import ppo_shm
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.configs import PPO
from torchrl_shm.training import RolloutCollector, RunFolder, make_logger

ROOT = Path(__file__).parents[2]
MEMORIES = ("shm", "gru", "lstm", "mlp")
TIME_COLUMNS = ("seconds", "frames_per_second")

# rows are shorter than episodes, so most of them start in mid-episode; the goal is large enough
# for an untrained agent to earn something, so that results can be told apart
TINY = (
    "algo.total_frames=500", "algo.num_envs=8", "algo.rollout_length=20", "algo.sequences_per_minibatch=4",
    "algo.epochs=2", "env.max_steps=30", "env.goal_radius=0.9", "env.num_tasks=20",
    "env.num_train_tasks=8", "env.num_test_tasks=12",
)  # fmt: skip
# 500 frames in batches of 8 * 20, rounded up
UPDATES, FRAMES = 4, 640

# what Hydra sets up would outlive the command
_QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")


@dataclass(frozen=True)
class Result:
    stdout: str
    stderr: str
    code: int = 0

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def command(script: str, *arguments: str, terminal: bool = False) -> Result:
    """Run a recipe in this process as a shell would; a process costs seconds of imports."""
    stdout, stderr = io.StringIO(), Terminal() if terminal else io.StringIO()
    path = str(ROOT / "recipes" / script)
    code = 0
    with (
        patch.object(sys, "argv", [path, *arguments, *_QUIET]),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as error:
            code = int(error.code or 0)
    return Result(stdout.getvalue(), stderr.getvalue(), code)


def process(script: str, *arguments: str, cwd: Path) -> Result:
    """Run a recipe as a process of its own."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Result(found.stdout, found.stderr, found.returncode)


def train(run_dir: Path, **replace: Any) -> dict[str, Any]:
    """Call the recipe with parts that are already built; `algo` updates the tiny one."""
    algo: dict[str, Any] = {
        "total_frames": 640, "num_envs": 8, "rollout_length": 20, "sequences_per_minibatch": 4, "epochs": 2,
        "learning_rate": 3e-3, "checkpoint_interval": 1,
    }  # fmt: skip
    parts: dict[str, Any] = {
        "env": partial(WindEnv, max_steps=30, shaping_radii=(0.001, 10.0)),
        "memory": SHMModule,
        "collector": RolloutCollector,
        "logger": make_logger,
        "seed": 0,
        "device": "cpu",
        "threads": 1,
        "names": {"env": "wind", "memory": "shm"},
        "resume": None,
    }
    algo |= replace.pop("algo", {})
    parts |= replace
    return ppo_shm.main(
        **parts, algo=PPO(**algo), run_dir=str(run_dir), zen_cfg=OmegaConf.create({})
    )


def read_metrics(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_time(run_dir: Path) -> bytes:
    """The bytes of `metrics.csv` less the columns that no run repeats."""
    lines = (run_dir / "metrics.csv").read_bytes().splitlines(keepends=True)
    names = lines[0].rstrip(b"\n").split(b",")
    keep = [i for i, name in enumerate(names) if name.decode() not in TIME_COLUMNS]
    assert len(keep) == len(names) - len(TIME_COLUMNS)
    rows = (line.rstrip(b"\n").split(b",") for line in lines)
    return b"\n".join(b",".join(row[i] for i in keep) for row in rows)


def check_same_runs(one: Path, other: Path) -> None:
    """All that two runs left behind is the same to the last bit, time aside."""
    assert without_time(one) == without_time(other)
    names = [dict(RunFolder(folder).summary or {}, seconds=None) for folder in (one, other)]
    assert names[0] == names[1]
    states = [RunFolder(folder).load_checkpoint() for folder in (one, other)]
    for state in states:
        # with columns of time, which were compared above without them
        del state["seconds"], state["metrics"]
    check_same(*states)


def check_same(one: Any, other: Any) -> None:
    """Nested containers hold the same tensors and the same values."""
    left, right = (
        # collectors number the rollouts; those of a resumed run get numbers of their own
        {name: value for name, value in leaves(part) if "traj_pool" not in name}
        for part in (one, other)
    )
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == right[name].dtype, name
            assert torch.equal(value, right[name]), name
        else:
            assert value == right[name], name


def leaves(value: Any, name: str = "state") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{name}[{i}]")
    else:
        yield name, value
