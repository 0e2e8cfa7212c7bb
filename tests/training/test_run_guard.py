"""Whatever ends a run, the state after its last whole update is on the disk."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests._processes import Child, wait_until
from torchrl_shm.training import RunFolder, RunGuard

STOPS = (signal.SIGINT, signal.SIGTERM)


class Counter:
    """A part whose state is the number of updates, and who looks at it."""

    def __init__(self) -> None:
        self.value = torch.zeros(3)
        self.on_save: Callable[[], object] = lambda: None

    def state_dict(self) -> dict[str, Any]:
        self.on_save()
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict["value"].clone()


def guarded(path: Path, *, interval: int = 20) -> tuple[RunGuard, Counter]:
    counter = Counter()
    return RunGuard(RunFolder(path), {"counter": counter}, interval=interval), counter


def update(guard: RunGuard, counter: Counter, value: float = 0.5) -> None:
    # in place, as an optimiser does
    counter.value += 1
    done = guard.updates + 1
    guard.end_update({"frames": 10 * done, "seconds": done / 4, "return": value})


def saved(path: Path) -> int:
    """The number of updates in the newest checkpoint."""
    state = RunFolder(path).load_checkpoint()
    assert (state["counter"]["value"] == state["updates"]).all()
    assert state["frames"] == 10 * state["updates"]
    assert state["metrics"].count("\n") == (state["updates"] + 1 if state["updates"] else 0)
    return state["updates"]


class TestSaving:
    def test_interval(self, tmp_path: Path) -> None:
        guard, counter = guarded(tmp_path, interval=2)
        with guard:
            for _ in range(5):
                update(guard, counter)
            assert guard.run.checkpoints.steps() == [20, 40]
            guard.save()
            assert guard.run.checkpoints.steps() == [20, 40, 50]
        assert saved(tmp_path) == 5

    @pytest.mark.parametrize("interval", [0, -1])
    def test_no_interval(self, tmp_path: Path, interval: int) -> None:
        with pytest.raises(ValueError, match=f"interval={interval} must be at least 1"):
            guarded(tmp_path, interval=interval)

    def test_an_error_saves_the_last_whole_update(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        guard, counter = guarded(tmp_path)

        def run() -> None:
            with guard:
                for _ in range(3):
                    update(guard, counter)
                # half done
                counter.value += 0.5
                raise ZeroDivisionError("by hand")

        with pytest.raises(ZeroDivisionError, match="by hand"):
            run()
        assert saved(tmp_path) == 3
        said = f"stopped after update 3, frame 30, which is saved; go on with resume={tmp_path}\n"
        assert capsys.readouterr().err == said

    def test_an_error_before_the_first_update(self, tmp_path: Path) -> None:
        guard, _ = guarded(tmp_path)
        with pytest.raises(ZeroDivisionError), guard:
            raise ZeroDivisionError
        assert saved(tmp_path) == 0

    def test_a_state_that_is_not_finite_is_not_remembered(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        guard, counter = guarded(tmp_path)

        def run() -> None:
            with guard:
                for i in range(3):
                    counter.value[1] += torch.nan if i == 2 else 0
                    update(guard, counter)

        with pytest.raises(FloatingPointError, match=r"state\['counter'\]\['value'\] is not fin"):
            run()
        assert saved(tmp_path) == 2
        assert "stopped after update 2, frame 20, which is saved" in capsys.readouterr().err

    def test_the_best_is_the_one_of_the_highest_return(self, tmp_path: Path) -> None:
        guard, counter = guarded(tmp_path, interval=1)
        with guard:
            for value in (1.0, 5.0, float("nan"), 2.0, 1.0, 0.0):
                update(guard, counter, value)
        # the third, in which no episode ended, counts as the second, and is newer
        assert guard.run.checkpoints.steps() == [30, 40, 50, 60]
        assert RunFolder(tmp_path).load_checkpoint("best")["updates"] == 3

    def test_no_room(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        guard, counter = guarded(tmp_path)

        def run() -> None:
            with guard:
                update(guard, counter)
                (tmp_path / "checkpoints").write_text("in the way")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run()
        message = "stopped after update 1, frame 10, whose state could not be saved: "
        assert message in capsys.readouterr().err


class TestRestore:
    def test_nothing_to_restore(self, tmp_path: Path) -> None:
        guard, _ = guarded(tmp_path)
        assert not guard.restore()
        assert (guard.updates, guard.frames, guard.seconds) == (0, 0, 0.0)

    def test_all_parts_and_generators(self, tmp_path: Path) -> None:
        def draw() -> tuple[float, float, float]:
            return random.random(), float(np.random.rand()), float(torch.rand(()))

        guard, counter = guarded(tmp_path)
        with guard:
            for _ in range(3):
                update(guard, counter, 1.5)
            guard.save()
        expected = draw()
        again, other = guarded(tmp_path)
        assert again.restore()
        assert draw() == expected
        assert (again.updates, again.frames, again.seconds) == (3, 30, 0.75)
        assert (other.value == 3).all()
        with again:
            # of the updates before this process
            update(again, other, float("nan"))
            again.save()
        assert RunFolder(tmp_path).load_checkpoint()["return"] == 1.5
        assert (tmp_path / "metrics.csv").read_text().count("\n") == 5

    def test_a_newer_damaged_checkpoint_goes(self, tmp_path: Path) -> None:
        guard, counter = guarded(tmp_path, interval=1)
        with guard:
            for _ in range(3):
                update(guard, counter)
        newest = tmp_path / "checkpoints" / "checkpoint-000000000030"
        (newest / "manifest.json").write_text("{}")
        again, _ = guarded(tmp_path, interval=1)
        with pytest.warns(UserWarning, match=f"{newest} is damaged"):
            again.restore()
        assert again.updates == 2
        assert (tmp_path / "metrics.csv").read_text().count("\n") == 3
        # it would be taken for the newest
        assert not newest.exists()


class TestSignals:
    @pytest.mark.parametrize("number", STOPS)
    def test_within_an_update(self, tmp_path: Path, number: int) -> None:
        before = [signal.getsignal(stop) for stop in STOPS]
        guard, counter = guarded(tmp_path)

        def run() -> None:
            with guard:
                update(guard, counter)
                counter.value += 0.5
                try:
                    signal.raise_signal(number)
                except Exception:
                    pytest.fail("a signal is no error")
                pytest.fail("the run went on")

        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 0
        assert saved(tmp_path) == 1
        # what was there before is there again
        assert [signal.getsignal(stop) for stop in STOPS] == before

    @pytest.mark.parametrize("number", STOPS)
    def test_while_a_state_is_remembered(self, tmp_path: Path, number: int) -> None:
        """It waits until the state is whole."""
        guard, counter = guarded(tmp_path)

        def run() -> None:
            with guard:
                update(guard, counter)
                counter.on_save = lambda: signal.raise_signal(number)
                update(guard, counter)
                pytest.fail("the run went on")

        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 0
        assert saved(tmp_path) == 2

    def test_clean_up_that_fails_on_the_way(self, tmp_path: Path) -> None:
        """As `with parameters.to_module(...)` of tensordict does with anything that is raised."""
        guard, counter = guarded(tmp_path)

        def run() -> None:
            with guard:
                update(guard, counter)
                try:
                    signal.raise_signal(signal.SIGTERM)
                finally:
                    raise ZeroDivisionError

        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 0
        assert saved(tmp_path) == 1

    def test_what_cannot_be_saved_is_no_success(self, tmp_path: Path) -> None:
        guard, counter = guarded(tmp_path)

        def run() -> None:
            with guard:
                update(guard, counter)
                (tmp_path / "checkpoints").write_text("in the way")
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 1

    def test_save_and_go_on(self, tmp_path: Path) -> None:
        guard, counter = guarded(tmp_path)
        with guard:
            update(guard, counter)
            signal.raise_signal(signal.SIGUSR1)
            # not in the middle of an update
            assert guard.run.checkpoints.steps() == []
            update(guard, counter)
            assert saved(tmp_path) == 2
            update(guard, counter)
            # once
            assert guard.run.checkpoints.steps() == [20]
        assert guard.updates == 3

    @pytest.mark.parametrize("number", STOPS)
    def test_the_second_one_ends_at_once(self, tmp_path: Path, number: int) -> None:
        def run() -> None:
            guard, counter = guarded(tmp_path)
            with guard:
                update(guard, counter)
                guard.save()
                (tmp_path / "ready").touch()
                counter.on_save = lambda: time.sleep(60)
                update(guard, counter)

        with Child(run) as child:
            wait_until((tmp_path / "ready").exists, child)
            time.sleep(0.05)
            child.signal(number)
            time.sleep(0.1)
            assert child.process.is_alive()
            child.signal(number)
            # by the signal itself
            assert child.wait(5) == -number
        assert saved(tmp_path) == 1

    def test_other_threads_leave_signals_alone(self, tmp_path: Path) -> None:
        before = [signal.getsignal(stop) for stop in STOPS]
        within: list[Any] = []

        def run() -> None:
            guard, counter = guarded(tmp_path)
            with guard:
                update(guard, counter)
                within.extend(signal.getsignal(stop) for stop in STOPS)
                guard.save()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert within == before
        assert saved(tmp_path) == 1

    @pytest.mark.parametrize("seed", range(3))
    def test_20_at_random_moments(self, tmp_path: Path, seed: int) -> None:
        """Updates that do nothing but save: most signals come while something is written."""
        draw = random.Random(seed)
        for i in range(20):
            path = tmp_path / str(i)

            def run(path: Path = path) -> None:
                guard, counter = guarded(path, interval=1)
                with guard:
                    while True:
                        update(guard, counter)

            with Child(run) as child:
                wait_until((path / "checkpoints" / "checkpoint-000000000010").exists, child)
                time.sleep(draw.uniform(0, 0.02))
                child.signal(draw.choice(STOPS))
                assert child.wait(10) == 0
            found = saved(path)
            # the file may have a row more, but never a part of one
            assert found + 1 <= (path / "metrics.csv").read_text().count("\n") <= found + 2

    def test_the_folder_is_free_afterwards(self, tmp_path: Path) -> None:
        run = RunFolder.create(tmp_path)
        with RunGuard(run, {"counter": Counter()}):
            pass
        RunFolder.create(tmp_path, resume=True).close()


def test_the_last_updates_are_saved_without_being_asked(tmp_path: Path) -> None:
    counter = Counter()
    with RunGuard(RunFolder(tmp_path), {"counter": counter}, interval=100) as guard:
        for update in range(3):
            guard.end_update({"frames": update + 1, "seconds": 0.0, "return": 0.0})
    again = RunGuard(RunFolder(tmp_path), {"counter": Counter()})
    assert (again.restore(), again.updates) == (True, 3)


def test_other_parts_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with RunGuard(RunFolder(tmp_path), {"counter": Counter()}):
        pass
    with pytest.raises(RuntimeError, match=r"lacks \['optimizer'\]: it is of another recipe"):
        RunGuard(RunFolder(tmp_path), {"counter": Counter(), "optimizer": Counter()}).restore()
