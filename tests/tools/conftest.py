"""A short run per memory, made when a test first asks for it, and a copy of one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.recipes._helpers import TINY, command
from tests.recipes.conftest import _curves as _curves  # runs draw no learning curve here either


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a run with a memory; copy it before writing to it."""

    @cache
    def make(memory: str) -> Path:
        folder = tmp_path_factory.mktemp(memory)
        result = command("ppo_shm.py", *TINY, f"memory={memory}", f"hydra.run.dir={folder}")
        assert result.code == 0, result.stderr
        return folder

    return make


@pytest.fixture
def run(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished("shm"), tmp_path / "run"))
