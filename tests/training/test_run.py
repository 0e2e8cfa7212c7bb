"""The life of a run, with an algorithm that only draws numbers."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

from tests._processes import Child, wait_until
from tests.recipes._helpers import check_same_runs, read_metrics, saved_state
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.modules import LRU, make_memory, make_mlp
from torchrl_shm.training import Experiment, RunFolder, TrainingRun

STOPS = (signal.SIGINT, signal.SIGTERM)


class Sum:
    """A part whose state changes in place, as that of an optimizer does."""

    def __init__(self) -> None:
        self.value = torch.zeros(3)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value.copy_(state_dict["value"])


class Batches:
    """A collector of ten frames per batch; episodes end in the batches that have a return."""

    frames_per_batch = 10

    def __init__(self, returns: tuple[float | None, ...]) -> None:
        self.returns, self.num_batches, self.count = returns, len(returns), 0
        self.closed = False

    def __iter__(self) -> Iterator[TensorDict]:
        while self.count < self.num_batches:
            value = self.returns[self.count]
            self.count += 1
            shape = (2, 5, 1)
            following = {
                "episode_reward": torch.full(shape, value or 0.0),
                "done": torch.full(shape, value is not None),
            }
            yield TensorDict({"next": following}, [2, 5])

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]

    def close(self) -> None:
        self.closed = True


Moments = dict[str, Callable[[], object]]


def train(
    folder: Path, moments: Moments | None = None, *, returns: Any = (1.0,) * 4, **options: Any
) -> TrainingRun:
    """Sum random numbers; `moments` says what happens before training, in an update, and after."""
    moments = moments or {}
    experiment = Experiment(**{"run_dir": str(folder), "checkpoint_interval": 1} | options)
    with TrainingRun.open("test", experiment, WindEnv, SHMModule) as run:
        if run.summary is not None:
            return run
        total, collector = Sum(), Batches(returns)
        run.track(total=total, collector=collector)
        moments.get("before", int)()
        for _ in run.batches(collector):  # type: ignore[arg-type]
            total.value += torch.rand(3) + random.random() + np.random.rand()
            moments.get(f"update {run.updates}", int)()
            run.log({"total": float(total.value.sum())})
        moments.get("after", int)()
    assert collector.closed
    return run


def fail() -> None:
    raise ZeroDivisionError("on purpose")


def stop_at(folder: Path, moment: str, **options: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        train(folder, {moment: fail}, **options)


class TestSaving:
    def test_interval_and_end(self, tmp_path: Path) -> None:
        run = train(tmp_path, checkpoint_interval=3)
        assert run.folder.checkpoints.steps() == [30, 40]
        assert (run.updates, run.frames) == (4, 40)
        state = saved_state(tmp_path)
        assert set(state) == {
            "rng", "total", "collector", "updates", "frames", "seconds", "return", "metrics",
        }  # fmt: skip
        assert state["metrics"] == (tmp_path / "metrics.csv").read_text()
        assert list(read_metrics(tmp_path)[0]) == [
            "update", "frames", "return", "total", "seconds", "frames_per_second",
        ]  # fmt: skip
        # nobody else is kept out afterwards
        RunFolder.create(tmp_path, resume=True).close()

    def test_the_best_has_the_highest_return(self, tmp_path: Path) -> None:
        run = train(tmp_path, returns=(1.0, 5.0, None, 2.0, 1.0, 0.0))
        assert run.folder.checkpoints.steps() == [40, 50, 60]
        assert run.folder.checkpoints.load("best")["updates"] == 2
        assert [row["return"] for row in read_metrics(tmp_path)][1:3] == ["5.0", "nan"]

    def test_an_error_leaves_the_newest_checkpoint(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stop_at(tmp_path, "update 3", checkpoint_interval=2)
        assert saved_state(tmp_path)["updates"] == 2
        assert capsys.readouterr().err == (
            f"stopped; all up to frame 20 is saved, go on with experiment.resume={tmp_path}\n"
        )

    @pytest.mark.parametrize(
        ("moment", "note"),
        [("update 0", "update 0 of "), ("update 2", "update 2 of ")],
    )
    def test_an_error_where_the_folder_is_gone(
        self, tmp_path: Path, moment: str, note: str
    ) -> None:
        """It is that of the training, and not that of the folder."""
        folder = tmp_path / "run"

        def remove_and_fail() -> None:
            shutil.rmtree(folder)
            fail()

        with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
            train(folder, {moment: remove_and_fail})
        assert note in caught.value.__notes__[0]

    def test_an_error_before_the_first_checkpoint(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stop_at(tmp_path, "update 0")
        assert capsys.readouterr().err == ""
        train(tmp_path, resume=str(tmp_path))
        assert "nothing was saved yet, so the run starts again" in capsys.readouterr().err
        train(tmp_path.with_name("straight"))
        check_same_runs(tmp_path, tmp_path.with_name("straight"))

    def test_a_state_that_is_not_finite_is_not_saved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def spoil() -> None:
            monkeypatch.setattr(torch, "rand", lambda size: torch.full((size,), torch.nan))

        with pytest.raises(FloatingPointError, match=r"state\['total'\]\['value'\] is not finite"):
            train(tmp_path, {"update 1": spoil})
        assert saved_state(tmp_path)["updates"] == 2

    def test_an_algorithm_must_log(self, tmp_path: Path) -> None:
        experiment = Experiment(run_dir=str(tmp_path))
        with TrainingRun.open("test", experiment, WindEnv, SHMModule) as run:
            batches = run.batches(Batches((1.0, 1.0)))  # type: ignore[arg-type]
            next(batches)
            with pytest.raises(RuntimeError, match=r"must call run\.log once per batch"):
                next(batches)


class TestResume:
    @pytest.mark.parametrize("interval", [1, 2])
    def test_repeats_every_bit(self, tmp_path: Path, interval: int) -> None:
        """From the newest checkpoint, with the generators of torch, numpy and python."""
        folder, straight = tmp_path / "run", tmp_path / "straight"
        returns = (1.0, 3.0, 2.0, None, None)
        stop_at(folder, "update 3", returns=returns, checkpoint_interval=interval)
        seconds = [row["seconds"] for row in read_metrics(folder)]
        train(folder, returns=returns, checkpoint_interval=interval, resume=str(folder))
        train(straight, returns=returns, checkpoint_interval=interval)
        check_same_runs(folder, straight)
        assert saved_state(folder)["return"] == 2.0
        # the clock goes on, too
        found = [row["seconds"] for row in read_metrics(folder)]
        assert found[:2] == seconds[:2]
        assert sorted(found, key=float) == found

    def test_a_damaged_newest_checkpoint(self, tmp_path: Path) -> None:
        folder, straight = tmp_path / "run", tmp_path / "straight"
        stop_at(folder, "update 3")
        (newest,) = (folder / "checkpoints").glob("checkpoint-000000000030-*")
        newest.write_bytes(newest.read_bytes()[:-1])
        with pytest.warns(UserWarning, match=f"{newest} is damaged: .* using checkpoint-0*20-"):
            # it would be taken for the newest
            train(folder, {"update 2": lambda: newest.exists() and fail()}, resume=str(folder))
        train(straight)
        check_same_runs(folder, straight)

    def test_a_finished_run_returns_its_summary(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train(tmp_path).folder.write_summary({"frames": 40})
        run = train(tmp_path, {"before": fail}, resume=str(tmp_path))
        assert run.summary == {"frames": 40}
        assert capsys.readouterr().out == '{"frames": 40}\n'

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        """Such as after a change of the package; nothing of what goes on is half loaded."""
        experiment = Experiment(run_dir=str(tmp_path), checkpoint_interval=1)
        with TrainingRun.open("test", experiment, WindEnv, SHMModule) as run:
            collector: Any = Batches((1.0,))
            run.track(operator=torch.nn.Linear(2, 3), collector=collector)
            for _ in run.batches(collector):
                run.log({})
        module = torch.nn.Linear(2, 4)
        before = module.weight.clone()
        experiment = Experiment(resume=str(tmp_path))
        with TrainingRun.open("test", experiment, WindEnv, SHMModule) as run:
            collector = Batches((1.0,))
            run.track(operator=module, collector=collector)
            with pytest.raises(ValueError, match=r"the operator in .* does not fit: bias is"):
                next(run.batches(collector))
        assert torch.equal(module.weight, before)

    def test_parts_of_another_recipe(self, tmp_path: Path) -> None:
        train(tmp_path)
        experiment = Experiment(resume=str(tmp_path))
        with TrainingRun.open("test", experiment, WindEnv, SHMModule) as run:
            run.track(optimizer=Sum())
            with pytest.raises(RuntimeError, match=r"lacks \['optimizer'\]: it is of another rec"):
                next(run.batches(Batches((1.0,))))  # type: ignore[arg-type]


class TestOpen:
    @pytest.mark.parametrize(
        ("memory", "name"),
        [
            (SHMModule, "SHMModule"),
            (partial(SHMModule, memory_size=8), "SHMModule"),
            (make_mlp, "make_mlp"),
            (partial(partial(make_memory, cell=partial(LRU, memory_size=8)), burn_in=1), "LRU"),
        ],
    )
    def test_names_of_plain_objects(self, tmp_path: Path, memory: Any, name: str) -> None:
        env = partial(WindEnv, max_steps=5)
        run = TrainingRun.open("test", Experiment(run_dir=str(tmp_path)), env, memory)
        assert run.names == {"env": "WindEnv", "memory": name}
        assert not (tmp_path / "config.yaml").exists()

    def test_default_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        run = TrainingRun.open("test", Experiment(seed=3), WindEnv, SHMModule)
        assert run.folder.path.match("outputs/test/*/*_SHMModule_seed3")
        assert run.folder.path.exists()

    def test_configuration(self, tmp_path: Path) -> None:
        """Resolved, without the folder from which the run was taken up."""
        values = {"experiment": {"seed": 3, "resume": str(tmp_path)}, "again": "${experiment.seed}"}
        experiment = Experiment(resume=str(tmp_path), names={"env": "a", "memory": "b"})
        run = TrainingRun.open(
            "test", experiment, WindEnv, SHMModule, config=OmegaConf.create(values)
        )
        assert run.names == {"env": "a", "memory": "b"}
        written = OmegaConf.load(tmp_path / "config.yaml")
        assert written == {"experiment": {"seed": 3, "resume": None}, "again": 3}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"resume": "auto"}, "experiment.resume='auto' needs the command line"),
            ({"device": "gpu"}, "experiment.device='gpu' is unknown; use cpu or cuda"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        experiment = Experiment(**{"run_dir": str(tmp_path / "run")} | options)
        with pytest.raises(ValueError, match=message):
            TrainingRun.open("test", experiment, WindEnv, SHMModule)
        assert not (tmp_path / "run").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_no_cuda(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="torch finds no CUDA device; use cpu"):
            TrainingRun.open("test", Experiment(device="cuda"), WindEnv, SHMModule)


class TestSignals:
    @pytest.mark.parametrize("number", STOPS)
    @pytest.mark.parametrize(
        ("moment", "updates"), [("before", None), ("update 0", 1), ("update 3", 4), ("after", 4)]
    )
    def test_a_run_ends_with_whole_updates(
        self, tmp_path: Path, capsys: Any, number: int, moment: str, updates: int | None
    ) -> None:
        """The update that is going on is finished and saved; otherwise the run ends at once."""
        handlers = [signal.getsignal(stop) for stop in STOPS]
        went_on: list[bool] = []

        def interrupt() -> None:
            signal.raise_signal(number)
            went_on.append(True)

        with pytest.raises(SystemExit) as caught:
            train(tmp_path, {moment: interrupt}, checkpoint_interval=100)
        assert caught.value.code == 0
        assert went_on == [True] * moment.startswith("update")
        assert [signal.getsignal(stop) for stop in STOPS] == handlers
        if updates is not None:
            assert saved_state(tmp_path)["updates"] == updates
            said = (
                f"stopped; all up to frame {10 * updates} is saved, go on with experiment.resume="
            )
            assert said in capsys.readouterr().err

    def test_save_and_go_on(self, tmp_path: Path) -> None:
        steps: list[list[int]] = []

        def look() -> None:
            steps.append(RunFolder(tmp_path).checkpoints.steps())

        def save() -> None:
            signal.raise_signal(signal.SIGUSR1)
            # not within the update
            look()

        train(
            tmp_path, {"update 1": save, "update 2": look, "update 3": look}, checkpoint_interval=9
        )
        # once
        assert steps == [[], [20], [20]]

    @pytest.mark.parametrize(
        "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
    )
    def test_the_second_one_ends_at_once(self, tmp_path: Path, number: int) -> None:
        def wait() -> None:
            (tmp_path / "ready").touch()
            # goes on after a signal that raises nothing
            time.sleep(60)

        with Child(lambda: train(tmp_path, {"update 2": wait})) as child:
            wait_until((tmp_path / "ready").exists, child)
            # as Slurm and torchrun do, which both tell a process
            for stop in STOPS:
                child.signal(stop)
            time.sleep(1.1)
            assert child.is_running()
            child.signal(number)
            # by the signal itself
            assert child.wait(5) == -number
        assert saved_state(tmp_path)["updates"] == 2

    def test_two_within_a_second_are_one_request(self, tmp_path: Path) -> None:
        """Also where the second waits for a call that does not come back to Python for long."""

        def wait() -> None:
            (tmp_path / "ready").touch()
            time.sleep(0.5)
            begin = time.monotonic()
            while time.monotonic() - begin < 1.5:
                # of which one call takes seconds
                hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)

        with Child(lambda: train(tmp_path, {"update 2": wait})) as child:
            wait_until((tmp_path / "ready").exists, child)
            child.signal(signal.SIGTERM)
            time.sleep(0.8)
            child.signal(signal.SIGINT)
            assert child.wait(30) == 0
        assert saved_state(tmp_path)["updates"] == 3

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
    def test_a_handler_of_the_process_gets_its_signal(self, tmp_path: Path, number: int) -> None:
        """At once, or when all is saved; it decides what becomes of the run."""
        seen: list[list[int]] = []

        def look(*_: object) -> None:
            seen.append(RunFolder(tmp_path).checkpoints.steps())
            if len(seen) == 3:
                raise SystemExit(144)

        def interrupt() -> None:
            before = len(seen)
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert len(seen) == before

        before = signal.signal(number, look)
        moments = {"before": lambda: signal.raise_signal(number)} | dict.fromkeys(
            ("update 1", "update 2"), interrupt
        )
        try:
            with pytest.raises(SystemExit) as caught:
                train(tmp_path, moments, checkpoint_interval=100)
            assert signal.getsignal(number) is look
        finally:
            signal.signal(number, before)
        assert caught.value.code == 144
        assert seen == [[], [20], [20, 30]]

    @pytest.mark.parametrize("number", STOPS)
    def test_a_buffer_on_disk_leaves_signals_to_the_run(self, tmp_path: Path, number: int) -> None:
        """TorchRL sets handlers with the first one, which would kill the process."""

        def train_beside_a_buffer() -> None:
            buffer = TensorDictReplayBuffer(storage=LazyMemmapStorage(2, auto_cleanup=True))
            buffer.extend(TensorDict({"x": torch.zeros(2)}, [2]))
            train(tmp_path, {"update 1": lambda: signal.raise_signal(number)})

        with Child(train_beside_a_buffer) as child:
            assert child.wait() == 0
        assert saved_state(tmp_path)["updates"] == 2

    def test_other_threads_leave_signals_alone(self, tmp_path: Path) -> None:
        before = [signal.getsignal(stop) for stop in STOPS]
        within: list[Any] = []

        def look() -> None:
            within.extend(signal.getsignal(stop) for stop in STOPS)

        thread = threading.Thread(target=train, args=(tmp_path, {"update 1": look}))
        thread.start()
        thread.join()
        assert within == before
        assert saved_state(tmp_path)["updates"] == 4

    @pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.slow)])
    def test_at_random_moments(self, tmp_path: Path, times: int) -> None:
        """Updates only save, so that most signals come while files are written."""
        draw = random.Random(0)
        for i in range(times):
            folder = tmp_path / str(i)
            with Child(lambda folder=folder: train(folder, returns=(1.0,) * 100_000)) as child:
                wait_until(lambda folder=folder: (folder / "metrics.csv").exists(), child)
                time.sleep(draw.uniform(0, 0.05))
                child.signal(draw.choice(STOPS))
                assert child.wait(10) == 0
            state = saved_state(folder)
            assert state["updates"] == len(read_metrics(folder)) == state["frames"] / 10
            assert state["metrics"] == (folder / "metrics.csv").read_text()
