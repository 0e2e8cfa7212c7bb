"""Running recipes: as a command of this process, as a process of its own, or with built parts."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig

from recipes import grpo_shm, ppo_shm, reinforce_shm
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.configs import GRPO, PPO, Reinforce
from torchrl_shm.configs.groups import MEMBERS
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import Experiment, RolloutCollector, RunFolder

ROOT = Path(__file__).parents[2]
MEMORIES = ("shm", "gru", "lstm", "mlp")

# rollouts are shorter than episodes, so most of them start in mid-episode; the goal is large enough
# for an untrained agent to earn something, so that results can be told apart
TINY = (
    "experiment.total_frames=500", "experiment.num_envs=8", "algo.rollout_length=20",
    "algo.sequences_per_minibatch=4", "algo.epochs=2", "env.max_steps=30", "env.goal_radius=0.9",
    "env.num_tasks=20", "env.num_train_tasks=8", "env.num_test_tasks=12",
)  # fmt: skip
FRAMES_PER_UPDATE = 8 * 20
# 500 frames in whole batches
UPDATES, FRAMES = 4, 640

# recipes by name, and the hyperparameters of each
RECIPES: dict[str, tuple[Any, Any]] = {
    "ppo_shm": (ppo_shm.main, PPO),
    "reinforce_shm": (reinforce_shm.main, Reinforce),
    "grpo_shm": (grpo_shm.main, partial(GRPO, group_size=4)),
}

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
        # Hydra composes once more, only to ask for a mode that no configuration sets
        patch.object(Hydra, "get_mode", lambda *_, **__: None),
        # a recipe leaves out members of the others
        patch.dict(MEMBERS),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as error:
            # as the interpreter does
            if isinstance(error.code, str):
                print(error.code, file=stderr)
            code = 1 if isinstance(error.code, str) else error.code or 0
        except Exception:
            traceback.print_exc(file=stderr)
            code = 1
        finally:
            # Hydra leaves it where it could not make the folder of a run
            HydraConfig.instance().cfg = None
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


def fitting(recipe: str, options: Iterable[str]) -> tuple[str, ...]:
    """Options of the command line less those that an algorithm does not have."""
    names = {f"algo.{field.name}" for field in fields(RECIPES[recipe][1]())}
    groups = ("algo.group_size=2",) if "algo.group_size" in names else ()
    return (*groups, *(x for x in options if x[:5] != "algo." or x.partition("=")[0] in names))


def train(folder: Path, recipe: str = "ppo_shm", **replace: Any) -> dict[str, Any]:
    """Call a recipe with plain objects; fields of `Experiment` and `algo` change the tiny ones."""
    main, make_algo = RECIPES[recipe]
    experiment: dict[str, Any] = {"total_frames": FRAMES, "num_envs": 8, "checkpoint_interval": 1}
    algo: dict[str, Any] = {
        "rollout_length": 20, "sequences_per_minibatch": 4, "epochs": 2, "learning_rate": 3e-3,
    }  # fmt: skip
    experiment |= {"run_dir": str(folder)}
    known = {field.name for field in fields(make_algo())}
    algo = {name: value for name, value in algo.items() if name in known}
    for values, kind in ((experiment, Experiment()), (algo, make_algo())):
        names = {field.name for field in fields(kind)} & replace.keys()
        values |= {name: replace.pop(name) for name in names}
    parts: dict[str, Any] = {
        "env": partial(WindEnv, max_steps=30, shaping_radii=(0.001, 10.0)),
        "memory": SHMModule,
        "network": make_actor_critic,
        "collector": RolloutCollector,
    }
    parts |= replace
    return main(**parts, experiment=Experiment(**experiment), algo=make_algo(**algo))


def read_metrics(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def saved_state(folder: Path) -> dict[str, Any]:
    return RunFolder(folder).checkpoints.load()


def without_time(folder: Path) -> str:
    """`metrics.csv` less the columns that differ between equal runs."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    names, *_ = rows = [line.split(",") for line in lines]
    keep = [i for i, name in enumerate(names) if name not in ("seconds", "frames_per_second")]
    return "".join(",".join(row[i] for i in keep) + "\n" for row in rows)


def check_same_runs(one: Path, other: Path) -> None:
    """All that two runs left behind is the same to the last bit, except for times."""
    assert without_time(one) == without_time(other)
    left, right = (
        {**saved_state(folder), "summary": RunFolder(folder).summary} for folder in (one, other)
    )
    left, right = (
        # the csv has times in it; collectors number episodes, and primers the steps of lean
        # rollouts, and both go on with other numbers
        {
            name: value
            for name, value in leaves(state)
            if not any(x in name for x in ("seconds", "metrics", "traj_pool", "lean_index"))
        }
        for state in (left, right)
    )
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == right[name].dtype, name
            assert torch.equal(value, right[name]), name
        else:
            assert value == right[name], name


def check_finite(folder: Path) -> None:
    """Nothing else was saved."""
    for name, value in leaves(saved_state(folder)):
        if isinstance(value, torch.Tensor):
            assert bool(value.isfinite().all()), name


def leaves(value: Any, name: str = "state") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{name}[{i}]")
    else:
        yield name, value
