"""A folder to start runs in, and runs that draw no learning curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder: Hydra makes folders where it is started."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def curves() -> None:
    """For tests whose runs draw their learning curves."""


@pytest.fixture(autouse=True)
def _curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an empty file: to draw one takes as long as to train for some updates."""

    def touch(metrics: Any, path: Path, *, title: str) -> None:
        assert metrics
        assert title
        path.touch()

    if "curves" not in request.fixturenames:
        monkeypatch.setattr("torchrl_shm.figures.plot_learning_curve", touch)
