"""Scores of few runs on several tasks, with the uncertainty that few runs leave.

The statistics of Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical
Precipice (NeurIPS 2021), as their package `rliable` computes them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_RESAMPLES = 2_000


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores, which outliers do not move and ties do not hold.

    Args:
        scores: numbers of any shape, such as `[runs, tasks]`.

    Returns:
        The mean without the lowest and the highest quarter.

    Raises:
        ValueError: there are no scores.

    Examples:
        >>> import numpy as np
        >>> from torchrl_shm.figures import interquartile_mean
        >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 99.0]))
        1.5
    """
    ordered = np.sort(scores, axis=None)
    if not len(ordered):
        raise ValueError("there are no scores")
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def stratified_interval(
    scores: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int = 0
) -> tuple[float, float]:
    """95 % confidence interval of a statistic, by the bootstrap that draws runs task by task.

    Args:
        scores: numbers of shape `[runs, tasks]`.
        statistic: maps such an array to a number.
        seed: seed of the resampling.

    Returns:
        Lower and upper end, of 2,000 resamples.

    Raises:
        ValueError: the scores are not of that shape.

    Examples:
        >>> import numpy as np
        >>> from torchrl_shm.figures import interquartile_mean, stratified_interval
        >>> low, high = stratified_interval(np.eye(4), interquartile_mean)
        >>> 0 <= low < high <= 1
        True
    """
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores are of shape {scores.shape}, expected [runs, tasks]")
    runs, tasks = scores.shape
    picks = np.random.default_rng(seed).integers(runs, size=(_RESAMPLES, runs, tasks))
    drawn = np.take_along_axis(scores[None], picks, 1)
    low, high = np.quantile([statistic(sample) for sample in drawn], [0.025, 0.975])
    return float(low), float(high)


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs whose score is above each threshold, averaged over tasks.

    Args:
        scores: numbers of shape `[runs, tasks]`.
        thresholds: numbers of shape `[n]`.

    Returns:
        Shares of shape `[n]`.

    Examples:
        >>> import numpy as np
        >>> from torchrl_shm.figures import performance_profile
        >>> performance_profile(np.array([[0.2], [0.8]]), np.array([0.0, 0.5, 1.0])).tolist()
        [1.0, 0.5, 0.0]
    """
    return (scores[None] > thresholds[:, None, None]).mean((1, 2))


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> float:
    """How likely a run beats a run of another memory, on a task drawn at random.

    Args:
        scores: numbers of shape `[runs, tasks]`.
        others: of the other memory, on the same tasks, with as many runs or not.

    Returns:
        The probability; ties count half.

    Raises:
        ValueError: the numbers of tasks differ.

    Examples:
        >>> import numpy as np
        >>> from torchrl_shm.figures import probability_of_improvement
        >>> probability_of_improvement(np.array([[1.0], [2.0]]), np.array([[1.0]]))
        0.75
    """
    if scores.shape[1:] != others.shape[1:]:
        raise ValueError(f"scores of {scores.shape[1:]} and of {others.shape[1:]} tasks")
    ahead = (scores[:, None] > others[None]) + 0.5 * (scores[:, None] == others[None])
    return float(ahead.mean())
