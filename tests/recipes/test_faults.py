"""What stops a run is named, and what was learned up to then is kept."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from recipes import ppo_shm
from tests._disks import small_disk
from tests._processes import Child
from tests.recipes._helpers import (
    TINY,
    check_same_runs,
    command,
    leaves,
    read_metrics,
    train,
    without_time,
)
from tests.training._helpers import time_limit
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.training import Checkpoints, RolloutCollector, RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")

FRAMES_PER_UPDATE = 160
BAD = [float("nan"), float("inf")]


class Breaks(WindEnv):
    """From its fiftieth step on, in the middle of the third batch, it does what it is told to.

    Args:
        key: entry that gets a bad number; an error is raised without one.
        value: the number.
        row: where; everywhere without it.
    """

    def __init__(
        self,
        *args: Any,
        key: str | None = None,
        value: float = 0.0,
        row: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.key, self.value, self.row, self.steps = key, value, row, 0

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps += 1
        tensordict = super()._step(tensordict)
        if self.steps <= 50:
            return tensordict
        if self.key is None:
            raise ZeroDivisionError("the wind has stopped")
        if self.key in tensordict.keys():
            changed = tensordict[self.key].clone()
            changed[slice(None) if self.row is None else self.row] = self.value
            tensordict[self.key] = changed
        return tensordict


def breaks(**options: Any) -> Any:
    return partial(Breaks, max_steps=30, shaping_radii=(0.001, 10.0), **options)


def check_stopped(folder: Path, updates: int) -> None:
    """All up to the last good update is there, whole and finite, and no more."""
    state = RunFolder(folder).load_checkpoint()
    assert (state["updates"], state["frames"]) == (updates, updates * FRAMES_PER_UPDATE)
    assert len(read_metrics(folder)) == updates
    assert not (folder / "summary.json").exists()
    for name, value in leaves(state):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert bool(value.isfinite().all()), name


class TestEnvironment:
    @pytest.mark.parametrize("interval", [1, 100])
    def test_error(self, tmp_path: Path, capsys: Any, interval: int) -> None:
        folder = tmp_path / "run"
        with pytest.raises(ZeroDivisionError, match="the wind has stopped"):
            train(folder, env=breaks(), algo={"checkpoint_interval": interval})
        check_stopped(folder, 2)
        said = f"stopped after update 2, frame 320, which is saved; go on with resume={folder}"
        assert said in capsys.readouterr().err
        # once it is mended, the run goes on as if nothing had been
        train(folder, env=breaks(key="none"), resume=str(folder))
        train(tmp_path / "straight", env=breaks(key="none"))
        check_same_runs(folder, tmp_path / "straight")

    @pytest.mark.parametrize("value", BAD)
    def test_observation(self, tmp_path: Path, value: float) -> None:
        env = breaks(key="observation", value=value, row=3)
        match = rf"non-finite observation: 'observation' is {value} in row 3, step 10; mend the env"
        with pytest.raises(FloatingPointError, match=match):
            train(tmp_path, env=env, algo={"on_nonfinite": "skip"})
        check_stopped(tmp_path, 2)

    @pytest.mark.parametrize("value", BAD)
    @pytest.mark.parametrize("key", ["reward", "shaping"])
    def test_reward(self, tmp_path: Path, key: str, value: float) -> None:
        if key == "shaping":
            match = rf"non-finite observation: 'shaping' is {value} in row 3, step 10"
        else:
            match = rf"update 2: non-finite data: .*reward.* is {value} in row 3, step 10"
        with pytest.raises(FloatingPointError, match=match):
            train(tmp_path, env=breaks(key=key, value=value, row=3))
        check_stopped(tmp_path, 2)


class TestSkip:
    def test_rows(self, tmp_path: Path, capsys: Any) -> None:
        env = breaks(key="reward", value=float("nan"), row=3)
        summary = train(tmp_path, env=env, algo={"on_nonfinite": "skip"})
        assert summary["frames"] == 4 * FRAMES_PER_UPDATE
        err = capsys.readouterr().err
        assert err.count("; skipped\n") == 2
        assert "update 2: non-finite data: " in err
        rows = read_metrics(tmp_path)
        assert all(torch.tensor(float(row["loss_critic"])).isfinite() for row in rows)

    def test_minibatches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        clip, norms = ppo_shm.clip_grad_norm_, iter([False] * 6 + [True] + [False] * 9)

        def overflow(parameters: Any, limit: float) -> torch.Tensor:
            parameters = list(parameters)
            if next(norms):
                parameters[0].grad[0] = torch.nan
            return clip(parameters, limit)

        monkeypatch.setattr(ppo_shm, "clip_grad_norm_", overflow)
        train(tmp_path, algo={"on_nonfinite": "skip"})
        err = capsys.readouterr().err
        assert err.count("skipped") == 1
        assert "update 1: non-finite gradient: " in err
        assert next(norms, None) is None
        assert RunFolder(tmp_path).load_checkpoint()["updates"] == 4

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        env = breaks(key="reward", value=float("nan"))
        with pytest.raises(FloatingPointError, match="no row of update 2 is finite"):
            train(tmp_path, env=env, algo={"on_nonfinite": "skip"})
        check_stopped(tmp_path, 2)


class TestTraining:
    def test_gradient(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        norms = iter([1.0] * 6 + [float("inf")])
        monkeypatch.setattr(ppo_shm, "clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
        match = r"update 1: non-finite gradient: its norm\. It did not reach .*algo\.learning_rate"
        with pytest.raises(FloatingPointError, match=match):
            train(tmp_path)
        check_stopped(tmp_path, 1)

    def test_loss(self, tmp_path: Path) -> None:
        """A value head that overflows is seen before it is differentiated."""
        match = "update 1: non-finite loss: '(state_value|features)' is"
        with pytest.raises(FloatingPointError, match=match):
            train(tmp_path, memory=partial(Overflows, after=1))
        check_stopped(tmp_path, 1)

    def test_memory(self, tmp_path: Path) -> None:
        class Leaks(SHMModule):
            """Its memory leaves the range of numbers in a step of the second batch."""

            steps = 0

            def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
                out = super().forward(tensordict)
                if not self.recurrent_mode:
                    self.steps += 1
                    if self.steps == 31:
                        out["next", "memory"][5] = torch.inf
                return out

        with pytest.raises(
            FloatingPointError, match=r"non-finite memory: .* is (inf|nan) in row 5"
        ):
            train(tmp_path, memory=Leaks)
        check_stopped(tmp_path, 1)

    def test_nothing_else_is_ever_saved(self, tmp_path: Path) -> None:
        """Parameters that no check has seen, by hand."""

        def collector(*args: Any, **options: Any) -> RolloutCollector:
            rows = RolloutCollector(*args, **options)
            policy = args[1]
            update, count = rows.update_policy, iter(range(9))

            def spoil() -> None:
                if next(count) == 1:
                    with torch.no_grad():
                        next(policy.parameters())[0] = torch.nan
                update()

            rows.update_policy = spoil
            return rows

        with pytest.raises(FloatingPointError, match=r"state\['operator'\].* is not finite, so it"):
            train(tmp_path, collector=collector)
        assert RunFolder(tmp_path).load_checkpoint()["updates"] == 1


class Overflows(SHMModule):
    """Gives infinite features in recurrent mode, in the batches after the first few."""

    def __init__(self, *, after: int, **options: Any) -> None:
        super().__init__(**options)
        self.passes, self.after = 0, after

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        out = super().forward(tensordict)
        if self.recurrent_mode:
            # one for the advantage, four for two epochs of two minibatches
            self.passes += 1
            if self.passes > 5 * self.after + 1:
                key = self.out_keys[0]
                out[key] = out[key] + torch.inf
        return out


class TestDisk:
    def test_no_room(self, tmp_path: Path) -> None:
        """A file may not grow beyond a limit; with room again the run is as it would have been."""
        folder = tmp_path / "run"

        def save(self: Checkpoints, *args: Any, step: int, **options: Any) -> Path:
            if step == 3 * FRAMES_PER_UPDATE:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return Checkpoints_save(self, *args, step=step, **options)

        Checkpoints_save = Checkpoints.save

        def run() -> None:
            Checkpoints.save = save
            train(folder)

        with Child(run, tmp_path / "out") as child:
            assert child.wait() == 1
        text = child.text()
        assert "cannot write the checkpoint of step 480" in text
        assert "that of step 320 is kept. Make room" in text
        assert "stopped after update 3, frame 480, whose state could not be saved" in text
        assert RunFolder(folder).load_checkpoint()["updates"] == 2
        train(folder, resume=str(folder))
        train(tmp_path / "straight")
        check_same_runs(folder, tmp_path / "straight")

    def test_full_disk(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "1m") as disk:
            with pytest.raises(OSError, match="cannot write the checkpoint of step") as caught:
                train(disk / "run", algo={"keep_checkpoints": 9, "total_frames": 1600})
            assert caught.value.errno == errno.ENOSPC
            folder = shutil.copytree(disk / "run", tmp_path / "run")
        assert not list((folder / "checkpoints").glob(".*"))
        updates = RunFolder(folder).load_checkpoint()["updates"]
        assert f"that of step {updates * FRAMES_PER_UPDATE} is kept" in str(caught.value)
        assert updates >= 1

    def test_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match="file/run"):
            train(tmp_path / "file" / "run")

    def test_checkpoints_cannot_be_written(self, tmp_path: Path, capsys: Any) -> None:
        class Logger:
            def log_scalar(self, *_: Any, **__: Any) -> None:
                (tmp_path / "checkpoints").write_text("in the way")

        algo = {"checkpoint_interval": 2}
        with pytest.raises(OSError, match="cannot write the checkpoint of step 320"):
            train(tmp_path, algo=algo, logger=lambda run_dir: Logger())
        assert "whose state could not be saved" in capsys.readouterr().err


def test_exit_codes(tmp_path: Path) -> None:
    """The same from the command line: 1, and one message."""
    result = command(
        "ppo_shm.py", *TINY, "algo.learning_rate=1e30", "algo.checkpoint_interval=1",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert (result.code, result.stdout) == (1, "")
    assert "non-finite" in result.stderr
    assert "stopped after update" in result.stderr
    state = RunFolder(tmp_path / "run").load_checkpoint()
    assert all(
        bool(value.isfinite().all())
        for _, value in leaves(state)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    )


def kill_a_worker() -> None:
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)


def test_worker_dies(tmp_path: Path, capsys: Any) -> None:
    """It is not waited for; the state is saved, and the other processes end."""
    folder = tmp_path / "run"

    class Logger:
        updates = 0

        def log_scalar(self, name: str, value: float, step: int) -> None:
            if step == 2 * FRAMES_PER_UPDATE and name == "update":
                kill_a_worker()

    collector = partial(RolloutCollector, backend="multi_sync", num_workers=1)
    with time_limit(120), pytest.raises((RuntimeError, EOFError, ConnectionError)) as caught:
        train(folder, collector=collector, logger=lambda run_dir: Logger())
    assert "stopped after update 2, frame 320, which is saved" in capsys.readouterr().err
    assert str(caught.value)
    check_stopped(folder, 2)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_killed_worker_and_resumed(tmp_path: Path) -> None:
    """What a resumed run of workers does is what one that nothing stopped does."""
    collector = partial(RolloutCollector, backend="multi_sync")

    class Logger:
        def log_scalar(self, name: str, value: float, step: int) -> None:
            if step == 2 * FRAMES_PER_UPDATE and name == "update":
                kill_a_worker()

    folder = tmp_path / "run"
    with time_limit(120), pytest.raises((RuntimeError, EOFError, ConnectionError)):
        train(folder, collector=collector, logger=lambda run_dir: Logger())
    train(folder, collector=collector, resume=str(folder))
    train(tmp_path / "straight", collector=collector)
    assert without_time(folder) == without_time(tmp_path / "straight")
    assert json.loads((folder / "summary.json").read_text())["frames"] == 4 * FRAMES_PER_UPDATE
