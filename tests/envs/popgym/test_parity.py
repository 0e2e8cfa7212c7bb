"""Step by step what the `popgym` package does, from injected layouts."""

from __future__ import annotations

import pytest

from tests.envs.popgym._originals import FAMILIES, LEVELS, match

pytest.importorskip("popgym", reason="compares with the popgym package")


# numpy 2.4 warns about what gymnasium's pendulum does
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
@pytest.mark.parametrize("share", [0.0, 0.9], ids=["random", "expert"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", FAMILIES)
class TestParity:
    def test_some_episodes(self, name: str, level: str, share: float) -> None:
        match(name, level, 3, share, 1e-6 if "Pendulum" in name else 1e-7)

    @pytest.mark.slow
    def test_many_episodes(self, name: str, level: str, share: float) -> None:
        match(name, level, 50, share, 1e-6 if "Pendulum" in name else 1e-7)
