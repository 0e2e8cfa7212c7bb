"""A signal at any moment ends a run with its state saved, and leaves no process behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from multiprocessing import set_start_method
from pathlib import Path
from typing import Any

import pytest
import torch

import torchrl_shm.training.run
from tests._processes import Child, wait_until
from tests.recipes._helpers import (
    FRAMES_PER_UPDATE,
    ROOT,
    TINY,
    UPDATES,
    check_same_runs,
    command,
    read_metrics,
    saved_state,
    train,
)
from torchrl_shm import WindEnv
from torchrl_shm.training import Checkpoints, TrainingRun

STOPS = (signal.SIGINT, signal.SIGTERM)
# in which a process has to end
SECONDS = 10


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing stopped."""

    @cache
    def make(recipe: str = "ppo_shm") -> Path:
        folder = tmp_path_factory.mktemp("straight")
        train(folder, recipe)
        return folder

    return make


# what is interrupted, in which of its calls, and the updates that are saved
PHASES = {
    "collection": (WindEnv, "_step", 50, 3),
    # two epochs of two minibatches each
    "update": (torch.optim.Adam, "step", 7, 2),
    "saving": (Checkpoints, "save", 2, 2),
    "evaluation": (torchrl_shm.training.run, "evaluate", 1, UPDATES),
}


@pytest.mark.parametrize("phase", PHASES)
def test_in_every_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Callable[[], Path], phase: str
) -> None:
    expected = straight()
    owner, name, nth, updates = PHASES[phase]
    function, calls = getattr(owner, name), iter(range(1, 10**6))

    def interrupted(*args: Any, **options: Any) -> Any:
        if next(calls) == nth:
            signal.raise_signal(signal.SIGTERM)
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(SystemExit) as caught:
            train(tmp_path)
    assert caught.value.code == 0
    assert saved_state(tmp_path)["updates"] == len(read_metrics(tmp_path)) == updates
    train(tmp_path, resume=str(tmp_path))
    check_same_runs(tmp_path, expected)


@pytest.mark.parametrize(("recipe", "nth"), [("reinforce_shm", 2), ("grpo_shm", 7)])
def test_other_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Any, recipe: str, nth: int
) -> None:
    """In their second update."""
    expected = straight(recipe)
    step, calls = torch.optim.Adam.step, iter(range(1, 10**6))

    def interrupted(*args: Any, **options: Any) -> Any:
        if next(calls) == nth:
            signal.raise_signal(signal.SIGTERM)
        return step(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", interrupted)
        with pytest.raises(SystemExit) as caught:
            train(tmp_path, recipe)
    assert caught.value.code == 0
    assert saved_state(tmp_path)["updates"] == len(read_metrics(tmp_path)) == 2
    train(tmp_path, recipe, resume=str(tmp_path))
    check_same_runs(tmp_path, expected)


@pytest.mark.parametrize("times", [2, pytest.param(80, marks=pytest.mark.slow)])
def test_random_moments(tmp_path: Path, straight: Callable[[], Path], times: int) -> None:
    """Between the first moment at which signals are handled and the end of the process."""
    draw = random.Random(times)
    seconds = (saved_state(expected := straight())["seconds"] + 0.2) / 2
    for i in range(times):
        folder = tmp_path / str(i) / "run"

        def run(folder: Path = folder) -> None:
            enter = TrainingRun.__enter__

            def say(self: TrainingRun) -> TrainingRun:
                enter(self)
                folder.with_name("ready").touch()
                return self

            TrainingRun.__enter__ = say
            train(folder)

        with Child(run) as child:
            wait_until(folder.with_name("ready").exists, child)
            # twice as often in the first half, whose states are farther from the end
            time.sleep(draw.uniform(0, seconds) * draw.choice([1, 2]))
            number = STOPS[i % 2]
            child.signal(number)
            # after the run its handlers are gone
            finished = (0, 1, -number) if (folder / "summary.json").exists() else (0,)
            assert child.wait(SECONDS) in finished
        train(folder, resume=str(folder))
        check_same_runs(folder, expected)


def descendants(pid: int) -> set[int]:
    """The processes that a process and its children started and that have not ended."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # dead ones that nobody has collected yet do not count
        if state not in "ZX":
            parents[int(path.parent.name)] = int(parent)
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}


def check_no_worker_is_left_behind(
    folder: Path, output: Path, workers: set[int], *, saved: bool = True
) -> None:
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=SECONDS)
    if saved:
        state = saved_state(folder)
        assert state["frames"] == FRAMES_PER_UPDATE * state["updates"] > 0
        # workers say nothing of their own
        assert output.read_text().startswith("stopped; all up to frame")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("how", "codes"),
    [
        # Ctrl-C reaches every process of the group
        ("terminal of a fork", (0,)),
        pytest.param("terminal", (0,), marks=pytest.mark.slow),
        pytest.param("terminate", (0,), marks=pytest.mark.slow),
        pytest.param("twice", (0, -signal.SIGINT), marks=pytest.mark.slow),
        pytest.param("kill", (-signal.SIGKILL,), marks=pytest.mark.slow),
    ],
)
def test_no_worker_is_left_behind(tmp_path: Path, how: str, codes: tuple[int, ...]) -> None:
    """In a process of its own, as a user starts it, or in a fork, whose worker is a fork, too."""
    folder, output = tmp_path / "run", tmp_path / "out"
    script = str(ROOT / "recipes" / "ppo_shm.py")
    arguments = [
        *TINY, "experiment.total_frames=1_000_000", "experiment.checkpoint_interval=100",
        "collector=multi_sync", "collector.num_workers=1", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    if how == "terminal of a fork":

        def run() -> None:
            os.setsid()
            set_start_method("fork", force=True)
            # not safe where there are threads; torch and numba are told to start none
            warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
            result = command(script, *arguments)
            print(result.stderr, end="", flush=True)
            raise SystemExit(result.code)

        with Child(run, output) as child:
            wait_until((folder / "metrics.csv").exists, child)
            workers = descendants(child.pid)
            assert workers, child.text()
            os.killpg(child.pid, signal.SIGINT)
            assert child.wait(SECONDS) in codes, child.text()
        check_no_worker_is_left_behind(folder, output, workers)
        return
    with (
        open(output, "w") as file,
        subprocess.Popen(
            [sys.executable, script, *arguments], cwd=tmp_path, stdout=file, stderr=file,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            wait_until(lambda: (folder / "metrics.csv").exists() or process.poll() is not None)
            workers = descendants(process.pid)
            # it, and what keeps track of its shared memory
            assert len(workers) == 2, output.read_text()
            if how in ("terminal", "twice"):
                os.killpg(process.pid, signal.SIGINT)
            if how == "twice":
                time.sleep(0.01)
                os.killpg(process.pid, signal.SIGINT)
            if how == "terminate":
                process.terminate()
            if how == "kill":
                process.kill()
            assert process.wait(SECONDS) in codes, output.read_text()
        finally:
            process.kill()
    check_no_worker_is_left_behind(folder, output, workers, saved=codes == (0,))
