"""A checkpoint is whole or absent, and what was altered is noticed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import random
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests._disks import small_disk
from tests._processes import Child, wait_until
from torchrl_shm.training import Checkpoints


def state_of(step: int, size: int = 1000) -> dict[str, Any]:
    return {"tensor": torch.full((size,), float(step)), "step": step, "of": {"text": ["a", None]}}


def check_state(state: dict[str, Any], step: int) -> None:
    assert (state["step"], state["of"]) == (step, {"text": ["a", None]})
    assert (state["tensor"] == step).all()


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def craft(path: Path, content: Any) -> None:
    """Replace a checkpoint as an attacker would, with a name that fits the content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    path.unlink()
    path.with_name(f"{path.stem.rpartition('-')[0]}-{digest}.pt").write_bytes(buffer.getvalue())


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run", keep=2)


@pytest.fixture
def newest(checkpoints: Checkpoints) -> Path:
    """The newest of two checkpoints; the other one is the best."""
    checkpoints.save(state_of(1), step=1, metric=2.0)
    return checkpoints.save(state_of(2), step=2, metric=1.0)


class TestSave:
    def test_round_trip(self, checkpoints: Checkpoints) -> None:
        linear = torch.nn.Linear(2, 3)
        optimizer = torch.optim.Adam(linear.parameters())
        linear(torch.ones(2)).sum().backward()
        optimizer.step()
        state = {"model": linear.state_dict(), "optimizer": optimizer.state_dict(), "frames": 3}
        path = checkpoints.save(state, step=3)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path == checkpoints.directory / f"checkpoint-000000000003-{digest[:16]}.pt"
        loaded = checkpoints.load()
        assert loaded["frames"] == 3
        torch.testing.assert_close(loaded["model"], linear.state_dict(), rtol=0, atol=0)
        torch.optim.Adam(torch.nn.Linear(2, 3).parameters()).load_state_dict(loaded["optimizer"])

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_nonfinite_values_are_never_written(
        self, checkpoints: Checkpoints, value: float
    ) -> None:
        tensors = {"net": {"a": torch.ones(2)}, "list": [torch.tensor([0]), (torch.ones(3),)]}
        tensors["list"][1][0][2] = value
        with pytest.raises(FloatingPointError, match=r"state\['list'\]\[1\]\[0\] is not finite"):
            checkpoints.save(tensors, step=1)
        with pytest.raises(FloatingPointError, match=r"state\['lr'\] is not finite"):
            checkpoints.save({"lr": value}, step=1)
        assert not checkpoints.directory.exists()

    def test_keep_is_positive(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="keep=0 must be at least 1"):
            Checkpoints(tmp_path, keep=0)


class TestRotation:
    def test_the_newest_and_the_best_are_kept(self, checkpoints: Checkpoints) -> None:
        for step, metric in enumerate([None, 0.5, 3.0, float("nan"), 3.0, 1.0]):
            checkpoints.save(state_of(step), step=step, metric=metric)
        assert checkpoints.steps() == [4, 5]
        check_state(checkpoints.load(), 5)
        check_state(checkpoints.load("best"), 2)
        names = sorted(path.name[:-20] for path in checkpoints.directory.iterdir())
        assert names == ["best-000000000002", "checkpoint-000000000004", "checkpoint-000000000005"]

    def test_a_step_that_is_saved_again_is_replaced(self, checkpoints: Checkpoints) -> None:
        checkpoints.save(state_of(1), step=7)
        checkpoints.save(state_of(2), step=7)
        check_state(checkpoints.load(), 2)
        assert len(list(checkpoints.directory.iterdir())) == 1

    def test_without_a_metric_the_best_is_the_newest(self, checkpoints: Checkpoints) -> None:
        for step in (1, 2):
            checkpoints.save(state_of(step), step=step)
        check_state(checkpoints.load("best"), 2)

    def test_clean(self, checkpoints: Checkpoints, newest: Path) -> None:
        """It removes leftovers and what comes after a step, and nothing of others."""
        best = checkpoints.save(state_of(3), step=3, metric=3.0)
        folder = checkpoints.directory
        for name in (f"{newest.name}.part", "notes.txt", "checkpoint-of-mine.pt"):
            (folder / name).touch()
        checkpoints.clean()
        assert {path.name for path in folder.iterdir()} == {
            newest.name, best.name, best.name.replace("checkpoint", "best"), "notes.txt",
            "checkpoint-of-mine.pt",
        }  # fmt: skip
        checkpoints.clean(after=2)
        assert {path.name for path in folder.iterdir()} == {
            newest.name, "notes.txt", "checkpoint-of-mine.pt",
        }  # fmt: skip


