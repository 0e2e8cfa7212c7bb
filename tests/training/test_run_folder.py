"""Nothing in a run folder is ever half-written, and no two runs write to one."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pytest

from tests._processes import Child, wait_until
from torchrl_shm.training import RunFolder
from torchrl_shm.training.run_folder import is_running, write_atomically


class TestMetrics:
    def test_rows_are_on_disk_at_once(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path)
        expected = "a,b\n"
        for i in range(3):
            run.log({"a": i, "b": i / 2})
            expected += f"{i},{i / 2}\n"
            assert (tmp_path / "metrics.csv").read_text() == expected
        assert run.metrics == [{"a": i, "b": i / 2} for i in range(3)]

    def test_missing_folders_are_made(self, tmp_path: Path) -> None:
        RunFolder(tmp_path / "a" / "b").log({"x": 1})
        assert (tmp_path / "a" / "b" / "metrics.csv").exists()

    @pytest.mark.parametrize("row", [{"a": 1}, {"a": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}])
    def test_other_columns_are_refused(self, tmp_path: Path, row: dict[str, float]) -> None:
        run = RunFolder(tmp_path)
        run.log({"a": 1, "b": 2})
        with pytest.raises(ValueError, match=r"columns \[.*\] differ from \['a', 'b'\]"):
            run.log(row)
        assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n"
        assert run.metrics == [{"a": 1, "b": 2}]

    def test_values_stay_in_their_columns(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path)
        run.log({"a": 1, "b": 2})
        run.log({"b": 4, "a": 3})
        assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n3,4\n"

    def test_a_new_run_starts_a_new_file(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).log({"a": 1})
        RunFolder(tmp_path).log({"b": 2})
        assert (tmp_path / "metrics.csv").read_text() == "b\n2\n"

    def test_later_changes_of_a_row_do_not_reach_the_record(self, tmp_path: Path) -> None:
        run, row = RunFolder(tmp_path), {"a": 1}
        run.log(row)
        row["a"] = 2
        assert run.metrics == [{"a": 1}]


class TestRestoredMetrics:
    """A run that goes on repeats what it had written, to the last byte."""

    ROWS: ClassVar[list[dict[str, float]]] = [
        {"frames": 100 * i, "return": value, "loss": 1 / (i + 3)}
        for i, value in enumerate([math.nan, 0.1, -2.5e-9, 1e22])
    ]

    def test_rows_after_the_checkpoint_are_cut(self, tmp_path: Path) -> None:
        run, path = RunFolder(tmp_path), tmp_path / "metrics.csv"
        texts = []
        for row in self.ROWS:
            run.log(row)
            texts.append(path.read_text())
        assert [run.metrics_csv(rows) for rows in range(1, 5)] == texts
        assert run.metrics_csv(0) == ""
        again = RunFolder(tmp_path)
        again.restore_metrics(texts[1])
        assert path.read_text() == texts[1]
        for row in self.ROWS[2:]:
            again.log(row)
        assert path.read_text() == texts[-1]
        assert again.metrics_csv(4) == texts[-1]
        # as they were, whole numbers and NaN as well
        assert str(again.metrics) == str(run.metrics)

    def test_columns_are_those_of_before(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).log({"a": 1})
        again = RunFolder(tmp_path)
        again.restore_metrics((tmp_path / "metrics.csv").read_text())
        with pytest.raises(ValueError, match=r"columns \['b'\] differ from \['a'\]"):
            again.log({"b": 1})

    def test_restored_before_the_first_row(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).log({"a": 1})
        again = RunFolder(tmp_path)
        again.restore_metrics("")
        assert again.metrics == []
        again.log({"b": 2})
        assert (tmp_path / "metrics.csv").read_text() == "b\n2\n"


class TestCreate:
    def test_two_processes_never_write_to_one_folder(self, tmp_path: Path) -> None:
        run = RunFolder.create(tmp_path)
        assert is_running(tmp_path)

        def create() -> None:
            RunFolder.create(tmp_path, resume=True)

        with Child(create, tmp_path / "out") as child:
            assert child.wait() == 1
            assert f"RuntimeError: {tmp_path} is in use: a run is going on there" in child.text()
        run.close()
        assert not is_running(tmp_path)
        with Child(create) as child:
            assert child.wait() == 0

    def test_the_lock_goes_with_the_process(self, tmp_path: Path) -> None:
        def hold() -> None:
            run = RunFolder.create(tmp_path)
            run.log({"a": 1})
            signal.pause()

        with Child(hold) as child:
            wait_until((tmp_path / "metrics.csv").exists)
            assert is_running(tmp_path)
            child.process.kill()
            child.wait()
        assert not is_running(tmp_path)
        RunFolder.create(tmp_path, resume=True).close()

    def test_looking_holds_nothing(self, tmp_path: Path) -> None:
        assert not is_running(tmp_path)
        assert not is_running(tmp_path)
        run = RunFolder.create(tmp_path)
        # nor does it let go
        assert is_running(tmp_path)
        assert is_running(tmp_path)
        run.close()

    @pytest.mark.parametrize("name", ["checkpoints", "summary.json"])
    def test_results_are_not_overwritten(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        message = f"{name} is of another run, .* by resume={tmp_path}, choose another hydra"
        with pytest.raises(FileExistsError, match=message):
            RunFolder.create(tmp_path)
        RunFolder.create(tmp_path, resume=True).close()

    def test_what_a_crash_left_is_removed(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints" / ".checkpoint-000000000001.part").mkdir(parents=True)
        RunFolder.create(tmp_path, resume=True).close()
        assert list((tmp_path / "checkpoints").iterdir()) == []

    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match="file/run"):
            RunFolder.create(tmp_path / "file" / "run")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
    def test_read_only(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(PermissionError, match=r"choose another hydra\.run\.dir"):
                RunFolder.create(tmp_path)
        finally:
            tmp_path.chmod(0o700)

    def test_read_only_as_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(PermissionError, match=r"choose another hydra\.run\.dir"):
            RunFolder.create(tmp_path)


class TestCrash:
    """The old file or the new one, never a part."""

    def test_between_writing_and_replacing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = RunFolder(tmp_path)
        run.write_summary({"frames": 1})

        def crash(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            with pytest.raises(KeyboardInterrupt):
                run.write_summary({"frames": 2})
        assert run.summary == {"frames": 1}
        # what the crash left behind is in nobody's way
        run.write_summary({"frames": 3})
        assert run.summary == {"frames": 3}
        assert not (tmp_path / "summary.json.part").exists()

    def test_while_writing(self, tmp_path: Path) -> None:
        def write(file: BinaryIO) -> None:
            file.write(b"ne")
            raise OSError("disk full")

        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, write)
        assert path.read_bytes() == b"old"

    def test_content_is_on_disk_before_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
        monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
        RunFolder(tmp_path).write_summary({})
        # the file, its name, the folder that holds the name
        assert calls == ["fsync", "replace", "fsync"]


def test_summary_is_json(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).summary is None
    summary = {"env": "wind", "eval_return": 1.5, "eval_success": None}
    RunFolder(tmp_path).write_summary(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert RunFolder(tmp_path).summary == summary


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json.part").symlink_to(outside)
    RunFolder(tmp_path / "run").write_summary({"a": 1})
    assert outside.read_text() == "mine"
    assert RunFolder(tmp_path / "run").summary == {"a": 1}
