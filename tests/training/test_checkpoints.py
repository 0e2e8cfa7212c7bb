"""A checkpoint is whole or absent, and what was altered is noticed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests._disks import small_disk
from tests._processes import Child, wait_until
from torchrl_shm.training import Checkpoints
from torchrl_shm.training.checkpoints import check_finite_state

STATE = "components/0000-state/state.pt"
FILES = ("SHA256SUMS", "manifest.json", STATE)


def state_of(step: int, size: int = 1000) -> dict[str, Any]:
    return {"tensor": torch.full((size,), float(step)), "step": step, "of": {"text": ["a", None]}}


def check_state(state: dict[str, Any], step: int) -> None:
    assert (state["step"], state["of"]) == (step, {"text": ["a", None]})
    assert (state["tensor"] == step).all()


def write_sums(path: Path) -> None:
    """As somebody would who altered a file on purpose."""
    names = ("manifest.json", STATE)
    sums = (hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names)
    text = "".join(f"{digest}  {name}\n" for digest, name in zip(sums, names, strict=True))
    (path / "SHA256SUMS").write_text(text)


def flip(path: Path, at: int, mask: int = 0xFF) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


class TestSave:
    def test_round_trip(self, tmp_path: Path) -> None:
        linear = torch.nn.Linear(2, 3)
        optimizer = torch.optim.Adam(linear.parameters())
        linear(torch.ones(2)).sum().backward()
        optimizer.step()
        state = {"model": linear.state_dict(), "optimizer": optimizer.state_dict(), "frames": 3}
        path = Checkpoints(tmp_path).save(state, step=3)
        assert path == tmp_path / "checkpoint-000000000003"
        loaded = Checkpoints(tmp_path).load()
        assert loaded["frames"] == 3
        torch.testing.assert_close(loaded["model"], linear.state_dict(), rtol=0, atol=0)
        torch.optim.Adam(torch.nn.Linear(2, 3).parameters()).load_state_dict(loaded["optimizer"])

    def test_others_read_it_too(self, tmp_path: Path) -> None:
        path = Checkpoints(tmp_path).save(state_of(1), step=1, metric=0.5)
        assert {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} == {
            *FILES
        }
        command = ["sha256sum", "--check", "SHA256SUMS"]
        assert subprocess.run(command, cwd=path, capture_output=True, check=False).returncode == 0
        assert json.loads((path / "manifest.json").read_text())["metadata"] == {"metric": 0.5}

    def test_a_whole_checkpoint_stays_and_a_damaged_one_is_written_anew(
        self, tmp_path: Path
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        path = checkpoints.save(state_of(1), step=1)
        checkpoints.save(state_of(2), step=1)
        check_state(checkpoints.load(), 1)
        flip(path / STATE, 40)
        checkpoints.save(state_of(2), step=1)
        check_state(checkpoints.load(), 2)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_numbers_that_are_not_finite_are_never_written(
        self, tmp_path: Path, value: float
    ) -> None:
        state = {"net": {"weight": torch.ones(2)}, "list": [torch.tensor([0, 1]), (torch.ones(3),)]}
        check_finite_state(state)
        state["list"][1][0][2] = value
        with pytest.raises(FloatingPointError, match=r"state\['list'\]\[1\]\[0\] is not finite"):
            Checkpoints(tmp_path / "run").save(state, step=1)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("keep", [0, -1])
    def test_keep(self, tmp_path: Path, keep: int) -> None:
        with pytest.raises(ValueError, match=f"keep={keep} must be at least 1"):
            Checkpoints(tmp_path, keep=keep)


class TestRotation:
    def test_the_newest_and_the_best_are_kept(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, keep=2)
        for step, metric in enumerate([None, 0.5, 3.0, float("nan"), -1.0, 1.0]):
            checkpoints.save(state_of(step), step=step, metric=metric)
        assert checkpoints.steps() == [2, 4, 5]
        check_state(checkpoints.load(), 5)
        check_state(checkpoints.load("best"), 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"checkpoint-{step:012d}" for step in (2, 4, 5)
        ]

    def test_the_best_in_a_relative_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        checkpoints = Checkpoints("run/checkpoints")
        for step, metric in enumerate([3.0, 0.5]):
            checkpoints.save(state_of(step), step=step, metric=metric)
        check_state(checkpoints.load("best"), 0)
        check_state(checkpoints.load("latest"), 1)

    def test_the_best_of_unknown_ones_is_the_newest(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.save(state_of(step), step=step)
        check_state(checkpoints.load("best"), 2)

    def test_of_equals_the_newest_is_the_best(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, keep=1)
        for step in (1, 2, 3):
            checkpoints.save(state_of(step), step=step, metric=float(step < 3))
        assert checkpoints.steps() == [2, 3]

    def test_clean_and_clear(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path / "run")
        for step in (1, 2, 3):
            checkpoints.save(state_of(step), step=step)
        for name in (".checkpoint-000000000004.part", ".checkpoint-000000000000.delete-1"):
            (tmp_path / "run" / name).mkdir()
        checkpoints.clean(after=2)
        assert sorted(path.name[-1] for path in (tmp_path / "run").iterdir()) == ["1", "2"]
        checkpoints.clear()
        assert not (tmp_path / "run").exists()
        assert checkpoints.steps() == []


class TestCrash:
    @pytest.mark.parametrize("call", ["fsync", "rename"])
    def test_the_old_one_stays_until_the_new_one_is_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(state_of(1), step=1)

        def crash(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, call, crash)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(state_of(2), step=2)
        assert checkpoints.steps() == [1]
        check_state(checkpoints.load(), 1)
        # what the crash left behind is in nobody's way
        checkpoints.save(state_of(2), step=2)
        check_state(checkpoints.load(), 2)
        assert {path.name[0] for path in tmp_path.iterdir()} == {"c"}

    def test_what_cannot_be_written_leaves_the_old_one(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(state_of(1), step=1)
        with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
            checkpoints.save({"file": io.TextIOWrapper(io.BytesIO())}, step=2)
        check_state(checkpoints.load(), 1)

    def test_content_is_on_disk_before_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a power cut leaves cannot be tried here, the order of the calls can."""
        calls: list[tuple[str, str]] = []
        fsync, rename = os.fsync, os.rename

        def flush(descriptor: int) -> None:
            calls.append(("flush", os.path.realpath(f"/proc/self/fd/{descriptor}")))
            fsync(descriptor)

        def move(old: Path, new: Path) -> None:
            calls.append(("rename", str(new)))
            rename(old, new)

        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(os, "rename", move)
        path = Checkpoints(tmp_path).save(state_of(1), step=1)
        stage = path.with_name(f".{path.name}.part")
        inside = (stage, stage / "components", stage / "components" / "0000-state")
        folders = (tmp_path.parent, *inside)
        flushed = {("flush", str(x)) for x in (*(stage / name for name in FILES), *folders)}
        assert set(calls[:-2]) == flushed
        assert calls[-2:] == [("rename", str(path)), ("flush", str(tmp_path))]

    def test_100_kills(self, tmp_path: Path) -> None:
        """What `save` had returned is never lost, whatever the next one was doing."""
        draw = random.Random(0)
        inside = lost = 0
        for kill in range(100):
            checkpoints = Checkpoints(tmp_path / "run", keep=2)
            first = kill * 1_000_000
            saved = tmp_path / f"saved-{kill}"

            def save_until_killed(
                checkpoints: Checkpoints = checkpoints, first: int = first, saved: Path = saved
            ) -> None:
                checkpoints.clean()
                with open(saved, "wb", buffering=0) as file:
                    for step in range(first, first + 1_000_000):
                        file.write(b"<")
                        checkpoints.save(state_of(step, 100_000), step=step, metric=-abs(step % 7))
                        file.write(b">")

            with Child(save_until_killed) as child:
                wait_until(lambda saved=saved: saved.exists() and b">" in saved.read_bytes())
                time.sleep(draw.uniform(0, 0.03))
                child.process.kill()
                child.wait()
            marks = saved.read_bytes()
            inside += marks.endswith(b"<")
            # a warning of a damaged one would be an error
            found = checkpoints.load()
            check_state(found, found["step"])
            lost += found["step"] < first + marks.count(b">") - 1
        assert lost == 0
        # or the kills showed nothing
        assert inside > 50


