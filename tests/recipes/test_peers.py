"""Other packages that the recipe is timed against."""

import sys

import pytest

from tests.benchmarks._peers import sb3_frames_per_second


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(SystemExit, match=r"sb3_contrib.*install it with `pip install sb3-contrib`"):
        sb3_frames_per_second()


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sb3(shared: bool) -> None:
    pytest.importorskip("sb3_contrib")
    speed = sb3_frames_per_second(4, 60, epochs=1, minibatches=2, width=8, shared=shared)
    # neither nothing nor more than one frame per microsecond
    assert 1 < speed < 1e6
