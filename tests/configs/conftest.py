"""What must not happen while a file is read."""

from __future__ import annotations

import os
from typing import Any

import pytest


@pytest.fixture
def trapped_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a configuration gets to run a command."""

    def trap(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("foreign code ran")

    monkeypatch.setattr(os, "system", trap)
