"""Sweeps whose jobs run in other processes: equal to runs alone, whatever ends them in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from tests._processes import Child, wait_until
from tests.recipes._helpers import TINY, check_same_runs, command
from torchrl_shm.configs import load_config
from torchrl_shm.tools import sweep
from torchrl_shm.training import RunFolder
from torchrl_shm.training.run_folder import is_running

pytestmark = pytest.mark.usefixtures("elsewhere")

# each with what finds out whether it is installed
LAUNCHERS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}
# a memory that only this file knows, in a script that begins with what a job needs as well
SCRIPT = """
import torch

from recipes.ppo_shm import main
from torchrl_shm.configs import add_memory, run_recipe
from torchrl_shm.modules import LRU


class Mine(LRU):
    def forward(self, *args, **options):
        assert torch.get_num_threads() == 1
        return super().forward(*args, **options)


if __name__ == "__main__":
    add_memory("mine", Mine, memory_size=8)
    run_recipe(main, name="mine", algo="ppo")
"""


def start(folder: Path, *arguments: str, script: str = "ppo_shm.py") -> None:
    """Start a sweep, or go on with it, and end the process with its code."""
    auto = ("experiment.resume=auto", f"hydra.sweep.dir={folder}")
    result = command(script, "-m", *TINY, *arguments, *auto)
    print(result.stdout, result.stderr, flush=True)
    if "hydra/launcher=joblib" in arguments:
        from joblib.externals.loky import get_reusable_executor

        # as the end of a process does, but not that of a fork
        get_reusable_executor().shutdown()
    raise SystemExit(result.code)


def in_a_group(function: Callable[[], object], *, fork: bool = False) -> None:
    """Call a function as a shell does a command; with `fork`, joblib's processes import nothing."""
    from joblib.externals.loky.backend.context import set_start_method

    os.setsid()
    if fork:
        # not safe where there are threads; torch and numba are told to start none
        warnings.filterwarnings("ignore", message="`fork` start method", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        set_start_method("fork", force=True)
    function()


def status(folder: Path) -> dict[str, int]:
    with redirect_stdout(StringIO()):
        return sweep.main(["status", str(folder)])


def folders(sweep: Path) -> list[Path]:
    return sorted(path for path in sweep.iterdir() if path.name[0].isdigit())


def num_rows(sweep: Path) -> int:
    return sum(path.read_text().count("\n") for path in sweep.glob("*/metrics.csv"))


def check_same_sweeps(one: Path, other: Path) -> None:
    assert [x.name for x in folders(one)] == [x.name for x in folders(other)]
    for left, right in zip(folders(one), folders(other), strict=True):
        check_same_runs(left, right)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_without_the_package(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line says what to install, and nothing is left behind."""
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(known, f"{launcher}.yaml", raising=False)
    result = command("ppo_shm.py", "-m", *TINY, f"hydra/launcher={launcher}")
    package = LAUNCHERS[launcher].partition(".")[2].replace("_", "-")
    extra = "ray-launcher" if launcher == "ray" else "cluster"
    said = f"hydra/launcher={launcher} needs {package}: pip install 'torchrl_shm[{extra}]'\n"
    assert (result.code, result.stdout, result.stderr) == (2, "", said)
    assert not list(Path.cwd().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_jobs_are_runs_alone(tmp_path: Path, launcher: str) -> None:
    """Those of a script with names of its own, too; a mistake in one of them is a line."""
    pytest.importorskip(LAUNCHERS[launcher], reason="the launcher is not installed")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    swept = ("memory=mine", "experiment.seed=0,1", "algo.epochs=2,0")
    alone, together = tmp_path / "alone", tmp_path / "together"
    begin = partial(start, script=str(script))
    for folder, where in ((alone, "basic"), (together, launcher)):
        options = (*swept, f"hydra/launcher={where}")
        if where == "joblib":
            options = (*options, "hydra.launcher.n_jobs=2")
        with Child(partial(begin, folder, *options), folder.with_name("out")) as child:
            assert child.wait(300) == 2, child.text()
            assert "\nalgo.epochs must be at least 1, got 0\n" in child.text()
            assert "Traceback" not in child.text()
        assert status(folder) == {"finished": 2, "running": 0, "stopped": 0, "missing": 2}
    # `algo.epochs` was given before, and keeps that place
    for seed in (0, 1):
        name = f"{seed}_mine_seed{seed}"
        check_same_runs(alone / name, together / name)
        config = load_config(together / name)
        assert config.command == load_config(alone / name).command
        assert config.memory.cell.path == "__main__.Mine"


@pytest.mark.parametrize(
    ("memories", "seeds", "kills", "fork"),
    [
        ("mlp", 2, 1, True),
        pytest.param("mlp,gru", 2, 3, True, marks=pytest.mark.slow),
        pytest.param("mlp,gru", 20, 3, False, marks=pytest.mark.slow),
    ],
)
def test_killed(tmp_path: Path, memories: str, seeds: int, kills: int, fork: bool) -> None:
    """Every job is finished once, as in the sweep that nothing stopped."""
    pytest.importorskip(LAUNCHERS["joblib"], reason="comes with the extra cluster")
    swept = (
        f"memory={memories}", f"experiment.seed=range({seeds})", "experiment.checkpoint_interval=1",
    )  # fmt: skip
    left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
    # in this process, so that its forks find all that is loaded late
    result = command("ppo_shm.py", "-m", *TINY, *swept, f"hydra.sweep.dir={left_alone}")
    assert result.code == 0, result.stderr
    jobs = len(folders(left_alone))
    assert jobs == len(memories.split(",")) * seeds
    rows, draw = num_rows(left_alone), random.Random(seeds)
    begin = partial(start, killed, *swept, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done: dict[Path, int] = {}
    for nth in range(1, kills + 1):
        with Child(partial(in_a_group, begin, fork=fork), tmp_path / "out") as child:
            wait_until(
                lambda nth=nth: killed.exists() and num_rows(killed) > rows * nth / (kills + 1),
                child, seconds=300,
            )  # fmt: skip
            time.sleep(draw.uniform(0, 0.1))
            os.killpg(child.pid, signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL, child.text()
        wait_until(lambda: not any(map(is_running, folders(killed))))
        summaries = {x: x.stat().st_mtime_ns for x in killed.glob("*/summary.json")}
        assert done.items() <= summaries.items()
        done = summaries
        states = status(killed)
        assert (states["finished"], states["running"]) == (len(done), 0)
        assert sum(states.values()) == jobs
    assert len(done) < jobs
    with Child(partial(in_a_group, begin, fork=fork), tmp_path / "out") as child:
        assert child.wait(600) == 0, child.text()
    assert done.items() <= {x: x.stat().st_mtime_ns for x in killed.glob("*/summary.json")}.items()
    assert status(killed) == {"finished": jobs, "running": 0, "stopped": 0, "missing": 0}
    check_same_sweeps(left_alone, killed)


LONG = ("memory=mlp", "experiment.total_frames=1_000_000", "experiment.checkpoint_interval=1000")


@pytest.mark.parametrize("how", ["terminal", pytest.param("parent", marks=pytest.mark.slow)])
def test_signals_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Ctrl-C reaches all processes; where the first alone was ended, the others end with it."""
    pytest.importorskip(LAUNCHERS["joblib"], reason="comes with the extra cluster")
    if how == "parent":
        # no signal has reached the runs, so there is nothing to wait for; where one has, they may
        # take their time to save
        monkeypatch.setattr("torchrl_shm.configs.task._PATIENCE", 0.5)
    folder = tmp_path / "sweep"
    begin = partial(
        start, folder, *LONG, "experiment.seed=0,1,2", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    with Child(partial(in_a_group, begin, fork=True), tmp_path / "out") as child:
        wait_until(lambda: len(list(folder.glob("*/metrics.csv"))) == 2, child)
        assert status(folder) == {"finished": 0, "running": 2, "stopped": 0, "missing": 1}
        if how == "terminal":
            os.killpg(child.pid, signal.SIGINT)
        else:
            child.signal(signal.SIGTERM)
        assert child.wait() == -(signal.SIGINT if how == "terminal" else signal.SIGTERM)
        # nothing of the sweep lives on
        wait_until(lambda: not any(map(is_running, folders(folder))))
        wait_until(lambda: not members(child.pid))
    assert status(folder) == {"finished": 0, "running": 0, "stopped": 2, "missing": 1}
    for path in folders(folder):
        assert len(RunFolder(path).checkpoints.steps()) == 1


def members(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "--sid", str(group)], capture_output=True, text=True, check=False
    )
    return [state for state in found.stdout.split() if state[0] != "Z"]


@pytest.mark.slow
def test_preempted(tmp_path: Path) -> None:
    """What submitit sends before the time is up, or when others need the place."""
    pytest.importorskip(LAUNCHERS["submitit_local"], reason="comes with the extra cluster")
    folder, alone = tmp_path / "sweep", tmp_path / "alone"
    swept = (
        "memory=mlp", "experiment.seed=3", "experiment.total_frames=4000",
        "experiment.checkpoint_interval=1000",
    )  # fmt: skip
    result = command("ppo_shm.py", "-m", *TINY, *swept, f"hydra.sweep.dir={alone}")
    assert result.code == 0, result.stderr
    begin = partial(start, folder, *swept, "hydra/launcher=submitit_local")
    with Child(begin, tmp_path / "out") as child:
        wait_until(lambda: folder.exists() and num_rows(folder) > 5, child)
        os.kill(job_of(folder), signal.SIGUSR2)
        assert child.wait(300) == 0, child.text()
    (errors,) = folder.glob(".submitit/*/*.err")
    (frame,) = [x for x in errors.read_text().splitlines() if x.startswith("resumed at frame")]
    # it was saved for the signal
    assert int(frame.split()[-1]) >= 5 * 160
    assert status(folder) == {"finished": 1, "running": 0, "stopped": 0, "missing": 0}
    check_same_sweeps(alone, folder)


def job_of(sweep: Path) -> int:
    """The process in which submitit runs the job of a sweep."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in words and any(str(sweep) in word for word in words):
            return int(path.parent.name)
    raise AssertionError(f"no process runs the job of {sweep}")
