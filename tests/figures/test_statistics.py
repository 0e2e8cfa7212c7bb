"""Statistics of few runs: equal to what the package `rliable` 1.2 gives for the same scores."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_shm.figures import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

ONE = np.array(
    [
        [0.1, -0.1, 0.6, 0.1],
        [-0.5, 0.4, 1.3, 0.9],
        [-0.7, -1.3, -0.6, 0.0],
        [-2.3, -0.2, -1.2, -0.7],
        [-0.5, -0.3, 0.4, 1.0],
    ]
)
OTHER = np.array([[0.6, 1.1, 0.6, -1.0], [1.2, 0.7, -0.2, 0.9], [0.7, 0.6, 0.3, 0.8]])


def test_interquartile_mean() -> None:
    assert interquartile_mean(ONE) == pytest.approx(-0.16)
    assert interquartile_mean(OTHER) == pytest.approx(2 / 3)


def test_probability_of_improvement() -> None:
    assert probability_of_improvement(ONE, OTHER) == pytest.approx(4 / 15)
    assert probability_of_improvement(OTHER, ONE) == pytest.approx(11 / 15)
    assert probability_of_improvement(ONE, ONE) == 0.5


def test_performance_profile() -> None:
    shares = performance_profile(ONE, np.array([-1, -0.5, 0, 0.5, 1]))
    assert shares.tolist() == pytest.approx([0.85, 0.6, 0.4, 0.2, 0.05])


def test_stratified_interval() -> None:
    """Of 50,000 resamples it is (-0.49, 0.17); 2,000 leave a little."""
    assert stratified_interval(ONE, interquartile_mean) == pytest.approx((-0.49, 0.17), abs=0.03)
    # a task on which all runs agree has no spread, whatever the others have
    apart = np.array([[0.0, 9.0], [0.0, 9.0]])
    assert stratified_interval(apart, interquartile_mean) == (4.5, 4.5)


def test_errors() -> None:
    with pytest.raises(ValueError, match="there are no scores"):
        interquartile_mean(np.array([]))
    with pytest.raises(ValueError, match=r"expected \[runs, tasks\]"):
        stratified_interval(np.array([1.0]), interquartile_mean)
    with pytest.raises(ValueError, match=r"scores of \(4,\) and of \(1,\) tasks"):
        probability_of_improvement(ONE, ONE[:, :1])
