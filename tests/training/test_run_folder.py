"""Files of a run folder are never half-written, and no two processes write to one."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import ClassVar

import pytest

from tests._processes import Child, wait_until
from torchrl_shm.training import RunFolder
from torchrl_shm.training.run_folder import is_running


class TestMetrics:
    ROWS: ClassVar[list[dict[str, float]]] = [
        {"frames": 100 * i, "return": value, "loss": 1 / (i + 3)}
        for i, value in enumerate([math.nan, 0.1, -2.5e-9, 1e22])
    ]

    def test_rows_are_on_disk_at_once(self, tmp_path: Path) -> None:
        """In a folder that is made; values stay in their columns."""
        folder = RunFolder(tmp_path / "a" / "b")
        for row, text in (({"a": 1, "b": 0.5}, "a,b\n1,0.5\n"), ({"b": 4, "a": 3}, "3,4\n")):
            folder.log(row)
            assert (folder.path / "metrics.csv").read_text().endswith(text)
        assert folder.metrics == [{"a": 1, "b": 0.5}, {"a": 3, "b": 4}]
        for row in ({"a": 1}, {"a": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}):
            with pytest.raises(ValueError, match=r"columns \[.*\] differ from \['a', 'b'\]"):
                folder.log(row)
        assert folder.metrics_csv == (folder.path / "metrics.csv").read_text() == (
            "a,b\n1,0.5\n3,4\n"
        )  # fmt: skip

    @pytest.mark.parametrize("kept", [0, 2])
    def test_restored_metrics_go_on(self, tmp_path: Path, kept: int) -> None:
        """Rows after the checkpoint are cut; the rest is repeated to the last byte."""
        folder, text = RunFolder(tmp_path), ""
        for i, row in enumerate(self.ROWS):
            text = folder.metrics_csv if i == kept else text
            folder.log(row)
        again = RunFolder(tmp_path)
        again.restore_metrics(text)
        assert (tmp_path / "metrics.csv").read_text() == text
        for row in self.ROWS[kept:]:
            again.log(row)
        assert (tmp_path / "metrics.csv").read_text() == again.metrics_csv == folder.metrics_csv
        # as they were, whole numbers and NaN as well
        assert str(again.metrics) == str(folder.metrics)


class TestCreate:
    def test_two_processes_never_write_to_one_folder(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path)
        # looking neither takes the lock nor gives it back
        assert is_running(tmp_path)
        assert is_running(tmp_path)
        with Child(lambda: RunFolder.create(tmp_path, resume=True), tmp_path / "out") as child:
            assert child.wait() == 1
            assert f"RuntimeError: {tmp_path} is in use: a run is writing there" in child.text()
        folder.close()
        assert not is_running(tmp_path)
        RunFolder.create(tmp_path, resume=True).close()

    def test_the_lock_ends_with_the_process(self, tmp_path: Path) -> None:
        def hold() -> None:
            folder = RunFolder.create(tmp_path)
            folder.log({"a": 1})
            signal.pause()

        with Child(hold) as child:
            wait_until((tmp_path / "metrics.csv").exists)
            assert is_running(tmp_path)
            child.process.kill()
            child.wait()
        assert not is_running(tmp_path)

    @pytest.mark.parametrize("name", ["checkpoints", "summary.json"])
    def test_results_are_not_overwritten(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        message = f"{name} is of another run, .* with experiment.resume={tmp_path}, choose another"
        with pytest.raises(FileExistsError, match=message):
            RunFolder.create(tmp_path)
        RunFolder.create(tmp_path, resume=True).close()

    def test_what_a_crash_left_is_removed(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "checkpoint-000000000001-0123456789abcdef.pt.part").touch()
        RunFolder.create(tmp_path, resume=True).close()
        assert list((tmp_path / "checkpoints").iterdir()) == []

    def test_a_folder_that_cannot_be_made_or_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match="file/run"):
            RunFolder.create(tmp_path / "file" / "run")
        # root may write everywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(PermissionError, match=r"choose another hydra\.run\.dir"):
            RunFolder.create(tmp_path)


class TestSummary:
    def test_is_json(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        assert folder.summary is None
        summary = {"env": "wind", "eval_return": 1.5, "eval_success": None}
        folder.write_summary(summary)
        assert json.loads((tmp_path / "summary.json").read_text()) == folder.summary == summary

    def test_content_is_on_disk_before_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A power cut cannot be tried here, the order of the calls can; checkpoints share it."""
        calls: list[str] = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
        monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
        RunFolder(tmp_path).write_summary({})
        # the file, its name, the folder that holds the name
        assert calls == ["fsync", "replace", "fsync"]

    def test_a_link_is_not_written_through(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.write_text("mine")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "summary.json.part").symlink_to(outside)
        RunFolder(tmp_path / "run").write_summary({"a": 1})
        assert outside.read_text() == "mine"
        assert RunFolder(tmp_path / "run").summary == {"a": 1}
