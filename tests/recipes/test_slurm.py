"""Runs under a real Slurm, which takes their place away: equal to runs that were left alone."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests._processes import Child, wait_until
from tests._slurm import find_slurm, slurm, start_slurm
from tests.recipes._helpers import ROOT, TINY, check_same_runs, command
from tests.recipes.test_launchers import check_same_sweeps, folders, num_rows, start, status
from torchrl_shm.training import RunFolder

# a minute or two each: a job takes seconds to import, and Slurm looks every few seconds
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("elsewhere"),
    pytest.mark.skipif(not find_slurm(), reason="no Slurm on this machine: apt install slurm-wlm"),
]
LONG = (*TINY, "memory=mlp", "experiment.checkpoint_interval=1000")


@pytest.fixture(autouse=True)
def _slurm(tmp_path: Path) -> Iterator[None]:
    with start_slurm(tmp_path / "slurm"):
        yield


def jobs(state: str) -> set[str]:
    """Jobs in the partitions of those that can be put back, such as `3` or `3_0` of an array."""
    return set(slurm("squeue", "-h", "-r", "-p", "cpu,all", "-t", state, "-o", "%i").split())


def start_again(job: str) -> None:
    """Slurm lets what it puts back wait for two minutes."""
    wait_until(lambda: job in jobs("pending"))
    assert not slurm("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_sweep(tmp_path: Path) -> None:
    """One job runs out of time and another makes room: both go on where they were."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="of the extra cluster")
    alone, folder = tmp_path / "alone", tmp_path / "sweep"
    swept = (*LONG, "experiment.seed=0,1", "experiment.total_frames=100_000")
    result = command("ppo_shm.py", "-m", *swept, f"hydra.sweep.dir={alone}")
    assert result.code == 0, result.stderr
    launcher = (
        "hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu",
        "hydra.launcher.cpus_per_task=1", "hydra.launcher.max_num_timeout=1",
    )  # fmt: skip
    with Child(partial(start, folder, *swept, *launcher), tmp_path / "out") as child:
        wait_until(lambda: folder.exists() and len(list(folder.glob("*/metrics.csv"))) == 2, child)
        first, second = sorted(jobs("running"))
        rows = num_rows(folder)
        wait_until(lambda: num_rows(folder) > rows + 10, child)
        # what Slurm sends before the time is up
        slurm("scancel", "--signal=USR2", first)
        wait_until(lambda: first in jobs("pending"), child)
        slurm("sbatch", "--partition=urgent", "--cpus-per-task=2", "--wrap=true")
        assert status(folder)["finished"] == 0
        start_again(first)
        start_again(second)
        assert child.wait(300) == 0, child.text()
    assert status(folder) == {"finished": 2, "running": 0, "stopped": 0, "missing": 0}
    said = sorted(folder.glob(".submitit/*/*.err"))
    for path in said:
        assert path.read_text().count("resumed at frame") == 1, path.read_text()
    assert len(said) == len(folders(folder))
    check_same_sweeps(alone, folder)


# what the job gets, and how it starts its processes
STARTED = {
    "one node": (
        "-n1 -c2",
        "srun -c2 {torchrun} --standalone --nproc_per_node=2",
    ),
    "two nodes": (
        "--partition=all --nodes=2 --ntasks-per-node=1",
        "srun {torchrun} --nnodes=2 --nproc_per_node=1 --rdzv_backend=c10d"
        " --rdzv_endpoint=$(hostname):{port}",
    ),
}


@pytest.mark.parametrize(("size", "how"), STARTED.values(), ids=STARTED)
def test_several_processes(tmp_path: Path, size: str, how: str) -> None:
    """`torchrun` in a script that asks to be started again before its time is up."""
    recipe = ROOT / "recipes" / "ppo_shm.py"
    with socket.socket() as one:
        one.bind(("", 0))
        port = one.getsockname()[1]
    torchrun = how.format(torchrun=f"{sys.executable} -m torch.distributed.run", port=port)
    options = " ".join((*LONG, "experiment.total_frames=50_000", "experiment.resume=auto"))

    def submit(name: str) -> tuple[str, Path]:
        script, folder = tmp_path / f"{name}.sh", tmp_path / name
        run = f"{torchrun} {recipe} {options} hydra.run.dir={folder} & wait; wait"
        again = "trap 'scontrol requeue $SLURM_JOB_ID' USR1"
        script.write_text(f"#!/bin/bash\n{again}\n{run}\n")
        to = ("--open-mode=append", f"--output={folder}.out")
        return slurm("sbatch", "--parsable", *size.split(), "--requeue", *to, str(script)), folder

    def done(folder: Path) -> bool:
        return (folder / "summary.json").exists()

    def num_updates(folder: Path) -> int:
        file = folder / "metrics.csv"
        return file.read_text().count("\n") if file.exists() else 0

    _, alone = submit("alone")
    wait_until(lambda: done(alone), seconds=200)
    job, stopped = submit("stopped")
    wait_until(lambda: num_updates(stopped) > 10, seconds=100)
    slurm("scancel", "--batch", "--signal=USR1", job)
    start_again(job)
    (step,) = RunFolder(stopped).checkpoints.steps()
    assert not done(stopped)
    wait_until(lambda: done(stopped), seconds=200)
    assert f"resumed at frame {step}\n" in stopped.with_suffix(".out").read_text()
    check_same_runs(alone, stopped)
