"""A short run per memory, and a copy of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.conftest import finished as finished


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished("shm")[0], tmp_path / "run"))
