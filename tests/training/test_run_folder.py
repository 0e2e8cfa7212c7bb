"""Nothing in a run folder is ever half-written, or more than data."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from torchrl_shm.training import RunFolder
from torchrl_shm.training.run_folder import write_atomically


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


class TestCheckpoint:
    def test_round_trip(self, tmp_path: Path) -> None:
        linear = torch.nn.Linear(2, 3)
        optimizer = torch.optim.Adam(linear.parameters())
        linear(torch.ones(2)).sum().backward()
        optimizer.step()
        run = RunFolder(tmp_path)
        state = {"model": linear.state_dict(), "optimizer": optimizer.state_dict(), "frames": 3}
        run.save_checkpoint(state)
        loaded = RunFolder(tmp_path).load_checkpoint()
        assert loaded["frames"] == 3
        torch.testing.assert_close(loaded["model"], linear.state_dict(), rtol=0, atol=0)
        torch.optim.Adam(torch.nn.Linear(2, 3).parameters()).load_state_dict(loaded["optimizer"])

    def test_missing(self, tmp_path: Path) -> None:
        message = r"checkpoint\.pt does not exist: .*algo\.checkpoint_interval"
        with pytest.raises(FileNotFoundError, match=message):
            RunFolder(tmp_path).load_checkpoint()

    def test_code_is_refused(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "exploded"),)

        torch.save({"operator": Bomb()}, tmp_path / "checkpoint.pt")
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            RunFolder(tmp_path).load_checkpoint()
        assert not (tmp_path / "exploded").exists()


class TestCrash:
    """The old file or the new one, never a part."""

    def test_between_writing_and_replacing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = RunFolder(tmp_path)
        run.save_checkpoint({"frames": 1})
        run.write_summary({"frames": 1})

        def crash(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            with pytest.raises(KeyboardInterrupt):
                run.save_checkpoint({"frames": 2})
            with pytest.raises(KeyboardInterrupt):
                run.write_summary({"frames": 2})
        assert run.load_checkpoint() == {"frames": 1}
        assert json.loads((tmp_path / "summary.json").read_text()) == {"frames": 1}
        # what the crash left behind is in nobody's way
        run.save_checkpoint({"frames": 3})
        assert run.load_checkpoint() == {"frames": 3}
        assert not (tmp_path / "checkpoint.pt.part").exists()

    def test_while_writing(self, tmp_path: Path) -> None:
        def write(file: BinaryIO) -> None:
            file.write(b"ne")
            raise OSError("disk full")

        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, write)
        assert path.read_bytes() == b"old"

    def test_while_serialising(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path)
        run.save_checkpoint({"frames": 1})
        with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
            run.save_checkpoint({"file": io.TextIOWrapper(io.BytesIO())})
        assert run.load_checkpoint() == {"frames": 1}

    def test_content_is_on_disk_before_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
        monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
        RunFolder(tmp_path).write_summary({})
        assert calls == ["fsync", "replace"]


def test_summary_is_json(tmp_path: Path) -> None:
    summary = {"env": "wind", "eval_return": 1.5, "eval_success": None}
    RunFolder(tmp_path).write_summary(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
