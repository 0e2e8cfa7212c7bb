"""The table of a sweep says what became of every job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.recipes._helpers import TINY, command
from tests.tools._helpers import tool
from torchrl_shm.training import RunFolder


@pytest.mark.slow
def test_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(
        "ppo_shm.py", "-m", *TINY, "experiment.total_frames=320", "memory=mlp,gru",
        "experiment.seed=range(2)", "hydra.sweep.dir=s",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    # one was stopped, one goes on, and one was never started
    first, second, third, fourth = sorted((tmp_path / "s").glob("?_*"))
    (second / "summary.json").unlink()
    (third / "summary.json").unlink()
    shutil.rmtree(fourth)
    folder = RunFolder.create(third, resume=True)
    result = tool("sweep", "status", "s")
    folder.close()
    assert result.code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [(x[0], *x[1:3], x[3]) for x in lines[:4]] == [
        ("0", "memory=mlp", "experiment.seed=0", "finished"),
        ("1", "memory=mlp", "experiment.seed=1", "stopped"),
        ("2", "memory=gru", "experiment.seed=0", "running"),
        ("3", "memory=gru", "experiment.seed=1", "missing"),
    ]
    assert "return" in lines[0]
    assert lines[1][-3:] == ["at", "frame", "320"]
    assert result.stdout.splitlines()[-1] == "1 finished, 1 running, 1 stopped, 1 missing"
    assert first.exists()


def test_mistakes(tmp_path: Path) -> None:
    result = tool("sweep", "status", tmp_path)
    assert result.code == 2
    assert "multirun.yaml does not exist; name the folder of a sweep" in result.stderr
    (tmp_path / "multirun.yaml").write_text("hydra: [")
    result = tool("sweep", "status", tmp_path)
    assert result.code == 2
    assert "multirun.yaml cannot be read" in result.stderr
    assert len(result.stderr.splitlines()) <= 3


def test_what_is_given_again_keeps_its_place(tmp_path: Path) -> None:
    """As with Hydra, whose jobs have these numbers."""
    given = ["experiment.seed=0", "memory=mlp,gru", "env=wind", "experiment.seed=1,2"]
    config = {"hydra": {"overrides": {"task": given}}}
    OmegaConf.save(config, tmp_path / "multirun.yaml")
    lines = tool("sweep", "status", tmp_path).stdout.splitlines()
    assert [tuple(line.split()[1:3]) for line in lines[:4]] == [
        ("experiment.seed=1", "memory=mlp"),
        ("experiment.seed=1", "memory=gru"),
        ("experiment.seed=2", "memory=mlp"),
        ("experiment.seed=2", "memory=gru"),
    ]
