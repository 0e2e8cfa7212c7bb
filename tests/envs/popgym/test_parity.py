"""Step by step what the `popgym` package does, from injected layouts."""

from __future__ import annotations

import pytest
import torch

from tests.envs.popgym._originals import FAMILIES, LEVELS, match

pytest.importorskip("popgym", reason="compares with the popgym package")


# numpy 2.4 warns about what gymnasium's pendulum does
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
@pytest.mark.parametrize(
    ("count", "level"),
    [
        (3, "easy"),
        (1, "medium"),
        (1, "hard"),
        *(pytest.param(100, level, marks=pytest.mark.slow) for level in LEVELS),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_episodes_are_those_of_the_original(name: str, level: str, count: int) -> None:
    # from players at random to experts who rarely err
    share = torch.linspace(0, 0.9, count)
    match(name, level, count, share, 1e-6 if "Pendulum" in name else 1e-7)