KINDS = ("bit", "byte", "block", "truncation", "insertion", "zeros", "gone")


class Corruption:
    """Damage one file of a checkpoint at random."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def __call__(self, path: Path) -> str:
        file = path / self.draw.choice(FILES)
        data = bytearray(file.read_bytes())
        at = self.draw.randrange(len(data))
        kind = self.draw.choice(
            ["bit", "byte", "block", "truncation", "insertion", "zeros", "gone"]
        )
        match kind:
            case "bit":
                data[at] ^= 1 << self.draw.randrange(8)
            case "byte":
                data[at] ^= self.draw.randrange(1, 256)
            case "block":
                end = min(at + self.draw.randrange(1, 600), len(data))
                data[at:end] = self.draw.randbytes(end - at)
            case "truncation":
                del data[at:]
            case "insertion":
                data[at:at] = self.draw.randbytes(self.draw.randrange(1, 50))
            case "zeros":
                data[at:] = bytes(len(data) - at)
            case _:
                file.unlink()
                return kind
        file.write_bytes(data)
        return kind


class TestDamage:
    @pytest.fixture
    def two(self, tmp_path: Path) -> tuple[Checkpoints, Path]:
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(state_of(1), step=1, metric=2.0)
        return checkpoints, checkpoints.save(state_of(2), step=2, metric=1.0)

    def test_1000_corruptions(
        self, two: tuple[Checkpoints, Path], tmp_path: Path, record_property: Any
    ) -> None:
        """Each is named and the one before is used, or nothing that is read was changed."""
        checkpoints, path = two
        whole = tmp_path / "whole"
        shutil.copytree(path, whole)
        outcomes: Counter[str] = Counter()
        corrupt = Corruption(seed=0)
        for _ in range(1000):
            shutil.rmtree(path)
            shutil.copytree(whole, path)
            corrupt(path)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                state = checkpoints.load()
            if caught:
                (warning,) = caught
                assert f"{path} is damaged: " in str(warning.message)
                assert "using checkpoint-000000000001" in str(warning.message)
                check_state(state, 1)
                outcomes["detected"] += 1
            else:
                check_state(state, 2)
                outcomes["harmless"] += 1
        record_property("outcomes", dict(outcomes))
        assert outcomes.total() == 1000
        assert outcomes["detected"] > 950

    @pytest.mark.parametrize("name", FILES)
    def test_every_file_is_guarded(self, two: tuple[Checkpoints, Path], name: str) -> None:
        checkpoints, path = two
        # in SHA256SUMS a digit of the hash of the manifest
        flip(path / name, 10, mask=1)
        with pytest.warns(UserWarning, match=f"{path} is damaged: .*is not what was written; us"):
            check_state(checkpoints.load(), 1)
        (path / name).unlink()
        with pytest.warns(UserWarning, match=f"{path} is damaged: {name} is missing; using"):
            check_state(checkpoints.load(), 1)

    def test_unexpected_names_are_refused(self, two: tuple[Checkpoints, Path]) -> None:
        checkpoints, path = two
        with open(path / "SHA256SUMS", "a") as file:
            file.write(f"{'0' * 64}  ../../secret\n")
        with pytest.warns(UserWarning, match="SHA256SUMS was altered"):
            check_state(checkpoints.load(), 1)

    def test_a_damaged_best_one_is_named(self, two: tuple[Checkpoints, Path]) -> None:
        checkpoints, path = two
        best = path.with_name("checkpoint-000000000001")
        flip(best / STATE, 100)
        with pytest.warns(UserWarning, match=f"{best} is damaged"):
            check_state(checkpoints.load("best"), 2)

    def test_all_damaged(self, two: tuple[Checkpoints, Path]) -> None:
        checkpoints, path = two
        for step in (1, 2):
            flip(path.with_name(f"checkpoint-{step:012d}") / STATE, 100)
        with pytest.raises(RuntimeError, match=r"no checkpoint can be used: .*2 is damaged.*1 is"):
            checkpoints.load()

    def test_none(self, tmp_path: Path) -> None:
        message = r"run holds no checkpoint: .*algo\.checkpoint_interval"
        with pytest.raises(FileNotFoundError, match=message):
            Checkpoints(tmp_path / "run").load()
        assert list(tmp_path.iterdir()) == []


class TestCode:
    """A checkpoint from somebody else runs nothing, even if its hashes are right."""

    def test_pickle(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "exploded"),)

        checkpoints = Checkpoints(tmp_path / "run")
        path = checkpoints.save(state_of(1), step=1)
        torch.save({"state": Bomb()}, path / STATE)
        write_sums(path)
        with pytest.raises(pickle.UnpicklingError, match="holds more than data and is refused"):
            checkpoints.load()
        assert not (tmp_path / "exploded").exists()

    def test_manifest_that_names_another_format(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path / "run")
        path = checkpoints.save(state_of(1), step=1)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["components"]["state"] |= {"adapter": "os.system", "path": "../../elsewhere"}
        (path / "manifest.json").write_text(json.dumps(manifest))
        write_sums(path)
        # it says nothing about what is read
        check_state(checkpoints.load(), 1)


class TestDisk:
    def test_no_room(self, tmp_path: Path) -> None:
        """A file may not grow beyond a limit, as on a disk that is full."""
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(state_of(1), step=1)

        def save() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            try:
                checkpoints.save(state_of(2, 100_000), step=2)
            except OSError as error:
                print(error.errno, error)
                raise SystemExit(3) from None

        with Child(save, tmp_path / "out") as child:
            assert child.wait() == 3
            assert "cannot write the checkpoint of step 2" in child.text()
            assert "that of step 1 is kept. Make room" in child.text()
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-000000000001"}
        check_state(checkpoints.load(), 1)
        checkpoints.save(state_of(2, 100_000), step=2)
        check_state(checkpoints.load(), 2)

    @pytest.mark.parametrize("size", [1000, 100_000])
    def test_full_disk(self, tmp_path: Path, size: int) -> None:
        with small_disk(tmp_path / "disk", "64k") as disk:
            checkpoints = Checkpoints(disk / "run", keep=9)
            checkpoints.save(state_of(0), step=0)

            def fill() -> None:
                for step in range(1, 20):
                    checkpoints.save(state_of(step, size), step=step)

            with pytest.raises(OSError, match="cannot write the checkpoint of step") as caught:
                fill()
            assert caught.value.errno == errno.ENOSPC
            newest = checkpoints.steps()[-1]
            assert f"that of step {newest} is kept" in str(caught.value)
            check_state(checkpoints.load(), newest)

    def test_no_folder(self, tmp_path: Path) -> None:
        """Root may write to read-only folders, but not below a file."""
        (tmp_path / "run").write_text("")
        with pytest.raises(OSError, match=r"cannot write the checkpoint of step 1: .*none before"):
            Checkpoints(tmp_path / "run" / "checkpoints").save(state_of(1), step=1)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
    def test_read_only_folder(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(state_of(1), step=1)
        (tmp_path / "run").chmod(0o500)
        try:
            with pytest.raises(PermissionError, match=r"of step 2: .*that of step 1 is kept"):
                checkpoints.save(state_of(2), step=2)
            check_state(checkpoints.load(), 1)
        finally:
            (tmp_path / "run").chmod(0o700)


def test_cleaning_takes_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".checkpoint-000000000001.part").mkdir()
    Checkpoints(tmp_path).clean()
    assert [path.name for path in tmp_path.iterdir()] == [".git"]


@pytest.mark.parametrize("state", [{"lr": float("nan")}, {"list": [1.0, float("inf")]}])
def test_numbers_are_looked_at_too(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(FloatingPointError, match="is not finite"):
        Checkpoints(tmp_path).save(state, step=1)
    assert not list(tmp_path.iterdir())
