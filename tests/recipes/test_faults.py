"""What stops a run is named, and what was learned up to then is kept."""

from __future__ import annotations

import errno
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
    FRAMES_PER_UPDATE,
    TINY,
    UPDATES,
    check_finite,
    check_same_runs,
    command,
    read_metrics,
    saved_state,
    train,
    without_time,
)
from tests.training._helpers import time_limit
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.training import Checkpoints, RolloutCollector

pytestmark = pytest.mark.usefixtures("elsewhere")


class Breaks(WindEnv):
    """From its fiftieth step on, in the third batch, it spoils an entry or raises an error."""

    def __init__(
        self, *args: Any, key: str | None = None, row: int | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.key, self.row, self.steps = key, slice(None) if row is None else row, 0

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps += 1
        tensordict = super()._step(tensordict)
        if self.steps > 50 and self.key is None:
            raise ZeroDivisionError("the wind has stopped")
        if self.steps > 50 and self.key in tensordict.keys():
            changed = tensordict[self.key].clone()
            changed[self.row] = torch.nan
            tensordict[self.key] = changed
        return tensordict


def breaks(**options: Any) -> Any:
    return partial(Breaks, max_steps=30, shaping_radii=(0.001, 10.0), **options)


def check_stopped(folder: Path, updates: int) -> None:
    """All up to the last good update is there, whole and finite, and no more."""
    state = saved_state(folder)
    assert (state["updates"], state["frames"]) == (updates, updates * FRAMES_PER_UPDATE)
    assert len(read_metrics(folder)) == updates
    assert not (folder / "summary.json").exists()
    check_finite(folder)


def test_error_of_the_environment(tmp_path: Path, capsys: Any) -> None:
    folder, straight = tmp_path / "run", tmp_path / "straight"
    with pytest.raises(ZeroDivisionError, match="the wind has stopped"):
        train(folder, env=breaks())
    check_stopped(folder, 2)
    said = f"stopped; all up to frame 320 is saved, go on with experiment.resume={folder}"
    assert said in capsys.readouterr().err
    # once it is fixed, the run goes on as if nothing had been
    train(folder, env=breaks(key="none"), resume=str(folder))
    train(straight, env=breaks(key="none"))
    check_same_runs(folder, straight)


class TestStop:
    @pytest.mark.parametrize(
        ("key", "on_nonfinite", "message"),
        [
            # actions cannot be computed from it, so it cannot be skipped
            ("observation", "skip", "non-finite observation: 'observation' .*; fix the envi"),
            ("shaping", "stop", "non-finite observation: 'shaping'"),
            ("reward", "stop", r"update 2: non-finite data: \('next', 'reward'\)"),
        ],
    )
    def test_data(self, tmp_path: Path, key: str, on_nonfinite: str, message: str) -> None:
        with pytest.raises(FloatingPointError, match=message) as caught:
            train(tmp_path, env=breaks(key=key, row=3), on_nonfinite=on_nonfinite)
        assert "is nan in sequence 3, step 10" in str(caught.value)
        check_stopped(tmp_path, 2)

    def test_gradient(self, tmp_path: Path) -> None:
        class Overflows(SHMModule):
            """Gives infinite features in the first minibatch of the second batch."""

            passes = 0

            def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
                out = super().forward(tensordict)
                if self.recurrent_mode:
                    # per batch one for the advantage, and four for two epochs of two minibatches
                    self.passes += 1
                    if self.passes == 7:
                        out[self.out_keys[0]] = out[self.out_keys[0]] + torch.inf
                return out

        match = r"update 1: non-finite gradient: .*\. It did not reach .*algo\.learning_rate"
        with pytest.raises(FloatingPointError, match=match):
            train(tmp_path, memory=Overflows)
        check_stopped(tmp_path, 1)

    def test_memory(self, tmp_path: Path) -> None:
        class Leaks(SHMModule):
            """Its memory leaves the range of float32 in a step of the second batch."""

            steps = 0

            def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
                out = super().forward(tensordict)
                if not self.recurrent_mode:
                    self.steps += 1
                    if self.steps == 31:
                        out["next", "memory"][5] = torch.inf
                return out

        match = "non-finite memory: .* is (inf|nan) in sequence 5, .* memory.clamp=100"
        with pytest.raises(FloatingPointError, match=match):
            train(tmp_path, memory=Leaks)
        check_stopped(tmp_path, 1)

    def test_from_the_command_line(self, tmp_path: Path) -> None:
        result = command(
            "ppo_shm.py", *TINY, "algo.learning_rate=1e30", "experiment.checkpoint_interval=1",
            f"hydra.run.dir={tmp_path}",
        )  # fmt: skip
        assert (result.code, result.stdout) == (1, "")
        assert "non-finite gradient: " in result.stderr
        assert not (tmp_path / "summary.json").exists()
        if (tmp_path / "checkpoints").exists():
            check_finite(tmp_path)


class TestSkip:
    def test_sequences(self, tmp_path: Path, capsys: Any) -> None:
        summary = train(tmp_path, env=breaks(key="reward", row=3), on_nonfinite="skip")
        assert summary["frames"] == UPDATES * FRAMES_PER_UPDATE
        err = capsys.readouterr().err
        assert err.count("; skipped\n") == 2
        assert "update 2: non-finite data: " in err
        check_finite(tmp_path)

    def test_minibatches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        clip, spoiled = ppo_shm.clip_grad_norm_, iter([False] * 6 + [True] + [False] * 9)

        def overflow(parameters: Any, limit: float) -> torch.Tensor:
            parameters = list(parameters)
            if next(spoiled):
                parameters[0].grad[0] = torch.nan
            return clip(parameters, limit)

        monkeypatch.setattr(ppo_shm, "clip_grad_norm_", overflow)
        train(tmp_path, on_nonfinite="skip")
        err = capsys.readouterr().err
        assert err.count("skipped") == 1
        assert "update 1: non-finite gradient: " in err
        assert next(spoiled, None) is None
        assert saved_state(tmp_path)["updates"] == UPDATES
        check_finite(tmp_path)

    def test_nothing_is_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(FloatingPointError, match="no sequence of update 2 is finite"):
            train(tmp_path / "data", env=breaks(key="reward"), on_nonfinite="skip")
        check_stopped(tmp_path / "data", 2)
        monkeypatch.setattr(ppo_shm, "clip_grad_norm_", lambda *_: torch.tensor(torch.nan))
        with pytest.raises(FloatingPointError, match="no minibatch of update 0 was finite"):
            train(tmp_path / "gradient", on_nonfinite="skip")


class TestDisk:
    def test_a_file_that_may_not_grow(self, tmp_path: Path) -> None:
        """With room again the run becomes what it would have been."""
        folder, straight = tmp_path / "run", tmp_path / "straight"

        def run() -> None:
            save = Checkpoints.save

            def limited(self: Checkpoints, *args: Any, step: int, **options: Any) -> Path:
                if step == 3 * FRAMES_PER_UPDATE:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
                return save(self, *args, step=step, **options)

            Checkpoints.save = limited
            train(folder)

        with Child(run, tmp_path / "out") as child:
            assert child.wait() == 1
        assert "cannot write checkpoint-000000000480-" in child.text()
        assert "stopped; all up to frame 320 is saved" in child.text()
        train(folder, resume=str(folder))
        train(straight)
        check_same_runs(folder, straight)

    def test_full_disk(self, tmp_path: Path, capsys: Any) -> None:
        with small_disk(tmp_path / "disk", "1m") as disk:
            with pytest.raises(OSError, match="cannot write") as caught:
                train(disk / "run", keep_checkpoints=9, total_frames=1600)
            assert caught.value.errno == errno.ENOSPC
            folder = shutil.copytree(disk / "run", tmp_path / "run")
        assert not list(folder.rglob("*.part"))
        assert f"all up to frame {saved_state(folder)['frames']} is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "and_go_on", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "and_go_on"]
)
def test_worker_dies(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    request: pytest.FixtureRequest,
    and_go_on: bool,
) -> None:
    """It is not waited for, and the other processes end."""
    if not and_go_on:
        request.getfixturevalue("forked_workers")
    check_ratio, updates = ppo_shm.check_ratio, iter(range(UPDATES))

    def kill_a_worker(term: TensorDictBase) -> float:
        if next(updates) == 2:
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            # one that dies while it is sent the policy is waited for, by TorchRL, two minutes
            worker.join(20)
        return check_ratio(term)

    folder, straight = tmp_path / "run", tmp_path / "straight"
    collector = partial(RolloutCollector, backend="multi_sync", num_workers=1 + and_go_on)
    with monkeypatch.context() as patch, time_limit(120):
        patch.setattr(ppo_shm, "check_ratio", kill_a_worker)
        with pytest.raises((RuntimeError, EOFError, ConnectionError)) as caught:
            train(folder, collector=collector)
    assert str(caught.value)
    assert "stopped; all up to frame 320 is saved" in capsys.readouterr().err
    assert saved_state(folder)["updates"] == 2
    assert multiprocessing.active_children() == []
    if and_go_on:
        train(folder, collector=collector, resume=str(folder))
        train(straight, collector=collector)
        assert without_time(folder) == without_time(straight)