class TestCrash:
    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_the_old_one_stays_until_the_new_one_is_whole(
        self, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        checkpoints.save(state_of(1), step=1)

        def crash(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, call, crash)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(state_of(2), step=2)
        check_state(checkpoints.load(), 1)
        checkpoints.save(state_of(2), step=2)
        check_state(checkpoints.load(), 2)

    @pytest.mark.parametrize("kills", [15, pytest.param(100, marks=pytest.mark.slow)])
    def test_kills(self, tmp_path: Path, checkpoints: Checkpoints, kills: int) -> None:
        """What `save` had returned is never lost, whatever the next one was doing."""
        draw = random.Random(0)
        inside = 0
        for kill in range(kills):
            first = kill * 1_000_000
            marks = tmp_path / f"marks-{kill}"

            def save_until_killed(first: int = first, marks: Path = marks) -> None:
                checkpoints.clean()
                with open(marks, "wb", buffering=0) as file:
                    for step in range(first, first + 1_000_000):
                        file.write(b"<")
                        checkpoints.save(state_of(step, 100_000), step=step, metric=-abs(step % 7))
                        file.write(b">")

            with Child(save_until_killed) as child:
                wait_until(lambda marks=marks: marks.exists() and b">" in marks.read_bytes())
                time.sleep(draw.uniform(0, 0.03))
                child.process.kill()
                child.wait()
            inside += marks.read_bytes().endswith(b"<")
            # a warning of a damaged one would be an error
            for which, least in (
                ("latest", first + marks.read_bytes().count(b">") - 1),
                ("best", 0),
            ):
                found = checkpoints.load(which)
                check_state(found, found["step"])
                assert found["step"] >= least
        # or the kills showed nothing
        assert inside > kills // 2


def damage(data: bytearray, draw: random.Random) -> None:
    """Change some bytes at random."""
    at = draw.randrange(len(data))
    match draw.choice(["bit", "byte", "block", "truncation", "insertion", "zeros"]):
        case "bit":
            data[at] ^= 1 << draw.randrange(8)
        case "byte":
            data[at] ^= draw.randrange(1, 256)
        case "block":
            end = min(at + draw.randrange(1, 600), len(data))
            data[at:end] = draw.randbytes(end - at)
        case "truncation":
            del data[at:]
        case "insertion":
            data[at:at] = draw.randbytes(draw.randrange(1, 50))
        case _:
            data[at:] = bytes(len(data) - at)


class TestDamage:
    def test_1000_corruptions(self, checkpoints: Checkpoints, newest: Path) -> None:
        """Each is named and the one before is used, or nothing that is read was changed."""
        draw, whole = random.Random(0), newest.read_bytes()
        detected = 0
        for _ in range(1000):
            data = bytearray(whole)
            damage(data, draw)
            newest.write_bytes(data)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                state = checkpoints.load()
            check_state(state, 1 if caught else 2)
            detected += len(caught)
        # bytes of zeros may have been zeros before
        assert detected > 950

    def test_the_best_one(self, checkpoints: Checkpoints, newest: Path) -> None:
        """The newest stands in, and the next one that is saved with a metric is the best."""
        (best,) = checkpoints.directory.glob("best-*")
        flip(best)
        with pytest.warns(UserWarning, match=f"{best} is damaged: .*; using {newest.name}"):
            check_state(checkpoints.load("best"), 2)
        checkpoints.save(state_of(3), step=3, metric=0.0)
        check_state(checkpoints.load("best"), 3)

    def test_messages(self, checkpoints: Checkpoints, newest: Path) -> None:
        (before,) = checkpoints.directory.glob("checkpoint-000000000001-*")
        flip(newest)
        with pytest.warns(
            UserWarning, match=f"{newest} is damaged: it is not .*; using {before.name}"
        ):
            check_state(checkpoints.load(), 1)
        flip(before)
        with pytest.raises(
            RuntimeError, match=rf"no checkpoint can be used: .*{newest} is.*{before}"
        ):
            checkpoints.load()

    def test_none(self, checkpoints: Checkpoints) -> None:
        message = r"run holds no checkpoint: .*experiment\.checkpoint_interval"
        with pytest.raises(FileNotFoundError, match=message):
            checkpoints.load()
        assert not checkpoints.directory.exists()


def test_a_file_with_code_is_refused(
    tmp_path: Path, checkpoints: Checkpoints, newest: Path
) -> None:
    """Even if its name fits its content."""
    for path in list(checkpoints.directory.iterdir()):
        craft(path, {"state": Bomb(tmp_path / "exploded"), "metric": 9.0})
    for which in ("latest", "best"):
        with pytest.raises(pickle.UnpicklingError, match="holds more than data and is refused"):
            checkpoints.load(which)
    # a save reads the metric of the best one
    checkpoints.save(state_of(3), step=3, metric=1.0)
    check_state(checkpoints.load("best"), 3)
    assert not (tmp_path / "exploded").exists()


class TestDisk:
    def test_a_file_that_may_not_grow(self, tmp_path: Path, checkpoints: Checkpoints) -> None:
        checkpoints.save(state_of(1), step=1)

        def save() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            checkpoints.save(state_of(2, 100_000), step=2)

        with Child(save, tmp_path / "out") as child:
            assert child.wait() == 1
            assert "cannot write checkpoint-000000000002-" in child.text()
            assert "free some space, or choose another folder" in child.text()
        assert [path.name[:23] for path in checkpoints.directory.iterdir()] == [
            "checkpoint-000000000001"
        ]
        checkpoints.save(state_of(2, 100_000), step=2)
        check_state(checkpoints.load(), 2)

    def test_full_disk(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "64k") as disk:
            checkpoints = Checkpoints(disk / "run", keep=99)

            def fill() -> None:
                for step in range(99):
                    checkpoints.save(state_of(step), step=step)

            with pytest.raises(OSError, match="cannot write checkpoint-") as caught:
                fill()
            assert caught.value.errno == errno.ENOSPC
            check_state(checkpoints.load(), checkpoints.steps()[-1])
            assert not list((disk / "run").glob("*.part"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
    @pytest.mark.usefixtures("newest")
    def test_read_only_folder(self, checkpoints: Checkpoints) -> None:
        checkpoints.directory.chmod(0o500)
        with pytest.raises(PermissionError, match="cannot write checkpoint-000000000003"):
            checkpoints.save(state_of(3), step=3)
        check_state(checkpoints.load(), 2)
        checkpoints.directory.chmod(0o700)
