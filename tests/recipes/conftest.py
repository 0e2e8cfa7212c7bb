"""One short run per memory, made when a test first asks for it, and a folder to start runs in."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.recipes._helpers import TINY, Result, command


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Result]]:
    """Folder and output of a run with a memory; copy the folder before writing to it."""

    @cache
    def make(memory: str) -> tuple[Path, Result]:
        folder = tmp_path_factory.mktemp(memory)
        result = command("ppo_shm.py", *TINY, f"memory={memory}", f"hydra.run.dir={folder}")
        assert result.code == 0, result.stderr
        return folder, result

    return make


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder: Hydra makes folders where it is started."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
