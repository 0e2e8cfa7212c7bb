"""A folder to start runs in, and commands that start quickly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder: Hydra makes folders where it is started."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(autouse=True, scope="session")
def _share_the_store() -> None:
    """Hydra copies all configs of all groups per command, and copies again what it loads of them.

    The first copy costs a third of a second; `--help` makes it a hundred times.
    """
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
